"""The lists that libraries take in place of a block table, built without waiting for the device."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from mlalab_kernels.mla_decode_attention.lengths import DeviceLengths
from mlalab_kernels.refusal import RefusedError


def starts_of(counts: Sequence[int]) -> Tensor:
    """Return where each request's part begins, then the end: `[requests + 1]` int32 on the host."""
    return torch.tensor([0, *accumulate(counts)], dtype=torch.int32)


def request_and_place(counts: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return of each of `sum(counts)` entries its request and its place there, int64."""
    starts = starts_of(counts).to(device)
    requests = torch.arange(len(counts), device=device)
    request = requests.repeat_interleave(starts.diff(), output_size=sum(counts))
    return request, torch.arange(sum(counts), device=device) - starts[request]


def check_call(
    library: str,
    q_TNC: Tensor,
    kv_cache_BKC: Tensor,
    query_lens: Sequence[int],
    seq_lens: Sequence[int],
    kv_lora_rank: int,
    lengths: DeviceLengths | None = None,
) -> None:
    """Refuse what no library serves.

    Raises:
        RefusedError: the call is for a CUDA graph, a request without rows, or other widths than
            512 + 64.
    """
    capturing = q_TNC.is_cuda and torch.cuda.is_current_stream_capturing()
    if capturing or (lengths is not None and lengths.changing):
        raise RefusedError(
            f"{library}'s lists are copied from the host, which a CUDA graph cannot hold; "
            f"use the Triton kernel while capturing."
        )
    both = zip(query_lens, seq_lens, strict=True)
    if not query_lens or any(not 1 <= new <= whole for new, whole in both):
        raise RefusedError(
            f"{library} attends from at least one new token of each request, its own row cached; "
            f"got query_lens {list(query_lens)}, seq_lens {list(seq_lens)}."
        )
    rope = q_TNC.size(-1) - kv_lora_rank
    if (kv_lora_rank, rope) != (512, 64):
        raise RefusedError(f"{library} is called for L = 512, R = 64; got {kv_lora_rank}, {rope}.")
    if not kv_cache_BKC.is_contiguous():
        raise RefusedError(
            f"{library} reads the cache as it lies; got strides {tuple(kv_cache_BKC.stride())}."
        )


def padded(out_TNL: Tensor, lse_TN: Tensor | None, rows: int) -> tuple[Tensor, Tensor | None]:
    """Return fp32 with `rows` rows; those beyond the last request get 0 and -inf."""
    more = rows - out_TNL.size(0)
    pad = torch.nn.functional.pad
    out_TNL = pad(out_TNL.float(), (0, 0, 0, 0, 0, more)) if more else out_TNL.float()
    if lse_TN is not None and more:
        lse_TN = pad(lse_TN, (0, 0, 0, more), value=-torch.inf)
    return out_TNL, lse_TN
