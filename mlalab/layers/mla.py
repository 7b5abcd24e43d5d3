"""A multi-head latent attention layer, readable and complete: both paths, one paged cache.

Prefill rows run as multi-head attention over decompressed keys and values; decode rows run as
multi-query attention over the latent cache itself, with W_UK absorbed into the query and W_UV
applied to the attended latent. The split is inside the opaque attention op, as in vLLM.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import mlalab.ops  # noqa: F401  registers torch.ops.mlalab
from mlalab.cache import PagedLatentCache
from mlalab.context import BatchMetadata
from mlalab.errors import ContextError
from mlalab.kernels import pick
from mlalab.layers.fused import fused_mla_update
from mlalab.layers.options import LayerOptions as MLAOptions
from mlalab.layers.options import build_rope
from mlalab.rope import ROPE_CLASSES, softmax_scale
from mlalab.shapes import MLAShape
from mlalab_kernels.mla_decode_attention.reference import gather_rows
from mlalab_kernels.numerics import dequantize


class MLAAttention(nn.Module):
    """MLA over `hidden [T, D]`; parameter names are those of a Hugging Face checkpoint.

    For inference: its ops write in place and have no backward, so parameters want no gradient.

    Args:
        shape: sizes on this rank.
        layer_name: key of this layer in the forward context.
    """

    kind = "mla"

    def __init__(
        self,
        shape: MLAShape,
        layer_name: str = "model.layers.0.self_attn",
        options: MLAOptions = MLAOptions(),  # noqa: B008  frozen
    ) -> None:
        super().__init__()
        self.shape, self.layer_name, self.options = shape, layer_name, options
        self._build_projections()
        self.rotary_emb = build_rope(
            *(ROPE_CLASSES.get(shape.rope.kind), shape.rope, shape.qk_rope_head_dim),
            *(shape.max_position_embeddings, options),
        )
        self.softmax_scale = softmax_scale(shape.rope, shape.qk_head_dim)
        one = torch.ones((), dtype=torch.float32, device=options.device)
        self.register_buffer("q_scale", one.clone(), persistent=False)
        self.register_buffer("k_scale", one.clone(), persistent=False)
        self._kv_cache: PagedLatentCache | None = None
        self.requires_grad_(False)

    k_scale: Tensor
    q_scale: Tensor

    def _build_projections(self) -> None:
        shape, options = self.shape, self.options
        factory: dict[str, Any] = {"dtype": options.dtype, "device": options.device}
        bias = shape.attention_bias
        q_width = shape.num_heads * shape.qk_head_dim
        kv_width = shape.num_heads * (shape.qk_nope_head_dim + shape.v_head_dim)
        out_width = shape.num_heads * shape.v_head_dim
        if shape.q_lora_rank is None:
            self.q_proj = nn.Linear(shape.hidden_size, q_width, bias=False, **factory)
        else:
            self.q_a_proj = nn.Linear(shape.hidden_size, shape.q_lora_rank, bias=bias, **factory)
            self.q_a_layernorm = nn.RMSNorm(shape.q_lora_rank, shape.rms_norm_eps, **factory)
            self.q_b_proj = nn.Linear(shape.q_lora_rank, q_width, bias=False, **factory)
        self.kv_a_proj_with_mqa = nn.Linear(
            shape.hidden_size, shape.cache_dim, bias=bias, **factory
        )
        self.kv_a_layernorm = nn.RMSNorm(shape.kv_lora_rank, shape.rms_norm_eps, **factory)
        self.kv_b_proj = nn.Linear(shape.kv_lora_rank, kv_width, bias=False, **factory)
        self.o_proj = nn.Linear(out_width, shape.hidden_size, bias=bias, **factory)

    def forward(self, positions: Tensor, hidden_TD: Tensor) -> Tensor:
        """Return `[T, D]`; writes the new rows into the cache of the forward context's layer.

        Args:
            positions: `[T]` int64.
            hidden_TD: `[T, D]`.
        """
        shape = self.shape
        q_TNH = self._project_q(hidden_TD).view(-1, shape.num_heads, shape.qk_head_dim)
        latent_TC = self.kv_a_proj_with_mqa(hidden_TD)
        kv_c_TL, k_pe_TR = latent_TC.split([shape.kv_lora_rank, shape.qk_rope_head_dim], dim=-1)
        kv_c_TL = self.kv_a_layernorm(kv_c_TL)
        fused = self.options.fusion == "layer" and self.rotary_emb is not None
        prepare = fused_mla_update if fused else _update
        q, k_pe, dummy, q_prepped = prepare(self, positions, q_TNH, kv_c_TL, k_pe_TR)
        output = q_TNH.new_empty((q_TNH.size(0), shape.num_heads * shape.v_head_dim))
        torch.ops.mlalab.unified_mla_attention_with_output(
            *(q, kv_c_TL, k_pe, output, self.layer_name),
            kv_cache_dummy_dep=dummy,
            q_prepped=q_prepped,
        )
        return self.o_proj(output)

    def _project_q(self, hidden_TD: Tensor) -> Tensor:
        if self.shape.q_lora_rank is None:
            return self.q_proj(hidden_TD)
        return self.q_b_proj(self.q_a_layernorm(self.q_a_proj(hidden_TD)))

    @property
    def kv_cache(self) -> PagedLatentCache:
        """The layer's cache."""
        if self._kv_cache is None:
            raise ContextError(
                f"Layer {self.layer_name!r} has no cache yet; "
                f"call layer.allocate_cache(num_blocks)."
            )
        return self._kv_cache

    def allocate_cache(self, num_blocks: int, block_size: int = 16) -> PagedLatentCache:
        """Give the layer a zeroed cache of `num_blocks × block_size` rows and return it."""
        self._kv_cache = PagedLatentCache(
            *(num_blocks, block_size, self.shape.cache_dim),
            kv_cache_dtype=self.options.kv_cache_dtype,
            dtype=self.options.dtype,
            device=self.options.device,
        )
        return self._kv_cache

    @property
    def _w_kv_b(self) -> Tensor:
        """W_UK and W_UV side by side, `[N, P + V, L]`: a view of the checkpoint's weight."""
        return self.kv_b_proj.weight.unflatten(0, (self.shape.num_heads, -1))

    @property
    def w_uk_NPL(self) -> Tensor:
        """W_UK: what the nope query is multiplied by to meet the latent."""
        return self._w_kv_b[:, : self.shape.qk_nope_head_dim]

    @property
    def w_uv_NVL(self) -> Tensor:
        """W_UV: what turns an attended latent into a value."""
        return self._w_kv_b[:, self.shape.qk_nope_head_dim :]

    def prepare_decode_query(self, q_TNH: Tensor) -> Tensor:
        """Return `[q_nope · W_UK | q_pe]`, `[T, N, C]`, in FP8 when the cache is."""
        return pick("mla_decode_q_prep", q_TNH.device)(
            q_TNH, self.w_uk_NPL, self.q_scale, self.kv_cache.typed_dtype
        )

    def attend(
        self,
        q_TNH: Tensor | None,
        kv_c_TL: Tensor,
        k_pe_T1R: Tensor | None,
        metadata: BatchMetadata,
        q_prepped_TNC: Tensor | None = None,
    ) -> Tensor:
        """Return attention of the batch, `[T, N, V]`: decode rows first, then prefill requests.

        Args:
            q_TNH, k_pe_T1R: may be None when no request is prefilled and `q_prepped_TNC` is given.
            q_prepped_TNC: what `prepare_decode_query` returns for the batch; saves doing it here.
        """
        decode_rows = metadata.num_decode_tokens
        query_TNC = self._decode_query(q_TNH, q_prepped_TNC, decode_rows)
        parts = [self._attend_decode(query_TNC, metadata)]
        start = decode_rows
        for request in range(metadata.num_decodes, len(metadata.query_lens)):
            assert q_TNH is not None and k_pe_T1R is not None
            own = slice(start, start + metadata.query_lens[request])
            new = (kv_c_TL[own], k_pe_T1R[own].squeeze(1))
            parts.append(self._attend_prefill(q_TNH[own], *new, metadata, request))
            start = own.stop
        return torch.cat(parts)

    def _decode_query(
        self, q_TNH: Tensor | None, q_prepped_TNC: Tensor | None, rows: int
    ) -> Tensor:
        if q_prepped_TNC is not None:
            return q_prepped_TNC[:rows]
        assert q_TNH is not None
        return self.prepare_decode_query(q_TNH[:rows])

    def _attend_decode(self, q_TNC: Tensor, metadata: BatchMetadata) -> Tensor:
        requests = slice(metadata.num_decodes)
        latent_TNL, _ = pick("mla_decode_attention", q_TNC.device)(
            *(q_TNC, self.kv_cache.typed_BKC),
            *(metadata.block_table[requests], metadata.query_lens[requests]),
            *(metadata.seq_lens[requests], self.softmax_scale, self.shape.kv_lora_rank),
            *(self.q_scale, self.k_scale),
            need_lse=False,
        )
        latent_NTL = latent_TNL.to(self.w_uv_NVL.dtype).transpose(0, 1)
        return torch.bmm(latent_NTL, self.w_uv_NVL.transpose(1, 2)).transpose(0, 1)

    def _attend_prefill(
        self, q_TNH: Tensor, kv_c_TL: Tensor, k_pe_TR: Tensor, metadata: BatchMetadata, request: int
    ) -> Tensor:
        """Attend one request: its context from the cache, its new tokens as they came."""
        blocks = metadata.block_table[request]
        rows = gather_rows(self.kv_cache.typed_BKC, blocks, metadata.context_lens[request])
        context_SC = dequantize(rows, self.k_scale, q_TNH.dtype)
        sizes = [self.shape.kv_lora_rank, self.shape.qk_rope_head_dim]
        context_c, context_pe = context_SC.split(sizes, dim=-1)
        return pick("mla_prefill_attention", q_TNH.device)(
            *(q_TNH, torch.cat((context_c, kv_c_TL)), torch.cat((context_pe, k_pe_TR))),
            *(self._w_kv_b, self.softmax_scale),
        )


def _update(
    layer: MLAAttention, positions: Tensor, q_TNH: Tensor, kv_c_TL: Tensor, k_pe_TR: Tensor
) -> tuple[Tensor, Tensor, Tensor, None]:
    """Rotate, write the cache, and leave the rest to attention, op by op: a pass may fuse it."""
    k_pe_T1R = k_pe_TR.unsqueeze(1)
    if layer.rotary_emb is not None:
        nope = layer.shape.qk_nope_head_dim
        q_TNH[..., nope:], k_pe_T1R = layer.rotary_emb(positions, q_TNH[..., nope:], k_pe_T1R)
    dummy = torch.ops.mlalab.unified_mla_kv_cache_update(
        kv_c_TL, k_pe_T1R, layer.layer_name, layer.options.kv_cache_dtype, layer.k_scale
    )
    return q_TNH, k_pe_T1R, dummy, None
