"""Paged decode attention as one launch that splits the sequences, and one that merges the splits.

Nothing is read back from the device, so a CUDA graph may hold both launches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlalab_kernels.launch import arch_of, launch
from mlalab_kernels.mla_decode_attention.launch_config import (
    DOT_TYPES,
    Config,
    arithmetic_of,
    config_for,
    processors_of,
    splits_for,
)
from mlalab_kernels.mla_decode_attention.lengths import DeviceLengths
from mlalab_kernels.mla_decode_attention.triton_programs import (
    LOG2_E,
    attend_span,
    clear_rows,
    load_columns,
)
from mlalab_kernels.numerics import FP8_DTYPES


@triton.jit(do_not_specialize=["T", "requests", "table_stride"])
def _attend(
    q_ptr, cache_ptr, table_ptr, starts_ptr, lens_ptr, q_scale_ptr, k_scale_ptr,
    out_ptr, lse_ptr, part_ptr, part_lse_ptr, softmax_scale, T, requests,
    q_stride_t, q_stride_n, cache_stride_b, cache_stride_k, table_stride, table_width,
    N: tl.constexpr, L: tl.constexpr, R: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_S: tl.constexpr,
    STAGES: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    split, request = tl.program_id(1), tl.program_id(2)
    start, end = tl.load(starts_ptr + request), tl.load(starts_ptr + request + 1)
    used, length = tl.load(starts_ptr + requests), tl.load(lens_ptr + request)
    length = tl.minimum(length, table_width * BLOCK_SIZE)
    clear_rows(out_ptr, lse_ptr, used * N, T * N, L, BLOCK_L)
    first_row = tl.program_id(0) * BLOCK_H
    if first_row < (end - start) * N:
        r_H = first_row + tl.arange(0, BLOCK_H)
        token_H = (start + r_H // N).to(tl.int64)
        there_H = (r_H < (end - start) * N) & (token_H < T)
        at_H = token_H * q_stride_t + (r_H % N).to(tl.int64) * q_stride_n
        q_HL = load_columns(q_ptr, at_H, there_H, L, BLOCK_L).to(DOT)
        q_HR = load_columns(q_ptr + L, at_H, there_H, R, BLOCK_R).to(DOT)
        factor = softmax_scale
        if q_ptr.dtype.element_ty.is_fp8():
            factor *= tl.load(q_scale_ptr).to(tl.float32)
        k_scale = 1.0
        if cache_ptr.dtype.element_ty.is_fp8():
            k_scale = tl.load(k_scale_ptr).to(tl.float32)
        factor *= k_scale * LOG2_E

        context = length - (end - start)
        reach_H = context + r_H // N
        # No row of this program looks further than its last one.
        length = tl.minimum(length, context + (first_row + BLOCK_H - 1) // N + 1)
        share = tl.cdiv(tl.cdiv(length, BLOCK_S), tl.num_programs(1)) * BLOCK_S
        last = tl.minimum((split + 1) * share, length)

        acc_HL = tl.zeros((BLOCK_H, BLOCK_L), tl.float32)
        max_H = tl.full((BLOCK_H,), float("-inf"), tl.float32)
        sum_H = tl.zeros((BLOCK_H,), tl.float32)
        blocks_ptr = table_ptr + request.to(tl.int64) * table_stride
        acc_HL, max_H, sum_H = attend_span(
            split * share, last, reach_H, q_HL, q_HR, acc_HL, max_H, sum_H, factor,
            blocks_ptr, cache_ptr, cache_stride_b, cache_stride_k,
            L, R, BLOCK_SIZE, BLOCK_S, STAGES, PRECISION,
        )  # fmt: skip

        seen_H = sum_H != 0.0
        out_HL = acc_HL * tl.where(seen_H, k_scale / tl.where(seen_H, sum_H, 1.0), 0.0)[:, None]
        lse_H = tl.where(
            seen_H, (max_H + tl.log2(tl.where(seen_H, sum_H, 1.0))) / LOG2_E, float("-inf")
        )
        if part_ptr is not None:
            out_ptr = part_ptr + split.to(tl.int64) * T * N * L
            lse_ptr = part_lse_ptr + split.to(tl.int64) * T * N
        row_H, l_L = token_H * N + r_H % N, tl.arange(0, BLOCK_L)
        mask_HL = there_H[:, None] & (l_L < L)[None, :]
        tl.store(out_ptr + row_H[:, None] * L + l_L[None, :], out_HL, mask=mask_HL)
        tl.store(lse_ptr + row_H, lse_H, mask=there_H)


@triton.jit(do_not_specialize=["T", "requests", "splits"])
def _merge(
    part_ptr, part_lse_ptr, starts_ptr, out_ptr, lse_ptr, T, requests, splits,
    N: tl.constexpr, L: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    if row < tl.load(starts_ptr + requests) * N:
        w_W = tl.arange(0, BLOCK_W)
        row_W = w_W.to(tl.int64) * T * N + row
        lse_W = tl.load(part_lse_ptr + row_W, mask=w_W < splits, other=float("-inf"))
        most = tl.max(lse_W, 0)
        shift = tl.where(most == float("-inf"), 0.0, most)
        weight_W = tl.exp2((lse_W - shift) * LOG2_E)
        total = tl.sum(weight_W, 0)
        total = tl.where(total == 0.0, 1.0, total)
        l_L = tl.program_id(1) * BLOCK_L + tl.arange(0, BLOCK_L)
        mask_WL = (weight_W != 0.0)[:, None] & (l_L < L)[None, :]
        part_WL = tl.load(part_ptr + row_W[:, None] * L + l_L[None, :], mask=mask_WL, other=0.0)
        out_L = tl.sum(part_WL * weight_W[:, None], 0) / total
        tl.store(out_ptr + row * L + l_L, out_L, mask=l_L < L)
        tl.store(lse_ptr + row, most + tl.log2(total) / LOG2_E, mask=tl.program_id(1) == 0)


def mla_decode_attention(
    q_TNC: Tensor,
    kv_cache_BKC: Tensor,
    block_table: Tensor,
    query_lens: Sequence[int],
    seq_lens: Sequence[int],
    softmax_scale: float,
    kv_lora_rank: int,
    q_scale: Tensor,
    k_scale: Tensor,
    need_lse: bool = True,
    lengths: DeviceLengths | None = None,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend as the reference does; see there. Without `lengths` it copies the lists to the device.

    Rows of `q_TNC` beyond the last request get 0 and a log-sum-exp of -inf, as do tokens of a
    request without cached rows.
    """
    starts, lens, _ = lengths or DeviceLengths.of(query_lens, seq_lens, q_TNC.device)
    return mla_decode_attention_of_batch(
        q_TNC,
        kv_cache_BKC,
        block_table,
        starts,
        lens,
        max(query_lens, default=0),
        max(seq_lens, default=0),
        softmax_scale,
        kv_lora_rank,
        q_scale,
        k_scale,
        config,
    )


def mla_decode_attention_of_batch(
    q_TNC: Tensor,
    kv_cache_BKC: Tensor,
    block_table: Tensor,
    query_start_locs: Tensor,
    seq_lens: Tensor,
    max_query_len: int,
    max_seq_len: int,
    softmax_scale: float,
    kv_lora_rank: int,
    q_scale: Tensor,
    k_scale: Tensor,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend with lengths that lie on the device; never waits for it, and a CUDA graph may hold it.

    Args:
        q_TNC: `[T, N, L + R]`, float or FP8; fast where the last dimension is contiguous.
        kv_cache_BKC: `[blocks, block_size, L + R]`, float or FP8, last dimension contiguous.
        block_table: `[requests, max_blocks]` int; entries beyond a request's last row are not read.
        query_start_locs: `[requests + 1]` int, first token of each request, then their count.
            Tokens beyond it get 0 and a log-sum-exp of -inf.
        seq_lens: `[requests]` int, total tokens of each; 0 for a request that only fills a batch.
        max_query_len: no request has more new tokens; what is beyond it is undefined.
        max_seq_len: about the longest sequence. It decides how many programs share one, and so
            the order of summation; a longer sequence is attended to in full.

    Returns:
        `out_TNL` and `lse_TN`, fp32, as the reference does.

    Raises:
        RuntimeError: a cache of raw bytes.
    """
    _check(q_TNC, kv_cache_BKC)
    (T, N, C), L, requests = q_TNC.shape, kv_lora_rank, seq_lens.size(0)
    out_TNL = q_TNC.new_empty((T, N, L), dtype=torch.float32)
    lse_TN = q_TNC.new_empty((T, N), dtype=torch.float32)
    if T == 0 or requests == 0 or max_query_len == 0:
        return out_TNL.zero_(), lse_TN.fill_(-torch.inf)
    q = q_TNC if q_TNC.stride(-1) == 1 else q_TNC.contiguous()
    table = block_table if block_table.stride(-1) == 1 else block_table.contiguous()
    c = config or config_for(arch_of(q.device), N, kv_cache_BKC.dtype)
    rows = max_query_len * N
    block_h = min(c.block_h, max(16, triton.next_power_of_2(rows)))
    blocks = triton.cdiv(rows, block_h)
    splits = c.splits or splits_for(
        blocks * requests, triton.cdiv(max_seq_len, c.block_s), c.per_sm * processors_of(q.device)
    )
    parts: tuple[Tensor | None, Tensor | None] = (None, None)
    if splits > 1:
        parts = (out_TNL.new_empty((splits, T, N, L)), out_TNL.new_empty((splits, T, N)))
    block_l = max(16, triton.next_power_of_2(L))
    launch(
        _attend,
        (blocks, splits, requests),
        *(q, kv_cache_BKC, table, query_start_locs, seq_lens, q_scale, k_scale),
        *(out_TNL, lse_TN, *parts, softmax_scale, T, requests),
        *(*q.stride()[:2], *kv_cache_BKC.stride()[:2], table.stride(0), table.size(1)),
        *(N, L, C - L, kv_cache_BKC.size(1), block_l, max(16, triton.next_power_of_2(C - L))),
        *(block_h, c.block_s, c.stages, *arithmetic_of(q, kv_cache_BKC)),
        num_warps=c.warps,
    )
    if splits > 1:
        # 8192 values in registers: 64 for each thread of four warps.
        block_w = triton.next_power_of_2(splits)
        block_l = min(block_l, 8192 // block_w)
        grid = (T * N, triton.cdiv(L, block_l))
        sizes = (T, requests, splits, N, L, block_w, block_l)
        launch(_merge, grid, *parts, query_start_locs, out_TNL, lse_TN, *sizes)
    return out_TNL, lse_TN


def _check(q_TNC: Tensor, kv_cache_BKC: Tensor) -> None:
    for name, x in (("q_TNC", q_TNC), ("kv_cache_BKC", kv_cache_BKC)):
        if not x.is_floating_point():
            raise RuntimeError(
                f"mla_decode_attention: {name} is {x.dtype}; pass what its bytes stand for, "
                f"e.g. {name}.view(torch.float8_e4m3fn)."
            )
        if x.dtype not in (*DOT_TYPES, *FP8_DTYPES):
            raise RuntimeError(
                f"mla_decode_attention: {name} is {x.dtype}; convert it to bfloat16, float16, "
                f"float32 or the device's FP8 type."
            )
    if kv_cache_BKC.stride(-1) != 1:
        raise RuntimeError(
            "mla_decode_attention: kv_cache_BKC must be contiguous in its last dimension, got "
            f"strides {tuple(kv_cache_BKC.stride())}."
        )
