"""The lengths of a batch's requests where a kernel reads them: on the device."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor


class DeviceLengths(NamedTuple):
    """Lengths of the requests that decode attention serves.

    Args:
        query_start_locs: `[requests + 1]` int32, first token of each request, then their count.
        seq_lens: `[requests]` int32, total tokens of each; 0 for one that only fills a batch.
        changing: a CUDA graph will replay the call with other lengths in these tensors. What
            the host is told then is the most that they may be.
    """

    query_start_locs: Tensor
    seq_lens: Tensor
    changing: bool = False

    @classmethod
    def of(
        cls, query_lens: Sequence[int], seq_lens: Sequence[int], device: torch.device
    ) -> DeviceLengths:
        """Copy the lengths to `device`, in one go and without waiting for it."""
        starts = [0, *accumulate(query_lens)]
        # Triton compiles a kernel anew for a pointer that is no multiple of 16 bytes.
        gap = [0] * (-len(starts) % 4)
        pinned = device.type == "cuda"
        both = torch.tensor([*starts, *gap, *seq_lens], dtype=torch.int32, pin_memory=pinned)
        both = both.to(device, non_blocking=True)
        return cls(both[: len(starts)], both[len(starts) + len(gap) :])
