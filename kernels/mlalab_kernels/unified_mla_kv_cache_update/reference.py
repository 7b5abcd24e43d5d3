"""Latent cache write in plain torch."""

from __future__ import annotations

from torch import Tensor

from mlalab_kernels.numerics import write_rows


def unified_mla_kv_cache_update(
    kv_c_TL: Tensor, k_pe: Tensor, kv_cache_SC: Tensor, slot_mapping: Tensor, k_scale: Tensor
) -> None:
    """Write `[kv_c | k_pe]` of each token into its cache row, in place.

    Args:
        kv_c_TL: `[T, L]` normalised latent.
        k_pe: `[T, R]` or `[T, 1, R]`, already rotated.
        kv_cache_SC: `[slots, L + R]`, float or FP8; written.
        slot_mapping: `[S]` int64, S <= T; a negative slot is skipped.
        k_scale: fp32, one element, the dequantisation scale.
    """
    write_rows(kv_cache_SC, slot_mapping, kv_c_TL, k_pe.flatten(1), k_scale)
