"""Reading back what was scattered gives the scattered value, whatever stands around it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlalab.passes.scatter_split import ScatterSplitReplacementPass, Span
from tests.passes.toy_harness import Sketch, compile_and_run, differences, wrong_graph
from tests.passes.toy_programs import write

aten = torch.ops.aten
MAX = 2**63 - 1
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


def two_parts_written(x, y):
    z = x * 2
    z[:, 3:].copy_(y * 5)
    z[:, :3].copy_(y * 7)
    return z[:, 3:] + 1, z[:, :3] + 2


def test_reads_look_through_several_scatters():
    run = compile_and_run(two_parts_written, inputs(), CLEAN)
    assert differences(run, two_parts_written, inputs()) == []
    assert not run.calls("slice_scatter")


def part_of_an_input_returned(x, y):
    z = x.clone()  # which Inductor drops
    z[:, 3:].copy_(y)
    return (z[:, :3],)


def value_returned_twice(x, y):
    z, v = x * 2, y * 5
    z[:, 3:].copy_(v)
    return z[:, 3:], v


def input_read_back(x, y):
    z = x * 2
    z[:, 3:].copy_(y)
    return z[:, 3:].t(), y


@pytest.mark.parametrize(
    "program", [part_of_an_input_returned, value_returned_twice, input_read_back]
)
def test_the_caller_is_not_handed_shared_memory(program):
    run = compile_and_run(program, inputs(), CLEAN)
    assert differences(run, program, inputs()) == []
    assert wrong_graph(run) == []


def rotated_parts_of_one_product(x, table, positions):
    q, k, v = x.mul(2).split([16, 8, 8], -1)
    torch.ops.mlalab.rotary_embedding(positions, q, k, 8, table, True)
    return q + 1, k + 2, v + 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_one_split_stays_of_a_product_whose_parts_are_written(dtype):
    given = [torch.randn(5, 32).to(dtype), torch.randn(9, 8).to(dtype), torch.arange(5)]
    run = compile_and_run(rotated_parts_of_one_product, given, CLEAN)
    assert differences(run, rotated_parts_of_one_product, given) == []
    assert wrong_graph(run) == []
    assert len(run.calls_before("slice_scatter")) == 2
    assert [len(run.calls(x)) for x in ("slice_scatter", "split")] == [0, 1]


@pytest.fixture
def draw():
    return Sketch(torch.arange(24).view(4, 6))


def test_a_scatter_of_what_it_overwrites(draw):
    """Base and source are one node here: the base goes, the source stays."""
    zeros = draw(aten.zeros.default, [4, 6], dtype=torch.int64)
    first = draw(aten.slice_scatter.default, draw.inputs[0], zeros, 0, 0, MAX)
    again = draw(aten.slice_scatter.default, first, first, 0, 0, MAX)
    draw.run(draw(aten.neg.default, again), passes=CLEAN)


def test_a_reshape_that_copies_is_kept(draw):
    turned = draw(aten.permute.default, draw.inputs[0], [1, 0])
    flat = draw(aten.reshape.default, turned, [24])
    back = draw(aten.reshape.default, flat, [6, 4])
    assert len(draw.run(back, passes=CLEAN).calls("reshape")) == 2


@pytest.mark.parametrize("bounds", [(-3, MAX), (3, 99), (3, None)])
def test_bounds_in_every_spelling(draw, bounds):
    base = draw(aten.mul.Tensor, draw.inputs[0], 2)
    zeros = draw(aten.zeros.default, [4, 3], dtype=torch.int64)
    scatter = draw(aten.slice_scatter.default, base, zeros, -1, *bounds)
    read = draw(aten.neg.default, draw(aten.slice.Tensor, scatter, 1, 3, 6))
    assert not draw.run(read, passes=CLEAN).calls("scatter")


def test_steps_are_not_spans(draw):
    base = draw(aten.mul.Tensor, draw.inputs[0], 2)
    zeros = draw(aten.zeros.default, [4, 3], dtype=torch.int64)
    scatter = draw(aten.slice_scatter.default, base, zeros, 1, 0, 6, 2)
    read = draw(aten.neg.default, draw(aten.slice.Tensor, scatter, 1, 0, 3))
    assert draw.run(read, passes=CLEAN).calls("scatter")


def test_places_in_memory_are_not_indices(draw):
    """A read by `as_strided` must not be moved to memory that lies otherwise."""
    base = draw(aten.mul.Tensor, draw.inputs[0], 2)
    zeros = draw(aten.zeros.default, [4, 3], dtype=torch.int64)
    scatter = draw(aten.slice_scatter.default, base, zeros, 1, 3, 6)
    part = draw(aten.slice.Tensor, scatter, 1, 3, 6)
    placed = draw(aten.as_strided.default, part, [2, 2], [6, 1], 9)
    assert draw.run(draw(aten.neg.default, placed), passes=CLEAN).calls("slice_scatter")


def test_a_graph_that_writes_in_place_is_left_alone(draw):
    base, source = (draw(aten.mul.Tensor, draw.inputs[0], n) for n in (2, 3))
    scatter = draw(aten.slice_scatter.default, base, source, 0, 0, MAX)
    draw(aten.copy_.default, scatter, base)
    draw(torch.ops.mlalab_test.scale.default, source, 3)
    read = draw(aten.neg.default, draw(aten.slice.Tensor, scatter, 0, 0, 4))
    run = draw.run(read, passes=CLEAN)
    assert str(run.after) == str(run.before)


def test_spans():
    assert Span(1, 0, 3).disjoint(Span(1, 3, 6))
    assert not Span(1, 0, 3).disjoint(Span(1, 2, 6))
    assert not Span(1, 0, 3).disjoint(Span(0, 3, 6))


@settings(max_examples=20)
@given(st.randoms(use_true_random=False))
def test_random_programs_keep_their_meaning(random):
    program = write(random.randrange)
    run = compile_and_run(program.function, program.make_inputs(), CLEAN)
    assert differences(run, program, program.make_inputs()) == []
    assert wrong_graph(run) == []
