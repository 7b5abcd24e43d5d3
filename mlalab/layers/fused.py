"""Layers that call the fused ops themselves, with nothing left for a compiler pass to find.

This is where such fusions are heading upstream. The ops are those that the passes put in, so that
both ways can be set beside each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mlalab.context import served_kind

if TYPE_CHECKING:
    from mlalab.layers.gqa import GQAAttention
    from mlalab.layers.mla import MLAAttention


def fused_mla_update(
    layer: MLAAttention, positions: Tensor, q_TNH: Tensor, kv_c_TL: Tensor, k_pe_TR: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor | None]:
    """Rotate, write the cache and, for uniform decode batches, prepare the query: one op.

    Returns:
        What attention takes: `q` and `k_pe` `[T, 1, R]`, rotated (None where only decode rows
        attend), the dummy dependency, and the prepared query or None. Otherwise `q_TNH` and
        `k_pe_TR` are written in place.
    """
    rope: Any = layer.rotary_emb
    nope = layer.shape.qk_nope_head_dim
    cache_dtype = layer.options.kv_cache_dtype
    if served_kind(torch.compiler.is_compiling()) == "decode":
        q_prepped = torch.ops.mlalab.fused_aiter_qk_rope_kvcache_q_concat_quant_mla(
            *(q_TNH[..., :nope], q_TNH[..., nope:], k_pe_TR, kv_c_TL, positions),
            *(rope.cos_sin_cache, rope.spec.is_neox, cache_dtype, layer.k_scale),
            *(layer.layer_name, rope.in_fp32),
        )
        return None, None, q_prepped, q_prepped
    dummy = torch.ops.mlalab.fused_rope_unified_mla_kv_cache_update(
        *(positions, q_TNH[..., nope:], k_pe_TR, kv_c_TL, rope.cos_sin_cache),
        *(rope.spec.is_neox, cache_dtype, layer.k_scale, layer.layer_name, rope.in_fp32),
    )
    return q_TNH, k_pe_TR.unsqueeze(1), dummy, None


def fused_gqa_update(
    layer: GQAAttention, positions: Tensor, q_TNH: Tensor, k_TGH: Tensor, v_TGH: Tensor
) -> Tensor:
    """Rotate `q_TNH` and `k_TGH` in place and write the cache; returns the dummy dependency."""
    rope: Any = layer.rotary_emb
    return torch.ops.mlalab.fused_rope_and_unified_kv_cache_update(
        *(q_TNH, k_TGH, v_TGH, positions, rope.cos_sin_cache, rope.spec.is_neox),
        *(layer.layer_name, rope.in_fp32),
    )
