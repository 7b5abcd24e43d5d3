"""Equal splits become one, unequal ones stay, and the graph means what it meant."""

from __future__ import annotations

import operator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlalab.passes.split_coalescing import SplitCoalescingPass
from tests.passes.toy_harness import Sketch, compile_and_run, differences, wrong_graph
from tests.passes.toy_programs import write

aten = torch.ops.aten
CLEAN = (SplitCoalescingPass,)


@pytest.fixture
def draw():
    return Sketch(torch.arange(24).view(4, 6))


def piece(draw, split, index):
    return draw(operator.getitem, split, index)


def joined(draw, *arguments):
    """Return the sum of pieces of splits with these arguments of one tensor."""
    base = draw(aten.mul.Tensor, draw.inputs[0], 2)
    total = draw(aten.mul.Tensor, draw.inputs[0], 0)
    for sizes, dim in arguments:
        op = aten.split.Tensor if isinstance(sizes, int) else aten.split_with_sizes.default
        split = draw(op, base, sizes, dim)
        for index in (0, 1):
            part = draw(aten.sum.default, piece(draw, split, index))
            total = draw(aten.add.Tensor, total, part)
    return total


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        ([([2, 4], 1), ([2, 4], 1)], 1),
        ([([2, 4], 1), ([2, 4], -1), ([2, 4], 1)], 1),
        ([([2, 4], 1), ([4, 2], 1)], 2),
        ([([3, 1], 0), ([2, 4], 1)], 2),
        ([(3, 1), (3, -1), (3, 1)], 1),
        ([(2, 0), (2, 1)], 2),
    ],
)
def test_equal_splits_become_one(draw, arguments, left):
    run = draw.run(joined(draw, *arguments), passes=CLEAN)
    assert len(run.calls("aten.split")) == left
    assert len(run.calls("getitem")) == 2 * left


def test_splits_of_two_tensors_stay(draw):
    pieces = [
        draw(aten.neg.default, piece(draw, draw(aten.split_with_sizes.default, x, [2, 4], 1), 0))
        for x in (draw(aten.mul.Tensor, draw.inputs[0], n) for n in (2, 3))
    ]
    run = draw.run(draw(aten.add.Tensor, *pieces), passes=CLEAN)
    assert len(run.calls("split_with_sizes")) == 2


def test_a_graph_that_writes_in_place_is_left_alone(draw):
    draw(torch.ops.mlalab_test.scale.default, draw(aten.mul.Tensor, draw.inputs[0], 2), 3)
    run = draw.run(joined(draw, ([2, 4], 1), ([2, 4], 1)), passes=CLEAN)
    assert str(run.after) == str(run.before)


@settings(max_examples=20)
@given(st.randoms(use_true_random=False))
def test_random_programs_keep_their_meaning(random):
    program = write(random.randrange)
    run = compile_and_run(program.function, program.make_inputs(), CLEAN)
    assert differences(run, program, program.make_inputs()) == []
    assert wrong_graph(run) == []
