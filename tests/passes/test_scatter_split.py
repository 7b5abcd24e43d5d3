"""Reading back what was scattered gives the scattered value, whatever stands around it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlalab.passes.scatter_split import ScatterSplitReplacementPass, Span
from tests.passes.toy_harness import compile_and_run, differences, wrong_graph
from tests.passes.toy_programs import write

CLEAN = (ScatterSplitReplacementPass,)


def inputs():
    return [torch.arange(24).view(4, 6), torch.arange(12).view(4, 3)]


def read_the_same(x, y):
    z = x * 2
    z[:, 3:].copy_(y * 5)
    return (z[:, 3:] + 1,)


def read_elsewhere(x, y):
    z = x * 2
    z[:, 3:].copy_(y * 5)
    return (z[:, :3] + 1,)


def read_across(x, y):
    z = x * 2
    z[:, 3:].copy_(y * 5)
    return (z[:, 2:4] + 1, z)


def split_again(x, y):
    z = x * 2
    z[:, 3:].copy_(y * 5)
    first, second = z.split([3, 3], dim=1)
    return (first + 1, second + 2)


def reshaped_in_between(x, y):
    z = x * 2
    z[:, 3:].copy_(y * 5)
    again = z.view(2, 12).view(4, 6)
    return (again[:, 3:] + 1,)


def written_twice(x, y):
    z = x * 2
    z[:, 3:].copy_(y * 5)
    z[:, 3:].copy_(y * 7)
    return (z + 1,)


def written_to_itself(x, y):
    z = x * 2
    z[:, 3:].copy_(z[:, 3:])
    return (z + y.sum(),)


GONE = [read_the_same, read_elsewhere, split_again, reshaped_in_between]


@pytest.mark.parametrize(
    "program", [*GONE, read_across, written_twice, written_to_itself], ids=lambda f: f.__name__
)
def test_programs_keep_their_meaning(program):
    run = compile_and_run(program, inputs(), CLEAN)
    assert differences(run, program, inputs()) == []
    assert wrong_graph(run) == []


@pytest.mark.parametrize("program", GONE, ids=lambda f: f.__name__)
def test_nothing_is_scattered_any_more(program):
    run = compile_and_run(program, inputs(), CLEAN)
    assert [n for n in run.before.nodes if "slice_scatter" in str(n.target)]
    assert not run.calls("slice_scatter")


def test_a_read_across_the_border_keeps_the_scatter():
    assert compile_and_run(read_across, inputs(), CLEAN).calls("slice_scatter")


def test_spans():
    assert Span(1, 0, 3).disjoint(Span(1, 3, 6))
    assert not Span(1, 0, 3).disjoint(Span(1, 2, 6))
    assert not Span(1, 0, 3).disjoint(Span(0, 3, 6))


@settings(max_examples=40)
@given(st.randoms(use_true_random=False))
def test_random_programs_keep_their_meaning(random):
    program = write(random.randrange)
    run = compile_and_run(program.function, program.make_inputs(), CLEAN)
    assert differences(run, program, program.make_inputs()) == []
    assert wrong_graph(run) == []
