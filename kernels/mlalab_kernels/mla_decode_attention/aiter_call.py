"""AITER's decode attention, called as its sources say; never run by us on ROCm.

Read were `aiter/mla.py` at commit 000edf30 and the tables of assembly kernels, `mla_asm.csv`, for
gfx942 at 074f473a and gfx950 at 0462c538.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from mlalab_kernels.mla_decode_attention.lengths import DeviceLengths
from mlalab_kernels.mla_decode_attention.library_lists import (
    check_call,
    padded,
    request_and_place,
    starts_of,
)
from mlalab_kernels.numerics import FP8_DTYPES
from mlalab_kernels.refusal import RefusedError

_HEADS = (16, 128)
_MOST_NEW_TOKENS = 4


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
) -> tuple[Tensor, None]:
    """Attend as the reference does, without a log-sum-exp; rounds the result to bf16 on the way.

    The cache goes in as pages of one row, the layout that AITER's own tests use.

    Raises:
        RefusedError: AITER has no kernel for these arguments, `need_lse` among them.
        RuntimeError: AITER is missing or not AMD's.
    """
    check_call("AITER", q_TNC, kv_cache_BKC, query_lens, seq_lens, kv_lora_rank, lengths)
    _check(q_TNC, kv_cache_BKC, query_lens, need_lse)
    kernel, device, tokens = _kernel(), q_TNC.device, sum(query_lens)
    request, place = request_and_place(seq_lens, device)
    size = kv_cache_BKC.size(1)
    rows = block_table[request, place // size] * size + place % size
    out_TNL = q_TNC.new_empty((tokens, q_TNC.size(1), kv_lora_rank), dtype=torch.bfloat16)
    fp8 = q_TNC.dtype in FP8_DTYPES
    scales = [scale.float().view(1) if fp8 else None for scale in (q_scale, k_scale)]
    kernel(
        q_TNC[:tokens].contiguous(),
        kv_cache_BKC.view(-1, 1, 1, kv_cache_BKC.size(-1)),
        out_TNL,
        *(starts_of(counts).to(device) for counts in (query_lens, seq_lens)),
        rows.to(torch.int32),
        torch.ones(len(seq_lens), dtype=torch.int32, device=device),
        query_lens[0],
        sm_scale=softmax_scale,
        q_scale=scales[0],
        kv_scale=scales[1],
    )
    return padded(out_TNL, None, q_TNC.size(0))[0], None


def _check(q_TNC: Tensor, kv_cache_BKC: Tensor, query_lens: Sequence[int], need_lse: bool) -> None:
    if need_lse:
        raise RefusedError("AITER's kernels for 16 and 128 heads give no log-sum-exp.")
    q, kv, heads = q_TNC.dtype, kv_cache_BKC.dtype, q_TNC.size(1)
    if q != kv or q not in (torch.bfloat16, *FP8_DTYPES):
        raise RefusedError(
            f"AITER attends with query and cache both in bf16 or both in FP8; got {q} and {kv}."
        )
    if heads not in _HEADS:
        raise RefusedError(f"AITER is called for 16 or 128 heads; got {heads}.")
    if len(set(query_lens)) > 1 or query_lens[0] > _MOST_NEW_TOKENS:
        raise RefusedError(
            f"AITER takes as many new tokens of each request, at most {_MOST_NEW_TOKENS}; "
            f"got {list(query_lens)}."
        )


def _kernel() -> Callable[..., Any]:
    try:
        kernel: Callable[..., Any] = import_module("aiter.mla").mla_decode_fwd
    except (ImportError, AttributeError) as error:
        raise RuntimeError(
            f"AITER's mla_decode_fwd cannot be imported ({error}); build github.com/ROCm/aiter, "
            f"or use another provider."
        ) from error
    return kernel
