"""The two paths of MLA over one paged cache, and the split between them.

Prefill rows run as multi-head attention over decompressed keys and values; decode rows run as
multi-query attention over the latent cache itself, with W_UK absorbed into the query and W_UV
applied to the attended latent. The split is inside the opaque attention op, as in vLLM, or, where
the layer is exposed, in the graph: the same methods run, those that need the batch as ops of their
own, and what lies between them is plain torch that a compiler sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mlalab.cache import PagedLatentCache
from mlalab.context import BatchMetadata, current_context, served_kind
from mlalab.errors import ContextError
from mlalab.kernels import pick
from mlalab.layers.options import LayerOptions
from mlalab.ops.checks import check_decode_rows, check_query, check_rows
from mlalab.ops.exposed import wrap_if_exposed
from mlalab.shapes import MLAShape
from mlalab_kernels.mla_decode_attention.reference import gather_rows
from mlalab_kernels.mla_decode_q_prep.reference import mla_decode_q_prep
from mlalab_kernels.numerics import dequantize


class MLAPaths(nn.Module):
    """Attention of an MLA layer; what is declared here, the layer provides."""

    shape: MLAShape
    layer_name: str
    options: LayerOptions
    kv_b_proj: nn.Linear
    softmax_scale: float
    q_scale: Tensor
    k_scale: Tensor
    _kv_cache: PagedLatentCache | None
    _query_dtype: torch.dtype

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
            q_TNH, self.w_uk_NPL, self.q_scale, self._query_dtype
        )

    def attend(
        self,
        q_TNH: Tensor | None,
        kv_c_TL: Tensor,
        k_pe_T1R: Tensor | None,
        q_prepped_TNC: Tensor | None = None,
        num_decode_tokens: int | None = None,
        **dependencies: Tensor,
    ) -> list[Tensor]:
        """Return attention of the batch in parts, `[n, N, V]` of decode rows, then of the rest.

        A part that a graph's kind of batch cannot have is left out; see `graph_serves`.

        Args:
            q_TNH, k_pe_T1R: may be None when no request is prefilled and `q_prepped_TNC` is given.
            q_prepped_TNC: what `prepare_decode_query` returns for the batch; saves doing it here.
            num_decode_tokens: what `split_batch` returned for the batch; saves asking again.
            dependencies: `kv_cache_dummy_dep`, where a graph has to order the steps.
        """
        # Called eagerly, a layer splits any batch by its metadata: only a promise counts.
        kind = served_kind(True) if self.options.exposed else "general"
        if kind == "prefill":
            return [self.attend_prefill(q_TNH, kv_c_TL, k_pe_T1R, **dependencies)]
        if kind == "decode":
            return [self._attend_decode(q_TNH, q_prepped_TNC, kv_c_TL.size(0), **dependencies)]
        n = self.split_batch(kv_c_TL) if num_decode_tokens is None else num_decode_tokens
        sides = (_split_at(n, x) for x in (q_TNH, kv_c_TL, k_pe_T1R))
        (q_nNH, *_), rest = zip(*sides, strict=True)
        return [
            self._attend_decode(q_nNH, q_prepped_TNC, n, **dependencies),
            self.attend_prefill(*rest, **dependencies),
        ]

    def _attend_decode(
        self, q_TNH: Tensor | None, q_prepped_TNC: Tensor | None, rows: int, **dependencies: Tensor
    ) -> Tensor:
        """Return attention of the first `rows`, from query to value."""
        query_TNC = self._decode_query(q_TNH, q_prepped_TNC, rows)
        latent_TNL = self.attend_decode(query_TNC, **dependencies)
        out_NTV = torch.bmm(latent_TNL.transpose(0, 1), self.w_uv_NVL.transpose(1, 2))
        return out_NTV.transpose(0, 1)

    def _decode_query(
        self, q_TNH: Tensor | None, q_prepped_TNC: Tensor | None, rows: int
    ) -> Tensor:
        if q_prepped_TNC is not None:
            return q_prepped_TNC[:rows]
        assert q_TNH is not None
        if not self.options.exposed:
            return self.prepare_decode_query(q_TNH[:rows])
        # Plain torch, for a compiler to see.
        return mla_decode_q_prep(q_TNH[:rows], self.w_uk_NPL, self.q_scale, self._query_dtype)

    @wrap_if_exposed("mla_split_batch")
    def split_batch(self, kv_c_TL: Tensor) -> int:
        """Return how many of the batch's first rows decode; see the op."""
        metadata = current_context().metadata
        if metadata is None:
            return 0
        check_rows(metadata.num_tokens, kv_c_TL.size(0), self.layer_name)
        return metadata.num_decode_tokens

    @wrap_if_exposed("mla_attention_decode")
    def attend_decode(self, q_TNC: Tensor) -> Tensor:
        """Return the latent that decode rows attend to, `[n, N, L]`; zeros for padding."""
        (rows, heads), dtype = q_TNC.shape[:2], self.kv_b_proj.weight.dtype
        metadata = current_context().metadata
        if metadata is None:
            return q_TNC.new_zeros((rows, heads, self.shape.kv_lora_rank), dtype=dtype)
        check_decode_rows(rows, metadata, self.layer_name)
        requests, used = slice(metadata.num_decodes), metadata.num_decode_tokens
        latent_TNL, _ = pick("mla_decode_attention", q_TNC.device)(
            *(q_TNC[:used], self.kv_cache.typed_BKC),
            *(metadata.block_table[requests], metadata.query_lens[requests]),
            *(metadata.seq_lens[requests], self.softmax_scale, self.shape.kv_lora_rank),
            *(self.q_scale, self.k_scale),
            need_lse=False,
            lengths=metadata.decode_lengths_on(q_TNC.device),
        )
        latent_TNL = latent_TNL.to(dtype).contiguous()
        return latent_TNL if used == rows else pad(latent_TNL, (0, 0, 0, 0, 0, rows - used))

    @wrap_if_exposed("mla_attention_prefill")
    def attend_prefill(
        self, q_TNH: Tensor | None, kv_c_TL: Tensor, k_pe_T1R: Tensor | None
    ) -> Tensor:
        """Return attention of the rows after the split, `[m, N, V]`; zeros for padding."""
        rows = kv_c_TL.size(0)
        out_TNV = kv_c_TL.new_zeros((rows, self.shape.num_heads, self.shape.v_head_dim))
        metadata = current_context().metadata
        if metadata is None:
            return out_TNV
        lengths = metadata.query_lens[metadata.num_decodes :]
        check_query(q_TNH, k_pe_T1R, bool(lengths), self.layer_name)
        check_rows(sum(lengths), rows, self.layer_name)
        start = 0
        for request, length in enumerate(lengths, start=metadata.num_decodes):
            assert q_TNH is not None and k_pe_T1R is not None
            own = slice(start, start + length)
            new = (kv_c_TL[own], k_pe_T1R[own].squeeze(1))
            out_TNV[own] = self._attend_prefill(q_TNH[own], *new, metadata, request)
            start = own.stop
        return out_TNV

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


def _split_at(rows: int, x: Tensor | None) -> Sequence[Tensor | None]:
    """Return the first rows and the rest.

    In one op: a slice up to a size known only when it runs may have to be clamped, and Inductor
    must find out that it need not be.
    """
    return (None, None) if x is None else x.split_with_sizes((rows, x.size(0) - rows))


def split_once(layers: Sequence[Any] | nn.ModuleList, hidden_TD: Tensor) -> dict[str, int]:
    """Return the keyword by which the layers of a model share one split of the batch.

    It is empty where a layer hides its split, or a graph serves a kind of batch that needs none.
    """
    exposed = [x for x in layers if isinstance(x, MLAPaths) and x.options.exposed]
    if not exposed or len(exposed) < len(layers):
        return {}
    if served_kind(True) != "general":
        return {}
    return {"num_decode_tokens": exposed[0].split_batch(hidden_TD)}
