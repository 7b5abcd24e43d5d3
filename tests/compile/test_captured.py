"""What a captured function reads and where its results lie, with a stand-in for CUDA graphs."""

from __future__ import annotations

import pytest
import torch

from mlalab.compile.captured import Captured, CudaGraphCapture, Replays
from mlalab.passes.values import storages
from tests.compile.replaying import Recorded


@pytest.fixture
def replays():
    return Replays(Recorded())


def test_a_replay_reads_what_it_is_given(replays):
    twice = Captured(lambda x: x * 2, [torch.ones(3)], replays)
    for value in (1.0, 5.0):
        assert twice(torch.full((3,), value)).tolist() == [2 * value] * 3


def test_weights_are_read_where_they_are(replays):
    weight = torch.ones(3)
    replays.fixed = storages(weight)
    scaled = Captured(lambda x, w: x * w[1:], [torch.ones(2), weight[:]], replays)
    weight.fill_(7.0)
    assert scaled(torch.ones(2), weight[:]).tolist() == [7.0, 7.0]


def test_captures_share_a_place_for_what_comes_from_outside(replays):
    for rows in (4, 2):
        shape = (rows, 3)
        captured = [Captured(lambda x: x + 1, [torch.zeros(shape)], replays) for _ in range(2)]
        results = [call(torch.full(shape, float(i))) for i, call in enumerate(captured)]
        assert [x.unique().tolist() for x in results] == [[1.0], [2.0]]
    assert [place.numel() for place in replays._staging.values()] == [12]


def test_a_larger_input_gets_a_larger_place(replays):
    small = Captured(lambda x: x + 1, [torch.zeros(2)], replays)
    large = Captured(lambda x: x + 1, [torch.zeros(5)], replays)
    assert large(torch.ones(5)).tolist() == [2.0] * 5
    assert small(torch.ones(2)).tolist() == [2.0, 2.0]


def test_strides_are_kept(replays):
    seen = []

    def strides(x):
        seen.append(x.stride())
        return x.contiguous() + 0

    x = torch.arange(6.0).view(2, 3).t()
    assert torch.equal(Captured(strides, [x], replays)(x), x)
    assert set(seen) == {x.stride()}


def test_a_view_that_is_returned_outlives_other_replays(replays):
    """A shared place would be written anew by the second."""
    zeros = torch.zeros(6)[::2]
    first, second = (Captured(lambda x: x[1:], [zeros], replays) for _ in range(2))
    kept = first(torch.full((3,), 1.0))
    second(torch.full((3,), 2.0))
    assert kept.tolist() == [1.0, 1.0]
    assert kept.stride() == zeros.stride()


def test_results_of_one_batch_are_inputs_of_its_next_piece(replays):
    first = Captured(lambda x: x + 1, [torch.zeros(2)], replays)
    between = first(torch.zeros(2))
    second = Captured(lambda x: x * 2, [between], replays)
    assert len(replays._staging) == 1
    assert second(first(torch.full((2,), 4.0))).tolist() == [10.0, 10.0]


def test_a_batch_that_was_let_go_is_computed_again(replays):
    def captured():
        call = Captured(lambda x: x + 1, [torch.zeros(2)], replays)
        replays.let_go()
        return call

    first, second = captured(), captured()
    kept = first(torch.full((2,), 1.0))
    assert second(torch.full((2,), 2.0)).tolist() == [3.0, 3.0]
    assert kept.isnan().all()
    assert first(torch.full((2,), 1.0)).tolist() == [2.0, 2.0]


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_nothing_is_nothing(replays, rows):
    call = Captured(lambda x, y: x.sum(0) + y.sum(), [torch.zeros(rows, 2), torch.ones(1)], replays)
    assert call(torch.ones(rows, 2), torch.ones(1)).tolist() == [rows + 1.0] * 2


def test_what_is_let_go_stays_in_place_and_owns_nothing():
    x = torch.arange(12.0).view(3, 4)[1:, ::2]
    alias = CudaGraphCapture().let_go(x)
    assert (alias.data_ptr(), alias.stride()) == (x.data_ptr(), x.stride())
    x.fill_(3.0)
    assert torch.equal(alias, x)
    assert not alias.untyped_storage().resizable()
    del x  # what `alias` points at may be anything from here on
    assert alias.shape == (2, 2)


@pytest.mark.gpu
def test_cuda_graphs_of_different_sizes_share_memory():
    """Two pieces a size, and one in between that runs as it is."""
    weight = torch.randn(512, 512, device="cuda")
    replays = Replays(fixed=storages(weight), pool=torch.cuda.graph_pool_handle())
    graphs, used = {}, []
    for rows in (64, 32, 16, 8):
        x = torch.randn(rows, 512, device="cuda")
        first = Captured(torch.mm, [x, weight], replays)
        second = Captured(torch.mm, [torch.relu(first(x, weight)), weight], replays)
        graphs[rows] = (first, second)
        replays.let_go()
        del x
        used.append(torch.cuda.memory_allocated())
    assert len({*used}) == 1
    for rows in (*graphs, *reversed(graphs)):
        first, second = graphs[rows]
        x = torch.randn(rows, 512, device="cuda")
        found = second(torch.relu(first(x, weight)), weight).clone()
        torch.testing.assert_close(found, torch.relu(x @ weight) @ weight)
