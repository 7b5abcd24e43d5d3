"""What the ops refuse, before anything is written."""

from __future__ import annotations

from torch import Tensor

from mlalab.cache import PagedCache
from mlalab.context import BatchMetadata, ForwardContext
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
    check_slot_count(slots, num_tokens)
    if context.checked and slots.numel() and int(slots.max()) >= num_slots:
        raise InputError(
            f"Slot {int(slots.max())} lies outside the cache of {num_slots} slots; "
            f"allocate more blocks, or use -1 for padding."
        )


def check_slot_count(slots: Tensor, num_tokens: int) -> None:
    """Raise when a slot mapping names more tokens than the batch has."""
    if slots.size(0) > num_tokens:
        raise InputError(
            f"The slot mapping names {slots.size(0)} tokens but the batch has {num_tokens}; "
            f"it may be shorter than the batch, never longer."
        )


def check_rows(used: int, rows: int, layer_name: str) -> None:
    """Raise when the batch metadata names more tokens than attention got rows."""
    if used > rows:
        raise InputError(
            f"The batch metadata names {used} tokens and layer {layer_name!r} got {rows} "
            f"rows; pass the metadata of this very batch."
        )


def check_decode_rows(rows: int, metadata: BatchMetadata, layer_name: str) -> None:
    """Raise when decode attention got other rows than the batch's decode requests have.

    Rows too many are padding where nothing is prefilled, and prefill rows otherwise.
    """
    used = metadata.num_decode_tokens
    only_decodes = metadata.num_decodes == len(metadata.query_lens)
    if rows < used or (rows > used and not only_decodes):
        raise InputError(
            f"Decode attention of layer {layer_name!r} got {rows} rows and the batch decodes "
            f"{used}; split the batch by what mla_split_batch returned for it."
        )


def check_query(q: Tensor | None, k_pe: Tensor | None, needed: bool, layer_name: str) -> None:
    """Raise when attention needs `q` and `k_pe` and one is missing."""
    if needed and (q is None or k_pe is None):
        raise InputError(
            f"Layer {layer_name!r} got this batch without q or k_pe: its graph serves uniform "
            f"decode batches only; run other batches in a graph compiled with decode_only=False."
        )
