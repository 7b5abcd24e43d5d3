"""What one program of the paged decode attention does; see `triton_kernel`.

Letters beyond `mlalab.shapes`: H query rows of a program (token by token, each with all its heads),
S cache rows of a tile, W splits of a sequence.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_columns(ptr, row_B, there_B, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Load WIDTH columns of the rows that begin at `ptr + row`, padded to BLOCK with zeros."""
    column_D = tl.arange(0, BLOCK)
    mask_BD = there_B[:, None]
    if BLOCK != WIDTH:
        mask_BD = mask_BD & (column_D < WIDTH)[None, :]
    return tl.load(ptr + row_B[:, None] + column_D[None, :], mask=mask_BD, other=0.0)


@triton.jit
def cache_rows(
    s_first, length, blocks_ptr, stride_b, stride_k, BLOCK_SIZE: tl.constexpr, BLOCK_S: tl.constexpr
):
    """Return where in the cache a tile's tokens begin, for the request that owns `blocks`."""
    s_S = s_first + tl.arange(0, BLOCK_S)
    within_S = (s_S % BLOCK_SIZE).to(tl.int64) * stride_k
    if BLOCK_SIZE % BLOCK_S == 0:
        # The tile lies in one block, so one look-up serves all.
        block = tl.load(blocks_ptr + s_first // BLOCK_SIZE, mask=s_first < length, other=0)
        return block.to(tl.int64) * stride_b + within_S
    block_S = tl.load(blocks_ptr + s_S // BLOCK_SIZE, mask=s_S < length, other=0)
    return block_S.to(tl.int64) * stride_b + within_S


@triton.jit
def load_tile(
    s_first, length, row_S, cache_ptr,
    L: tl.constexpr, R: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Load a tile's latent and rope columns; rows from `length` on are zeros and are not read.

    A weight of zero would not undo a NaN that an unused row may hold.
    """
    there_S = s_first + tl.arange(0, row_S.shape[0]) < length
    k_SL = load_columns(cache_ptr, row_S, there_S, L, BLOCK_L)
    return k_SL, load_columns(cache_ptr + L, row_S, there_S, R, BLOCK_R)


@triton.jit
def attend_tile(
    s_first, reach_H, k_SL, k_SR, q_HL, q_HR, acc_HL, max_H, sum_H, factor, PRECISION: tl.constexpr
):
    """Take one tile of the cache into the running softmax; it serves both products.

    `max` and `sum` are those of scores × log2(e).
    """
    s_S = s_first + tl.arange(0, k_SL.shape[0])
    scores_HS = tl.dot(q_HL, tl.trans(k_SL), input_precision=PRECISION)
    scores_HS = tl.dot(q_HR, tl.trans(k_SR), scores_HS, input_precision=PRECISION) * factor
    scores_HS = tl.where(s_S[None, :] <= reach_H[:, None], scores_HS, float("-inf"))
    new_max_H = tl.maximum(max_H, tl.max(scores_HS, 1))
    # A row that has seen nothing yet keeps its maximum of -inf, and -inf - -inf is no number.
    shift_H = tl.where(new_max_H == float("-inf"), 0.0, new_max_H)
    p_HS = tl.exp2(scores_HS - shift_H[:, None])
    fade_H = tl.exp2(max_H - shift_H)
    sum_H = sum_H * fade_H + tl.sum(p_HS, 1)
    acc_HL = acc_HL * fade_H[:, None]
    acc_HL = tl.dot(p_HS.to(k_SL.dtype), k_SL, acc_HL, input_precision=PRECISION)
    return acc_HL, new_max_H, sum_H


@triton.jit
def attend_span(
    first, last, reach_H, q_HL, q_HR, acc_HL, max_H, sum_H, factor,
    blocks_ptr, cache_ptr, stride_b, stride_k,
    L: tl.constexpr, R: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_S: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take the tiles from `first` to before `last` into the running softmax."""
    BLOCK_L: tl.constexpr = q_HL.shape[1]
    BLOCK_R: tl.constexpr = q_HR.shape[1]
    DOT: tl.constexpr = q_HL.dtype
    if STAGES > 1:
        # The compiler keeps tiles on their way to shared memory.
        for s in tl.range(first, last, BLOCK_S, num_stages=STAGES):
            row_S = cache_rows(s, last, blocks_ptr, stride_b, stride_k, BLOCK_SIZE, BLOCK_S)
            k_SL, k_SR = load_tile(s, last, row_S, cache_ptr, L, R, BLOCK_L, BLOCK_R)
            k_SL, k_SR = k_SL.to(DOT), k_SR.to(DOT)
            acc_HL, max_H, sum_H = attend_tile(
                s, reach_H, k_SL, k_SR, q_HL, q_HR, acc_HL, max_H, sum_H, factor, PRECISION
            )
    else:
        # A tile passes through registers: load one ahead by hand, and look up its rows one further
        # ahead.
        row_S = cache_rows(first, last, blocks_ptr, stride_b, stride_k, BLOCK_SIZE, BLOCK_S)
        k_SL, k_SR = load_tile(first, last, row_S, cache_ptr, L, R, BLOCK_L, BLOCK_R)
        k_SL, k_SR = k_SL.to(DOT), k_SR.to(DOT)
        s = first + BLOCK_S
        row_S = cache_rows(s, last, blocks_ptr, stride_b, stride_k, BLOCK_SIZE, BLOCK_S)
        for s in tl.range(first, last, BLOCK_S, num_stages=1):
            ahead = s + BLOCK_S
            new_SL, new_SR = load_tile(ahead, last, row_S, cache_ptr, L, R, BLOCK_L, BLOCK_R)
            row_S = cache_rows(
                ahead + BLOCK_S, last, blocks_ptr, stride_b, stride_k, BLOCK_SIZE, BLOCK_S
            )
            acc_HL, max_H, sum_H = attend_tile(
                s, reach_H, k_SL, k_SR, q_HL, q_HR, acc_HL, max_H, sum_H, factor, PRECISION
            )
            k_SL, k_SR = new_SL.to(DOT), new_SR.to(DOT)
    return acc_HL, max_H, sum_H


@triton.jit
def clear_rows(out_ptr, lse_ptr, first, last, L: tl.constexpr, BLOCK_L: tl.constexpr):
    """Write what attending to nothing gives to rows `first` to `last` of a contiguous output.

    All programs share the work, so that it costs no launch of its own.
    """
    ROWS: tl.constexpr = 8
    step = tl.num_programs(0) * tl.num_programs(1) * tl.num_programs(2) * ROWS
    program = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    program = program * tl.num_programs(0) + tl.program_id(0)
    l_L = tl.arange(0, BLOCK_L)
    for row in range(first + program * ROWS, last, step):
        r_B = (row + tl.arange(0, ROWS)).to(tl.int64)
        nothing_BL = tl.zeros((ROWS, BLOCK_L), tl.float32)
        mask_BL = (r_B < last)[:, None] & (l_L < L)[None, :]
        tl.store(out_ptr + r_B[:, None] * L + l_L[None, :], nothing_BL, mask=mask_BL)
        tl.store(lse_ptr + r_B, tl.full((ROWS,), float("-inf"), tl.float32), mask=r_B < last)
