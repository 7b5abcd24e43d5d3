"""Key and value cache write in plain torch."""

from __future__ import annotations

from torch import Tensor

from mlalab_kernels.numerics import put_rows


def unified_kv_cache_update(
    key_TGH: Tensor,
    value_TGH: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
) -> None:
    """Write key and value of each token into its cache row, in place.

    Args:
        key_TGH, value_TGH: `[T, G, H]`, any strides; the key already rotated.
        kv_cache: `[2, blocks, block_size, G, H]`, float or FP8, keys first; written.
        slot_mapping: `[S]` int64, S <= T; a slot that is negative or outside is skipped.
        k_scale, v_scale: fp32, one element each, the dequantisation scales.
    """
    key_SGH, value_SGH = kv_cache.flatten(1, 2)
    put_rows(key_SGH, slot_mapping, key_TGH, k_scale)
    put_rows(value_SGH, slot_mapping, value_TGH, v_scale)
