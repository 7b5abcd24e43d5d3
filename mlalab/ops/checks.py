"""What the ops refuse, before anything is written."""

from __future__ import annotations

from torch import Tensor

from mlalab.cache import PagedCache
from mlalab.context import ForwardContext
from mlalab.errors import InputError


def check_positions(positions: Tensor, num_rows: int) -> None:
    """Raise when a position lies outside a rope table of `num_rows` rows."""
    if positions.numel() and not 0 <= int(positions.min()) <= int(positions.max()) < num_rows:
        raise InputError(
            f"Positions {int(positions.min())}..{int(positions.max())} do not fit the rope table "
            f"of {num_rows} rows; raise max_position_embeddings."
        )


def check_slots(context: ForwardContext, cache: PagedCache, num_tokens: int) -> None:
    """Raise when the context's slot mapping does not fit the batch or, if checked, the cache."""
    slots, num_slots = context.slot_mapping, cache.num_slots
    assert slots is not None
    if slots.size(0) > num_tokens:
        raise InputError(
            f"The slot mapping names {slots.size(0)} tokens but the batch has {num_tokens}; "
            f"it may be shorter than the batch, never longer."
        )
    if context.checked and slots.numel() and int(slots.max()) >= num_slots:
        raise InputError(
            f"Slot {int(slots.max())} lies outside the cache of {num_slots} slots; "
            f"allocate more blocks, or use -1 for padding."
        )


def check_rows(used: int, rows: int, layer_name: str) -> None:
    """Raise when the batch metadata names more tokens than attention got rows."""
    if used > rows:
        raise InputError(
            f"The batch metadata names {used} tokens and layer {layer_name!r} got {rows} "
            f"rows; pass the metadata of this very batch."
        )
