"""The three kinds of program that the one launch is made of; see `triton_kernel`."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait

from mlalab_kernels.triton_math import (
    cos_sin_of,
    inverse_of,
    pair_columns,
    rotated,
    rounded,
    stored,
)


@triton.jit
def follow(OVERLAP: tl.constexpr):
    """Wait until the kernel before this one is done and all that it wrote can be read."""
    if OVERLAP:
        gdc_wait()


@triton.jit
def absorb_described(
    head, l_first, first, last,
    q_desc, w_desc, out_desc, scale_ptr,
    P: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_L: tl.constexpr,
    STAGES: tl.constexpr, STAGED: tl.constexpr, LARGEST: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Multiply token tiles `first` to `last` of one head by one tile of its W_UK.

    Tiles travel by tensor descriptors: the copy engine moves them past the registers.
    """
    # W_UK is a weight: it may be fetched while the kernel before this one still runs.
    w_PL = tl.reshape(w_desc.load([head, 0, l_first]), (P, BLOCK_L))
    follow(OVERLAP)
    inverse = inverse_of(scale_ptr)
    for tile in tl.range(first, last, num_stages=STAGES):
        q_TP = tl.reshape(q_desc.load([tile * BLOCK_T, head, 0]), (BLOCK_T, P))
        product_TL = tl.dot(q_TP, w_PL)
        if STAGED:
            product_TL = rounded(product_TL, q_desc.dtype)
        out_TL = stored(product_TL, inverse, out_desc.dtype, LARGEST)
        out_desc.store([tile * BLOCK_T, head, l_first], tl.reshape(out_TL, (BLOCK_T, 1, BLOCK_L)))


@triton.jit
def absorb_pointed(
    head, l_first, first, last,
    q_ptr, w_ptr, out_ptr, scale_ptr,
    T, q_stride_t, q_stride_n, w_stride_n, w_stride_p, out_stride_t, out_stride_n,
    P: tl.constexpr, L: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_L: tl.constexpr,
    STAGES: tl.constexpr, STAGED: tl.constexpr, LARGEST: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Do the same with pointers, for any strides.

    The latent is the product's long side, so that few tokens fill the matrix units.
    """
    head = head.to(tl.int64)
    p_P, l_L = tl.arange(0, BLOCK_P), l_first + tl.arange(0, BLOCK_L)
    w_at_LP = w_ptr + head * w_stride_n + p_P[None, :] * w_stride_p + l_L[:, None]
    if BLOCK_P == P and L % BLOCK_L == 0:
        w_LP = tl.load(w_at_LP)
    else:
        w_LP = tl.load(w_at_LP, mask=(p_P < P)[None, :] & (l_L < L)[:, None], other=0.0)
    follow(OVERLAP)
    inverse = inverse_of(scale_ptr)
    for tile in tl.range(first, last, num_stages=STAGES):
        t_T = tile * BLOCK_T + tl.arange(0, BLOCK_T)
        row_T = t_T.to(tl.int64)
        q_at_PT = q_ptr + row_T[None, :] * q_stride_t + head * q_stride_n + p_P[:, None]
        q_PT = tl.load(q_at_PT, mask=(p_P < P)[:, None] & (t_T < T)[None, :], other=0.0)
        product_LT = tl.dot(w_LP, q_PT, input_precision="ieee")
        if STAGED:
            product_LT = rounded(product_LT, q_ptr.dtype.element_ty)
        out_TL = tl.trans(stored(product_LT, inverse, out_ptr.dtype.element_ty, LARGEST))
        out_at_TL = out_ptr + row_T[:, None] * out_stride_t + head * out_stride_n + l_L[None, :]
        tl.store(out_at_TL, out_TL, mask=(t_T < T)[:, None] & (l_L < L)[None, :])


@triton.jit
def rotate_queries(
    program,
    q_ptr, out_ptr, rotated_ptr, scale_ptr, positions_ptr, table_ptr,
    T, N, M, q_stride_t, q_stride_n, out_stride_t, out_stride_n, table_stride,
    HALF: tl.constexpr, D: tl.constexpr, TOKENS: tl.constexpr, HEADS: tl.constexpr,
    IS_NEOX: tl.constexpr, IN_FP32: tl.constexpr, STAGED: tl.constexpr, LARGEST: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """Rotate q_pe of TOKENS × HEADS rows into the end of `out`, and into `rotated` if given.

    All heads of a token turn by one angle, so its cosines and sines are read once.
    """
    follow(OVERLAP)
    inverse = inverse_of(scale_ptr)
    groups = tl.cdiv(N, HEADS)
    B: tl.constexpr = TOKENS * HEADS
    first_t, first_n = (program // groups) * TOKENS, (program % groups) * HEADS
    r_B = tl.arange(0, B)
    t_B = (first_t + r_B // HEADS).to(tl.int64)
    n_B = (first_n + r_B % HEADS).to(tl.int64)
    d_D, inside_D = pair_columns(D, HALF, IS_NEOX)
    mask_BD = ((t_B < T) & (n_B < N))[:, None] & inside_D[None, :]
    x_BD = tl.load(
        q_ptr + (t_B * q_stride_t + n_B * q_stride_n)[:, None] + d_D[None, :],
        mask=mask_BD, other=0.0,
    )  # fmt: skip
    if table_ptr is not None:
        t_T = first_t + tl.arange(0, TOKENS)
        H: tl.constexpr = D // 2
        cos_TH, sin_TH = cos_sin_of(
            table_ptr, positions_ptr, t_T, t_T < T, M, table_stride, HALF, H
        )
        cos_BH = tl.reshape(tl.broadcast_to(cos_TH[:, None, :], (TOKENS, HEADS, H)), (B, H))
        sin_BH = tl.reshape(tl.broadcast_to(sin_TH[:, None, :], (TOKENS, HEADS, H)), (B, H))
        y_BD = rotated(x_BD, cos_BH, sin_BH, B, D, IS_NEOX, IN_FP32, STAGED)
    else:
        y_BD = x_BD.to(tl.float32)
    out_at_BD = out_ptr + (t_B * out_stride_t + n_B * out_stride_n)[:, None] + d_D[None, :]
    tl.store(out_at_BD, stored(y_BD, inverse, out_ptr.dtype.element_ty, LARGEST), mask=mask_BD)
    if rotated_ptr is not None:
        at_BD = rotated_ptr + ((t_B * N + n_B) * 2 * HALF)[:, None] + d_D[None, :]
        tl.store(at_BD, y_BD.to(rotated_ptr.dtype.element_ty), mask=mask_BD)


@triton.jit
def write_cache(
    program,
    kv_c_ptr, k_pe_ptr, cache_ptr, rotated_ptr, slots_ptr, scale_ptr, positions_ptr, table_ptr,
    T, M, num_mapped, num_slots, kv_c_stride, k_pe_stride, cache_stride, table_stride,
    L: tl.constexpr, HALF: tl.constexpr, D: tl.constexpr, BLOCK_L: tl.constexpr,
    ROWS: tl.constexpr, IS_NEOX: tl.constexpr, IN_FP32: tl.constexpr, STAGED: tl.constexpr,
    LARGEST: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Write ROWS rows `[kv_c | rope(k_pe)]` to their slots; rope(k_pe) to `rotated` if given."""
    follow(OVERLAP)
    inverse = inverse_of(scale_ptr)
    t_B = program * ROWS + tl.arange(0, ROWS)
    slot_B = tl.load(slots_ptr + t_B, mask=t_B < num_mapped, other=-1).to(tl.int64)
    mapped_B = (slot_B >= 0) & (slot_B < num_slots)
    row_B, l_L = t_B.to(tl.int64), tl.arange(0, BLOCK_L)
    mask_BL = mapped_B[:, None] & (l_L < L)[None, :]
    kv_c_BL = tl.load(kv_c_ptr + row_B[:, None] * kv_c_stride + l_L[None, :], mask=mask_BL)
    dtype: tl.constexpr = cache_ptr.dtype.element_ty
    to_B = cache_ptr + slot_B * cache_stride
    value_BL = stored(kv_c_BL.to(tl.float32), inverse, dtype, LARGEST)
    tl.store(to_B[:, None] + l_L[None, :], value_BL, mask=mask_BL)
    d_D, inside_D = pair_columns(D, HALF, IS_NEOX)
    mask_BD = (t_B < T)[:, None] & inside_D[None, :]
    x_BD = tl.load(k_pe_ptr + row_B[:, None] * k_pe_stride + d_D[None, :], mask=mask_BD, other=0.0)
    if table_ptr is not None:
        cos_BH, sin_BH = cos_sin_of(
            table_ptr, positions_ptr, t_B, t_B < T, M, table_stride, HALF, D // 2
        )
        y_BD = rotated(x_BD, cos_BH, sin_BH, ROWS, D, IS_NEOX, IN_FP32, STAGED)
    else:
        y_BD = x_BD.to(tl.float32)
    value_BD = stored(y_BD, inverse, dtype, LARGEST)
    tl.store(to_B[:, None] + L + d_D[None, :], value_BD, mask=mapped_B[:, None] & inside_D[None, :])
    if rotated_ptr is not None:
        at_BD = rotated_ptr + row_B[:, None] * (2 * HALF) + d_D[None, :]
        tl.store(at_BD, y_BD.to(rotated_ptr.dtype.element_ty), mask=mask_BD)
