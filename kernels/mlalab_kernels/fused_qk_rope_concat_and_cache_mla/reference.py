"""RoPE + latent cache write + concatenation and quantisation of the query, as AITER calls it."""

from __future__ import annotations

import torch
from torch import Tensor

from mlalab_kernels.numerics import FP8_DTYPES, quantize, rotate, write_rows


def fused_qk_rope_concat_and_cache_mla(
    q_nope: Tensor,
    q_pe: Tensor,
    kv_c: Tensor,
    k_pe: Tensor,
    kv_cache: Tensor,
    q_out: Tensor,
    slot_mapping: Tensor,
    k_scale: Tensor,
    q_scale: Tensor,
    positions: Tensor,
    cos_cache: Tensor,
    sin_cache: Tensor,
    is_neox: bool,
    is_nope_first: bool,
    rope_in_fp32: bool = True,
) -> None:
    """Write `[q_nope | rope(q_pe)]` to `q_out` and `[kv_c | rope(k_pe)]` to the cache.

    AITER's names and order, and ours at the end. `q_pe` and `k_pe` are left as they are. Every row
    of `q_out` is written, whatever its slot; AITER leaves rows of a negative slot unwritten unless
    told otherwise. Staged rounding: rotations round to the activation dtype before they are
    quantised.

    Args:
        q_nope: `[T, N, L]`, absorbed; q_pe: `[T, N, R]`; kv_c: `[T, L]`; k_pe: `[T, R]` or
            `[T, 1, R]`.
        kv_cache: `[..., L + R]`, contiguous, float or FP8; written.
        q_out: `[T, N, L + R]`; written.
        slot_mapping: `[S]` int64, S <= T; a negative slot is skipped.
        k_scale, q_scale: fp32, one element, dequantisation scales.
        positions: `[T]` int64; outside the table they read its nearest row.
        cos_cache, sin_cache: `[M, R/2]`.
        is_nope_first: False puts the rotated part first, in query and cache alike.
        rope_in_fp32: see `mlalab_kernels.numerics.rotate`.

    Raises:
        RuntimeError: a cache of raw bytes, or an FP8 query over a cache that is not FP8.
    """
    check_dtypes(kv_cache.dtype, q_out.dtype)
    rows = positions.clamp(0, cos_cache.size(0) - 1)
    cos_TH, sin_TH = cos_cache[rows], sin_cache[rows]
    query = (q_nope, rotate(q_pe, cos_TH, sin_TH, is_neox, rope_in_fp32))
    k_rot = rotate(k_pe.flatten(1).unsqueeze(1), cos_TH, sin_TH, is_neox, rope_in_fp32).squeeze(1)
    key = (kv_c, k_rot)
    if not is_nope_first:
        query, key = query[::-1], key[::-1]
    q_out.copy_(quantize(torch.cat(query, dim=-1), q_scale, q_out.dtype))
    write_rows(kv_cache.view(-1, kv_cache.size(-1)), slot_mapping, *key, k_scale)


def check_dtypes(cache: torch.dtype, query: torch.dtype) -> None:
    """Raise RuntimeError for a cache of raw bytes, and for an FP8 query over another cache."""
    if cache == torch.uint8:
        raise RuntimeError(
            "[AITER] kv cache data type is not supported: uint8; view the cache as the device's "
            "FP8 type before the call."
        )
    if query in FP8_DTYPES and cache not in FP8_DTYPES:
        raise RuntimeError(
            f"[AITER] an FP8 query needs an FP8 kv cache, got {cache}; make q_out of the cache's "
            f"dtype."
        )
