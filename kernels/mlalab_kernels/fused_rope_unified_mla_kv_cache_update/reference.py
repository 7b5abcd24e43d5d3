"""RoPE + latent cache write in plain torch: bit-identical to doing the two one after the other."""

from __future__ import annotations

from torch import Tensor

from mlalab_kernels.numerics import gather_cos_sin, rotate, write_rows


def fused_rope_unified_mla_kv_cache_update(
    positions_T: Tensor,
    q_pe_TNR: Tensor,
    k_pe_TR: Tensor,
    kv_c_TL: Tensor,
    cos_sin_cache_MR: Tensor,
    is_neox: bool,
    kv_cache_SC: Tensor | None,
    slot_mapping: Tensor | None,
    k_scale: Tensor,
    rope_in_fp32: bool = True,
) -> None:
    """Rotate `q_pe` and `k_pe` in place and write `[kv_c | rotated k_pe]` into the cache.

    Every row of `q_pe` and `k_pe` is rotated, whatever its slot; without a slot mapping (a profile
    run) nothing is written to the cache.

    Args:
        positions_T: `[T]` int64.
        q_pe_TNR: `[T, N, R]`, any strides; written.
        k_pe_TR: `[T, R]` or `[T, 1, R]`, any strides; written.
        kv_c_TL: `[T, L]` normalised latent.
        cos_sin_cache_MR: `[M, R]`, cos half then sin half.
        kv_cache_SC: `[slots, L + R]`, float or FP8; written.
        slot_mapping: `[S]` int64, S <= T; a negative slot is skipped.
        k_scale: fp32, one element, the dequantisation scale.
        rope_in_fp32: see `mlalab_kernels.numerics.rotate`.
    """
    cos_TH, sin_TH = gather_cos_sin(cos_sin_cache_MR, positions_T)
    q_pe_TNR.copy_(rotate(q_pe_TNR, cos_TH, sin_TH, is_neox, rope_in_fp32))
    k_pe_TR = k_pe_TR.flatten(1)
    k_pe_T1R = k_pe_TR.unsqueeze(1)
    k_pe_T1R.copy_(rotate(k_pe_T1R, cos_TH, sin_TH, is_neox, rope_in_fp32))
    if slot_mapping is not None and kv_cache_SC is not None:
        write_rows(kv_cache_SC, slot_mapping, kv_c_TL, k_pe_TR, k_scale)
