"""RoPE + cache write in plain torch: bit-identical to doing the two one after the other."""

from __future__ import annotations

from torch import Tensor

from mlalab_kernels.numerics import gather_cos_sin, rotate
from mlalab_kernels.unified_kv_cache_update.reference import unified_kv_cache_update


def fused_rope_and_unified_kv_cache_update(
    query_TNH: Tensor,
    key_TGH: Tensor,
    value_TGH: Tensor,
    positions_T: Tensor,
    cos_sin_cache_MR: Tensor,
    is_neox: bool,
    kv_cache: Tensor | None,
    slot_mapping: Tensor | None,
    k_scale: Tensor,
    v_scale: Tensor,
    rope_in_fp32: bool = True,
) -> None:
    """Rotate `query` and `key` in place and write rotated keys and values into the cache.

    Every row of `query` and `key` is rotated, whatever its slot; without a slot mapping (a profile
    run) nothing is written to the cache.

    Args:
        query_TNH: `[T, N, H]`, any strides; written.
        key_TGH: `[T, G, H]`, any strides; written.
        value_TGH: `[T, G, H]`, any strides.
        positions_T: `[T]` int64.
        cos_sin_cache_MR: `[M, R]` with R = H, cos half then sin half.
        kv_cache, slot_mapping, k_scale, v_scale: see `unified_kv_cache_update`.
        rope_in_fp32: see `mlalab_kernels.numerics.rotate`.
    """
    cos, sin = gather_cos_sin(cos_sin_cache_MR, positions_T)
    query_TNH.copy_(rotate(query_TNH, cos, sin, is_neox, rope_in_fp32))
    key_TGH.copy_(rotate(key_TGH, cos, sin, is_neox, rope_in_fp32))
    if slot_mapping is not None and kv_cache is not None:
        unified_kv_cache_update(key_TGH, value_TGH, kv_cache, slot_mapping, k_scale, v_scale)
