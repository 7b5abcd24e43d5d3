"""Batch metadata, and the context that ops look layers up in."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch

from mlalab.context import (
    BatchMetadata,
    ForwardContext,
    current_context,
    forward_context,
    make_batch,
)
from mlalab.errors import ContextError, InputError


def test_lengths_positions_and_slots():
    batch = make_batch([1, 2, 3], [5, 0, 4], num_decodes=2, block_size=4)
    assert batch.seq_lens == (6, 2, 7)
    assert (batch.num_tokens, batch.num_decode_tokens) == (6, 3)
    assert batch.positions().tolist() == [5, 0, 1, 4, 5, 6]
    assert batch.block_table.tolist() == [[0, 1], [2, 0], [3, 4]]
    assert batch.slot_mapping(4).tolist() == [5, 8, 9, 16, 17, 18]


def test_no_two_tokens_share_a_slot():
    batch = make_batch([9, 1, 4], [0, 7, 63], num_decodes=0, block_size=5)
    slots = batch.slot_mapping(5).tolist()
    assert len(set(slots)) == len(slots) == 14


def test_a_batch_of_nothing():
    batch = make_batch([], [], num_decodes=0, block_size=4)
    assert (batch.num_tokens, batch.num_decode_tokens) == (0, 0)
    for indices in (batch.positions(), batch.slot_mapping(4)):
        assert (indices.dtype, indices.shape) == (torch.int64, (0,))


def test_metadata_must_name_the_same_requests():
    table = torch.zeros(2, 1, dtype=torch.int32)
    with pytest.raises(InputError, match="the same requests, got 1, 2 and 2"):
        BatchMetadata(query_lens=(1,), context_lens=(0, 0), num_decodes=0, block_table=table)


@pytest.mark.parametrize("num_decodes", [-1, 3])
def test_decodes_are_among_the_requests(num_decodes):
    with pytest.raises(InputError, match=rf"must lie in 0\.\.2, got {num_decodes}"):
        make_batch([1, 1], [0, 0], num_decodes=num_decodes, block_size=4)


def test_there_is_no_context_outside():
    with pytest.raises(ContextError, match=r"run the model inside `with mlalab\.forward_context"):
        current_context()


def test_contexts_nest_and_close():
    outer, inner = ForwardContext(layers={}), ForwardContext(layers={})
    with forward_context(outer) as opened:
        assert opened is outer
        with pytest.raises(RuntimeError, match="boom"), forward_context(inner):
            assert current_context() is inner
            raise RuntimeError("boom")
        assert current_context() is outer
    with pytest.raises(ContextError):
        current_context()


def test_a_context_belongs_to_its_thread():
    seen = []

    def look():
        try:
            seen.append(current_context())
        except ContextError as error:
            seen.append(error)

    with forward_context(ForwardContext(layers={})):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert isinstance(seen[0], ContextError)


LAYER = SimpleNamespace(kind="gqa")


def test_an_op_for_another_kind_of_layer_is_refused():
    context = ForwardContext(layers={"a": LAYER})
    assert context.layer("a", "gqa") is LAYER
    with pytest.raises(ContextError, match=r"Layer 'a' is of kind 'gqa' .* layers of kind 'mla'"):
        context.layer("a")


def test_unknown_layer_lists_the_known_ones():
    context = ForwardContext(layers={"a.0": LAYER, "a.1": SimpleNamespace(kind="mla")})
    assert context.layer("a.1") is context.layers["a.1"]
    with pytest.raises(ContextError, match=r"no layer 'a\.2'; it has: a\.0, a\.1"):
        context.layer("a.2")


@pytest.mark.parametrize(
    ("query_lens", "num_decodes", "length"),
    [
        ([1, 1, 1], 3, 1),
        ([3], 1, 3),
        ([1, 1], 1, None),
        ([1, 2], 2, None),
        ([2, 2], 0, None),
        ([], 0, None),
    ],
)
def test_a_batch_is_a_uniform_decode_batch_or_not(query_lens, num_decodes, length):
    contexts = [4] * len(query_lens)
    batch = make_batch(query_lens, contexts, num_decodes=num_decodes, block_size=4)
    assert batch.uniform_query_len == length
