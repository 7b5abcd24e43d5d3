"""The arithmetic that every reference shares: rotation, FP8 quantisation, cache rows.

Letters are those of `mlalab.shapes`. The rules: rotation in fp32 with one rounding (or, as a named
variant, in the activation dtype with a rounding after each operation); stored = value × (1/scale);
saturate to the largest finite FP8 value; NaN stays NaN; a negative slot is never written.
"""

from __future__ import annotations

import torch
from torch import Tensor

FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e4m3fnuz)


def rotate(x_TNR: Tensor, cos_TH: Tensor, sin_TH: Tensor, is_neox: bool, in_fp32: bool) -> Tensor:
    """Rotate each pair of `x_TNR` by its angle; returns a new tensor of the same shape and dtype.

    Args:
        x_TNR: `[T, N, R]`, any float dtype, any strides.
        cos_TH, sin_TH: `[T, R/2]`, one angle per pair.
        is_neox: pair (i, i + R/2); otherwise neighbours (2i, 2i+1).
        in_fp32: compute in fp32 and round once; otherwise every product and sum rounds to `x`'s
            dtype, as vLLM's native form does.
    """
    compute_dtype = torch.float32 if in_fp32 else x_TNR.dtype
    cos = cos_TH.unsqueeze(-2).to(compute_dtype)
    sin = sin_TH.unsqueeze(-2).to(compute_dtype)
    x = x_TNR.to(compute_dtype)
    first, second = x.chunk(2, dim=-1) if is_neox else (x[..., ::2], x[..., 1::2])
    rotated = (first * cos - second * sin, second * cos + first * sin)
    joined = torch.cat(rotated, dim=-1) if is_neox else torch.stack(rotated, dim=-1).flatten(-2)
    return joined.to(x_TNR.dtype)


def gather_cos_sin(cos_sin_cache_MR: Tensor, positions_T: Tensor) -> tuple[Tensor, Tensor]:
    """Read one table row per token; positions outside the table read its nearest row.

    Padded rows may carry stale positions, so an unchecked kernel has to clamp.
    """
    rows = positions_T.clamp(0, cos_sin_cache_MR.size(0) - 1)
    cos_TH, sin_TH = cos_sin_cache_MR[rows].chunk(2, dim=-1)
    return cos_TH, sin_TH


def absorb(q_nope_TNP: Tensor, w_uk_NPL: Tensor) -> Tensor:
    """Return `q_nope · W_UK` per head, `[T, N, L]`, rounded to the activation dtype."""
    return torch.bmm(q_nope_TNP.transpose(0, 1), w_uk_NPL).transpose(0, 1)


def quantize(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert to an FP8 `dtype` as value × (1/scale), saturating, NaN kept; other dtypes: a cast.

    The explicit clamp matters: torch before 2.12 turns an overflowing conversion into NaN.
    """
    if dtype not in FP8_DTYPES:
        return x.to(dtype)
    largest = torch.finfo(dtype).max
    scaled = x.to(torch.float32) * scale.to(torch.float32).reciprocal()
    return scaled.clamp(-largest, largest).to(dtype)


def dequantize(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Inverse of `quantize`, up to rounding: value × scale in fp32, then `dtype`."""
    if x.dtype not in FP8_DTYPES:
        return x.to(dtype)
    return (x.to(torch.float32) * scale.to(torch.float32)).to(dtype)


def write_rows(
    kv_cache_SC: Tensor, slot_mapping: Tensor, kv_c_TL: Tensor, k_pe_TR: Tensor, scale: Tensor
) -> None:
    """Write `[kv_c | k_pe]` into the cache rows named by `slot_mapping`, in place.

    Args:
        kv_cache_SC: `[slots, L + R]`, a float or FP8 dtype (never `uint8`); written in place.
        slot_mapping: `[S]` int64 with S <= T; only the first S tokens are written. A slot that is
            negative or outside the cache is skipped.
    """
    count = slot_mapping.size(0)
    row_TC = torch.cat((kv_c_TL[:count], k_pe_TR[:count]), dim=-1)
    put_rows(kv_cache_SC, slot_mapping, row_TC, scale)


def put_rows(cache: Tensor, slot_mapping: Tensor, rows: Tensor, scale: Tensor) -> None:
    """Quantise the first S of `rows` into the cache rows named by `slot_mapping`, in place.

    Args:
        cache: `[slots, ...]`, a float or FP8 dtype, any strides; written.
        slot_mapping: `[S]` int64; a slot that is negative or outside the cache is skipped.
        rows: `[T, ...]`, T >= S.
    """
    inside = (slot_mapping >= 0) & (slot_mapping < cache.size(0))
    values = quantize(rows[: slot_mapping.size(0)][inside], scale, cache.dtype)
    # index_put has no FP8 kernel; bytes carry the same bits.
    if cache.dtype in FP8_DTYPES:
        cache, values = cache.view(torch.uint8), values.view(torch.uint8)
    cache[slot_mapping[inside]] = values
