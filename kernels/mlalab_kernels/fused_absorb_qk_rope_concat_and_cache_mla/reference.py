"""The whole decode preparation of query and cache in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from mlalab_kernels.fused_qk_rope_concat_and_cache_mla.reference import check_dtypes
from mlalab_kernels.numerics import absorb, gather_cos_sin, quantize, rotate, write_rows


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
    cos_sin_cache_MR: Tensor | None,
    is_neox: bool,
    rope_in_fp32: bool = True,
    q_pe_out: Tensor | None = None,
    k_pe_out: Tensor | None = None,
    staged: bool = True,
) -> None:
    """Write `[q_nope · W_UK | rope(q_pe)]` to `q_out` and `[kv_c | rope(k_pe)]` to the cache.

    Bit-identical to RoPE with the cache write, followed by the query's preparation. Every row of
    `q_out` is written; without a slot mapping (a profile run) the cache is not.

    Args:
        q_nope_TNP, q_pe_TNR: the query before RoPE, any strides; not written.
        w_uk_NPL: `[N, P, L]`.
        kv_c_TL: `[T, L]` normalised latent; k_pe_TR: `[T, R]` or `[T, 1, R]`, not
            written.
        kv_cache_SC: `[slots, L + R]`, float or FP8; written.
        q_out_TNC: `[T, N, L + R]`; written.
        slot_mapping: `[S]` int64, S <= T; a negative slot is skipped.
        k_scale, q_scale: fp32, one element, dequantisation scales.
        positions_T: `[T]` int64.
        cos_sin_cache_MR: `[M, R]`, cos half then sin half; None rotates nothing (a NoPE model).
        rope_in_fp32: see `mlalab_kernels.numerics.rotate`.
        q_pe_out: `[T, N, R]`; written with the rotated query part.
        k_pe_out: `[T, R]`; written with the rotated key.
        staged: round the product and the rotations to the activation dtype before they are
            quantised; otherwise fp32 goes straight to the stored dtype.

    Raises:
        RuntimeError: a cache of raw bytes, or an FP8 query over a cache that is not FP8.
    """
    stored = q_out_TNC.dtype if kv_cache_SC is None else kv_cache_SC.dtype
    check_dtypes(stored, q_out_TNC.dtype)
    inputs = (q_nope_TNP, w_uk_NPL, q_pe_TNR, k_pe_TR.reshape(-1, 1, k_pe_TR.size(-1)))
    q_nope, w_uk, q_pe, k_pe = inputs if staged else (x.float() for x in inputs)
    if cos_sin_cache_MR is not None:
        angles = gather_cos_sin(cos_sin_cache_MR, positions_T)
        q_pe, k_pe = (rotate(x, *angles, is_neox, rope_in_fp32 or not staged) for x in (q_pe, k_pe))
    q_TNC = torch.cat((absorb(q_nope, w_uk), q_pe), dim=-1)
    q_out_TNC.copy_(quantize(q_TNC, q_scale, q_out_TNC.dtype))
    if kv_cache_SC is not None and slot_mapping is not None:
        write_rows(kv_cache_SC, slot_mapping, kv_c_TL, k_pe.squeeze(1), k_scale)
    for x, out in ((q_pe, q_pe_out), (k_pe, k_pe_out)):
        if out is not None:
            out.copy_(x.view(out.shape))
