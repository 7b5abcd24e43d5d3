"""Moving rows: what every kernel shares that rotates heads in place or writes cache rows.

B rows at a time; a row is a pointer, its columns lie `stride` apart. Every address is computed in
int64.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mlalab_kernels.triton_math import (
    cos_sin_at,
    inverse_of,
    pair_columns,
    reciprocal,
    rotated,
    stored,
)


def unit_stride(x: Tensor) -> Tensor:
    """Return `x`, or a copy where its last dimension is not contiguous."""
    return x if x.stride(-1) == 1 or x.size(-1) <= 1 else x.contiguous()


def heads_per_program(heads: int, width: int) -> int:
    """Return how many heads make about a thousand elements: 16 bytes of bf16 for each thread."""
    return min(triton.next_power_of_2(max(heads, 1)), max(1, 1024 // triton.next_power_of_2(width)))


@triton.jit
def heads_of(ptr, token, block, heads, stride_t, stride_n, B: tl.constexpr):
    """Return pointers to the rows of B heads of one token, and which of these heads exist."""
    n_B = block * B + tl.arange(0, B)
    return ptr + token.to(tl.int64) * stride_t + n_B.to(tl.int64) * stride_n, n_B < heads


@triton.jit
def columns_of(row_B, column_D, stride):
    """Return pointers to columns of rows."""
    return row_B[:, None] + (column_D.to(tl.int64) * stride)[None, :]


@triton.jit
def slot_of(slots_ptr, token, num_mapped, num_slots):
    """Return the cache row of one token, and whether it is to be written."""
    slot = tl.load(slots_ptr + token, mask=token < num_mapped, other=-1).to(tl.int64)
    return slot, (slot >= 0) & (slot < num_slots)


@triton.jit
def put(x_BD, row_B, column_D, stride, mask_BD, inverse, LARGEST: tl.constexpr):
    """Store fp32 to columns of rows, in the type of these."""
    value_BD = stored(x_BD, inverse, row_B.dtype.element_ty, LARGEST)
    tl.store(columns_of(row_B, column_D, stride), value_BD, mask=mask_BD)


@triton.jit
def copy_columns(
    from_B, to_B, to_stride, inside_B, inverse,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """Read WIDTH columns of contiguous rows and store them, converted, in other rows."""
    column_D = tl.arange(0, BLOCK)
    mask_BD = inside_B[:, None] & (column_D < WIDTH)[None, :]
    x_BD = tl.load(columns_of(from_B, column_D, 1), mask=mask_BD, other=0.0)
    put(x_BD.to(tl.float32), to_B, column_D, to_stride, mask_BD, inverse, LARGEST)


@triton.jit
def rotate_rows(
    row_B, stride, inside_B, token, positions_ptr, cos_ptr, sin_ptr, cos_stride, sin_stride, M,
    HALF: tl.constexpr, D: tl.constexpr, IS_NEOX: tl.constexpr, IN_FP32: tl.constexpr,
    IN_PLACE: tl.constexpr,
):  # fmt: skip
    """Rotate rows of one token, which share its angle; IN_PLACE also writes them back.

    Returns fp32, rounded to the rows' type, its columns as `pair_columns` has them.
    """
    B: tl.constexpr = row_B.shape[0]
    column_D, there_D = pair_columns(D, HALF, IS_NEOX)
    at_BD, mask_BD = columns_of(row_B, column_D, stride), inside_B[:, None] & there_D[None, :]
    x_BD = tl.load(at_BD, mask=mask_BD, other=0.0)
    token_1 = token + tl.zeros((1,), tl.int64)
    cos_1H, sin_1H = cos_sin_at(
        cos_ptr, sin_ptr, positions_ptr, token_1, token_1 >= 0, M, cos_stride, sin_stride,
        HALF, D // 2,
    )  # fmt: skip
    y_BD = rotated(x_BD, cos_1H, sin_1H, B, D, IS_NEOX, IN_FP32, STAGED=True)
    if IN_PLACE:
        # In a small block several threads read one element; all must, before one writes it.
        tl.debug_barrier()
        tl.store(at_BD, y_BD.to(x_BD.dtype), mask=mask_BD)
    return y_BD


@triton.jit
def write_latent(
    token, kv_c_ptr, k_pe_ptr, k_pe_stride, cache_ptr, cache_stride, cache_stride_c, slots_ptr,
    num_mapped, num_slots, scale_ptr, positions_ptr, cos_ptr, sin_ptr, cos_stride, sin_stride, M,
    LATENT_AT: tl.constexpr, ROPE_AT: tl.constexpr, L: tl.constexpr, BLOCK_L: tl.constexpr,
    HALF: tl.constexpr, D: tl.constexpr, IS_NEOX: tl.constexpr, IN_FP32: tl.constexpr,
    IN_PLACE: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """Write the latent and the rotated key of one token into its cache row.

    Pointers to kv_c and k_pe are at this token. Everything is read before anything is used, so that
    the reads wait for each other once.
    """
    slot, inside = slot_of(slots_ptr, token, num_mapped, num_slots)
    l_L = tl.arange(0, BLOCK_L)
    kv_c_1L = tl.load(kv_c_ptr + l_L[None, :], mask=(l_L < L)[None, :], other=0.0)
    scale = tl.load(scale_ptr)
    zero_1 = tl.zeros((1,), tl.int64)
    k_rot_1D = rotate_rows(
        k_pe_ptr + zero_1, k_pe_stride, zero_1 == 0, token, positions_ptr, cos_ptr, sin_ptr,
        cos_stride, sin_stride, M, HALF, D, IS_NEOX, IN_FP32, IN_PLACE,
    )  # fmt: skip
    inverse = reciprocal(scale)
    to_1 = cache_ptr + slot * cache_stride + zero_1
    mask_1L = inside & (l_L < L)[None, :]
    at = LATENT_AT + l_L
    put(kv_c_1L.to(tl.float32), to_1, at, cache_stride_c, mask_1L, inverse, LARGEST)
    d_D, there_D = pair_columns(D, HALF, IS_NEOX)
    mask_1D = inside & there_D[None, :]
    put(k_rot_1D, to_1, ROPE_AT + d_D, cache_stride_c, mask_1D, inverse, LARGEST)


@triton.jit
def paged_heads(
    cache_ptr, slots_ptr, token, block, heads, num_mapped, num_slots, block_size,
    stride_block, stride_slot, stride_n, B: tl.constexpr,
):  # fmt: skip
    """Return pointers to B heads of one token in a cache of blocks, and which are to be written."""
    slot, mapped = slot_of(slots_ptr, token, num_mapped, num_slots)
    page_ptr = cache_ptr + slot // block_size * stride_block
    row_B, inside_B = heads_of(page_ptr, slot % block_size, block, heads, stride_slot, stride_n, B)
    return row_B, mapped & inside_B


@triton.jit
def write_heads(
    x_ptr, cache_ptr, scale_ptr, slots_ptr, token, block, heads, num_mapped, num_slots, block_size,
    x_stride_t, x_stride_n, stride_block, stride_slot, stride_n, stride_d,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, B: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """Write B heads of one token into its row of a cache of blocks."""
    from_B, _ = heads_of(x_ptr, token, block, heads, x_stride_t, x_stride_n, B)
    to_B, inside_B = paged_heads(
        cache_ptr, slots_ptr, token, block, heads, num_mapped, num_slots, block_size,
        stride_block, stride_slot, stride_n, B,
    )  # fmt: skip
    inverse = inverse_of(scale_ptr)
    copy_columns(from_B, to_B, stride_d, inside_B, inverse, WIDTH, BLOCK, LARGEST)
