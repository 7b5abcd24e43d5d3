"""A multi-head latent attention layer, readable and complete: both paths, one paged cache.

What comes before attention, and the output projection, are here; attention is in `mla_paths`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import mlalab.ops  # noqa: F401  registers torch.ops.mlalab
from mlalab.cache import PagedLatentCache, typed_dtype
from mlalab.layers.fused import fused_mla_update
from mlalab.layers.mla_paths import MLAPaths
from mlalab.layers.options import LayerOptions as MLAOptions
from mlalab.layers.options import build_rope
from mlalab.rope import ROPE_CLASSES, softmax_scale
from mlalab.shapes import MLAShape


class MLAAttention(MLAPaths):
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
        options: MLAOptions | None = None,
    ) -> None:
        super().__init__()
        options = options or MLAOptions()
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
        self._query_dtype = typed_dtype(options.kv_cache_dtype, options.dtype, options.device)
        self.requires_grad_(False)

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

    def forward(
        self, positions: Tensor, hidden_TD: Tensor, num_decode_tokens: int | None = None
    ) -> Tensor:
        """Return `[T, D]`; writes the new rows into the cache of the forward context's layer.

        Args:
            positions: `[T]` int64.
            hidden_TD: `[T, D]`.
            num_decode_tokens: what `split_once` returned, where layers share one split.
        """
        shape = self.shape
        q_TNH = self._project_q(hidden_TD).view(-1, shape.num_heads, shape.qk_head_dim)
        latent_TC = self.kv_a_proj_with_mqa(hidden_TD)
        kv_c_TL, k_pe_TR = latent_TC.split([shape.kv_lora_rank, shape.qk_rope_head_dim], dim=-1)
        kv_c_TL = self.kv_a_layernorm(kv_c_TL)
        fused = self.options.fusion == "layer" and self.rotary_emb is not None
        prepare = fused_mla_update if fused else _update
        q, k_pe, dummy, q_prepped = prepare(self, positions, q_TNH, kv_c_TL, k_pe_TR)
        if self.options.exposed:
            given = (q, kv_c_TL, k_pe, q_prepped, num_decode_tokens)
            parts = self.attend(*given, kv_cache_dummy_dep=dummy)
            joined = parts[0] if len(parts) == 1 else torch.cat(parts)
            # As many rows as came in, said so that nothing behind depends on the split.
            return self.o_proj(joined.reshape(hidden_TD.size(0), self.o_proj.in_features))
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
