"""Absorbed decode attention over the paged latent cache, one request at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mlalab_kernels.mla_decode_attention.lengths import DeviceLengths
from mlalab_kernels.numerics import dequantize


def gather_rows(kv_cache_BKC: Tensor, blocks: Tensor, length: int) -> Tensor:
    """Return the first `length` cache rows of the request that owns `blocks`, `[length, C]`."""
    block_size = kv_cache_BKC.size(1)
    used = blocks[: -(-length // block_size)].long()
    return kv_cache_BKC[used].flatten(0, 1)[:length]


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
) -> tuple[Tensor, Tensor]:
    """Attend from each request's last `query_len` tokens to its whole cached sequence, causally.

    Args:
        q_TNC: `[T, N, L + R]` absorbed query, float or FP8; requests one after the other.
        kv_cache_BKC: `[blocks, block_size, L + R]`, float or FP8.
        block_table: `[requests, max_blocks]` int.
        query_lens, seq_lens: new tokens and total tokens of each request.
        need_lse: without it a library may serve that returns None in place of `lse_TN`.
        lengths: both lists on the device, where the caller has them; these count.

    Returns:
        `out_TNL` fp32, the attended latent (still to be multiplied by W_UV), and `lse_TN` fp32,
        the natural log-sum-exp of the scaled scores.
    """
    if lengths is not None:
        query_lens, seq_lens = lengths.query_start_locs.diff().tolist(), lengths.seq_lens.tolist()
    num_tokens, num_heads, _ = q_TNC.shape
    out_TNL = q_TNC.new_empty((num_tokens, num_heads, kv_lora_rank), dtype=torch.float32)
    lse_TN = q_TNC.new_empty((num_tokens, num_heads), dtype=torch.float32)
    q_all = dequantize(q_TNC, q_scale, torch.float32)
    start = 0
    for request, (query_len, seq_len) in enumerate(zip(query_lens, seq_lens, strict=True)):
        rows = gather_rows(kv_cache_BKC, block_table[request], seq_len)
        k_SC = dequantize(rows, k_scale, torch.float32)
        own = slice(start, start + query_len)
        scores = torch.einsum("tnc,sc->tns", q_all[own], k_SC) * softmax_scale
        reach = torch.arange(seq_len - query_len, seq_len, device=q_TNC.device)
        future = torch.arange(seq_len, device=q_TNC.device) > reach[:, None]
        scores.masked_fill_(future[:, None, :], -torch.inf)
        lse_TN[own] = scores.logsumexp(-1)
        out_TNL[own] = scores.softmax(-1) @ k_SC[:, :kv_lora_rank]
        start += query_len
    return out_TNL, lse_TN
