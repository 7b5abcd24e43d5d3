"""The whole decode preparation of query and cache in plain torch."""

from __future__ import annotations

from torch import Tensor

from mlalab_kernels.fused_qk_rope_concat_and_cache_mla.reference import (
    fused_qk_rope_concat_and_cache_mla,
)
from mlalab_kernels.numerics import absorb, gather_cos_sin, rotate


def fused_absorb_qk_rope_concat_and_cache_mla(
    q_nope_TNP: Tensor,
    q_pe_TNR: Tensor,
    w_uk_NPL: Tensor,
    kv_c_TL: Tensor,
    k_pe_TR: Tensor,
    kv_cache_SC: Tensor | None,
    q_out_TNC: Tensor,
    slot_mapping: Tensor | None,
    k_scale: Tensor,
    q_scale: Tensor,
    positions_T: Tensor,
    cos_sin_cache_MR: Tensor,
    is_neox: bool,
    rope_in_fp32: bool = True,
    q_pe_out: Tensor | None = None,
    k_pe_out: Tensor | None = None,
) -> None:
    """Write `[q_nope · W_UK | rope(q_pe)]` to `q_out` and `[kv_c | rope(k_pe)]` to the cache.

    Bit-identical to RoPE with the cache write, followed by the query's preparation. Every row of
    `q_out` is written; without a slot mapping (a profile run) the cache is not.

    Args:
        q_nope_TNP, q_pe_TNR: the query before RoPE, any strides; not written.
        w_uk_NPL: `[N, P, L]`.
        kv_c_TL: `[T, L]` normalised latent; k_pe_TR: `[T, R]`, not written.
        kv_cache_SC: `[slots, L + R]`, float or FP8; written.
        q_out_TNC: `[T, N, L + R]`; written.
        slot_mapping: `[S]` int64, S <= T; a negative slot is skipped.
        k_scale, q_scale: fp32, one element, dequantisation scales.
        positions_T: `[T]` int64.
        cos_sin_cache_MR: `[M, R]`, cos half then sin half.
        rope_in_fp32: see `mlalab_kernels.numerics.rotate`.
        q_pe_out: `[T, N, R]`; written with the rotated query part.
        k_pe_out: `[T, R]`; written with the rotated key.

    Raises:
        RuntimeError: a cache of raw bytes, or an FP8 query over a cache that is not FP8.
    """
    cache, slots = kv_cache_SC, slot_mapping
    if cache is None or slots is None:
        cache, slots = q_out_TNC.new_empty(0, q_out_TNC.size(-1)), positions_T.new_empty(0)
    cos_cache, sin_cache = cos_sin_cache_MR.chunk(2, dim=-1)
    fused_qk_rope_concat_and_cache_mla(
        *(absorb(q_nope_TNP, w_uk_NPL), q_pe_TNR, kv_c_TL, k_pe_TR, cache, q_out_TNC, slots),
        *(k_scale, q_scale, positions_T, cos_cache, sin_cache),
        is_neox,
        is_nope_first=True,
        rope_in_fp32=rope_in_fp32,
    )
    cos_TH, sin_TH = gather_cos_sin(cos_sin_cache_MR, positions_T)
    for x, out in ((q_pe_TNR, q_pe_out), (k_pe_TR.unsqueeze(1), k_pe_out)):
        if out is not None:
            out.copy_(rotate(x, cos_TH, sin_TH, is_neox, rope_in_fp32).view(out.shape))
