"""The arithmetic that every Triton kernel shares: what `numerics` says, on blocks.

Called from kernels only. Letters: B rows of a block, D its columns (a power of two, the rotary
width padded), H pairs in a row. Values travel in fp32; a value that has been rounded to a narrower
type is held in fp32 without loss.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rounded(x, DTYPE: tl.constexpr):
    """Round fp32 to `DTYPE` and return it as fp32."""
    return x.to(DTYPE).to(tl.float32)


@triton.jit
def inverse_of(scale_ptr):
    """Return 1/scale, read here."""
    return reciprocal(tl.load(scale_ptr))


@triton.jit
def reciprocal(scale):
    """Return 1/scale as IEEE divides; Triton's own `/` is off by up to two units."""
    return tl.div_rn(1.0, scale.to(tl.float32))


@triton.jit
def stored(x, inverse, DTYPE: tl.constexpr, LARGEST: tl.constexpr):
    """Convert fp32 for storage: FP8 as value × inverse, saturated, NaN kept; others: a cast.

    LARGEST is the largest finite value, or 0 where the device's own conversion saturates.
    """
    if DTYPE.is_fp8():
        x = x * inverse
        if LARGEST > 0:
            x = tl.clamp(x, -LARGEST, LARGEST, propagate_nan=tl.PropagateNan.ALL)
    return x.to(DTYPE)


@triton.jit
def pair_columns(D: tl.constexpr, HALF, IS_NEOX: tl.constexpr):
    """Return which column each of D places of a row holds, and whether there is one.

    Neighbours stay in order; halves are each padded to D / 2, so that `rotated` finds the pairs.
    """
    d_D = tl.arange(0, D)
    if IS_NEOX:
        within = d_D % (D // 2)
        return (d_D // (D // 2)) * HALF + within, within < HALF
    return d_D, d_D < 2 * HALF


@triton.jit
def rotated(
    x_BD,
    cos_BH,
    sin_BH,
    B: tl.constexpr,
    D: tl.constexpr,
    IS_NEOX: tl.constexpr,
    IN_FP32: tl.constexpr,
    STAGED: tl.constexpr,
):
    """Rotate every pair of `x` and return fp32, rounded once to `x`'s type if STAGED.

    Columns lie as `pair_columns` says; cos and sin are fp32, one per pair. Without IN_FP32 every
    product and sum rounds to `x`'s type, and so do cos and sin. Compile with
    `enable_fp_fusion=False`: a fused multiply-add would skip a rounding that the reference makes.
    """
    HALF: tl.constexpr = D // 2
    if IS_NEOX:
        pairs = tl.permute(tl.reshape(x_BD, (B, 2, HALF)), (0, 2, 1))
    else:
        pairs = tl.reshape(x_BD, (B, HALF, 2))
    first, second = tl.split(pairs)
    first, second = first.to(tl.float32), second.to(tl.float32)
    DTYPE: tl.constexpr = x_BD.dtype
    if IN_FP32:
        new_first = first * cos_BH - second * sin_BH
        new_second = second * cos_BH + first * sin_BH
    else:
        cos_BH, sin_BH = rounded(cos_BH, DTYPE), rounded(sin_BH, DTYPE)
        new_first = rounded(first * cos_BH, DTYPE) - rounded(second * sin_BH, DTYPE)
        new_second = rounded(second * cos_BH, DTYPE) + rounded(first * sin_BH, DTYPE)
    if STAGED:
        new_first, new_second = rounded(new_first, DTYPE), rounded(new_second, DTYPE)
    joined = tl.join(new_first, new_second)
    if IS_NEOX:
        joined = tl.permute(joined, (0, 2, 1))
    return tl.reshape(joined, (B, D))


@triton.jit
def cos_sin_of(
    table_ptr, positions_ptr, row_B, inside_B, num_rows, stride_m, HALF, H: tl.constexpr
):
    """Load the table row of each token's position, nearest row for one outside the table.

    Returns cos and sin `[B, H]` in fp32; the table holds HALF cosines, then HALF sines.
    """
    sin_ptr = table_ptr + HALF
    return cos_sin_at(
        table_ptr, sin_ptr, positions_ptr, row_B, inside_B, num_rows, stride_m, stride_m, HALF, H
    )


@triton.jit
def cos_sin_at(
    cos_ptr, sin_ptr, positions_ptr, row_B, inside_B, num_rows, cos_stride, sin_stride, HALF,
    H: tl.constexpr,
):  # fmt: skip
    """As `cos_sin_of`, from a table of cosines and one of sines."""
    h_H = tl.arange(0, H)
    position_B = tl.load(positions_ptr + row_B, mask=inside_B, other=0).to(tl.int64)
    position_B = tl.minimum(tl.maximum(position_B, 0), num_rows - 1)
    mask_BH = inside_B[:, None] & (h_H < HALF)[None, :]
    cos_at_BH = cos_ptr + position_B[:, None] * cos_stride + h_H[None, :]
    sin_at_BH = sin_ptr + position_B[:, None] * sin_stride + h_H[None, :]
    cos_BH = tl.load(cos_at_BH, mask=mask_BH, other=0.0).to(tl.float32)
    sin_BH = tl.load(sin_at_BH, mask=mask_BH, other=0.0).to(tl.float32)
    return cos_BH, sin_BH
