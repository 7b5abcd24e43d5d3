"""Grouped-query attention over the paged key and value cache, one request at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mlalab_kernels.mla_decode_attention.reference import gather_rows
from mlalab_kernels.numerics import dequantize


def paged_attention(
    query_TNH: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    query_lens: Sequence[int],
    seq_lens: Sequence[int],
    softmax_scale: float,
    k_scale: Tensor,
    v_scale: Tensor,
) -> Tensor:
    """Attend from each request's last `query_len` tokens to its whole cached sequence, causally.

    Args:
        query_TNH: `[T, N, H]` rotated query; requests one after the other.
        kv_cache: `[2, blocks, block_size, G, H]`, float or FP8, keys first; N a multiple of G.
        block_table: `[requests, max_blocks]` int.
        query_lens, seq_lens: new tokens and total tokens of each request.
        k_scale, v_scale: fp32, one element each, the dequantisation scales.

    Returns:
        `[T, N, H]` in the query's dtype; arithmetic in fp32.
    """
    output_TNH = torch.empty_like(query_TNH, memory_format=torch.contiguous_format)
    start = 0
    for blocks, query_len, seq_len in zip(block_table, query_lens, seq_lens, strict=True):
        k_SGH, v_SGH = (
            dequantize(gather_rows(rows, blocks, seq_len), scale, torch.float32)
            for rows, scale in zip(kv_cache, (k_scale, v_scale), strict=True)
        )
        own = slice(start, start + query_len)
        # Neighbouring query heads share a key head.
        q_TGNH = query_TNH[own].float().unflatten(1, (k_SGH.size(1), -1))
        scores = torch.einsum("tgnh,sgh->gnts", q_TGNH, k_SGH) * softmax_scale
        reach = torch.arange(seq_len - query_len, seq_len, device=scores.device)
        future = torch.arange(seq_len, device=scores.device) > reach[:, None]
        probs = scores.masked_fill(future, -torch.inf).softmax(-1)
        output_TNH[own] = torch.einsum("gnts,sgh->tgnh", probs, v_SGH).flatten(1, 2)
        start += query_len
    return output_TNH
