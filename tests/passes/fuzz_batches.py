"""Random batches for random models: kinds, padding, and slot mappings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mlalab.context import BatchMetadata, ForwardContext, make_batch
from mlalab.workbench import BLOCK_SIZE
from tests.passes.fuzz_models import NUM_BLOCKS
from tests.passes.fuzz_steps import Choose


def batch_of(choose: Choose, tokens: int) -> BatchMetadata | None:
    """Return a uniform decode, prefill or mixed batch of `tokens` or, padded, fewer; or None."""
    kind = choose(12)
    used = max(tokens - choose(2), 0) if kind == 11 else tokens
    if kind == 10:
        return None
    if kind >= 8 and used > 1:
        split = choose(2)
        lengths = [used] if split else [1, used - 1]
        contexts = [16, 3][-len(lengths) :]
        return batch(lengths, contexts, 1 - split)
    if kind == 7 and used:
        return batch([used], [7], 1)
    return batch([1] * used, [9] * used, used)


def batch(lengths: list[int], contexts: list[int], decodes: int) -> BatchMetadata:
    return make_batch(lengths, contexts, num_decodes=decodes, block_size=BLOCK_SIZE)


def context_of(
    choose: Choose, layers: Sequence[Any], metadata: BatchMetadata | None, tokens: int
) -> ForwardContext:
    """Return a context with all slots, some, or none."""
    slots: Tensor | None = torch.randperm(NUM_BLOCKS * BLOCK_SIZE)[:tokens]
    which = choose(6)
    if which == 0:
        slots = None
    elif which == 1:
        slots = slots[: choose(tokens + 1)]
    elif which == 2:
        slots = torch.where(slots % 3 == 0, -1, slots)
    named = {layer.layer_name: layer for layer in layers}
    return ForwardContext(
        layers=named, metadata=metadata, slot_mapping=slots, checked=bool(choose(3))
    )
