"""What changes nothing is dropped, and only that, whatever the caller can see of it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlalab.compile.capture import LabBackend
from mlalab.passes.noop_elimination import NoOpEliminationPass
from tests.passes.toy_harness import Sketch, compile_and_run, differences, wrong_graph
from tests.passes.toy_programs import write

aten = torch.ops.aten
CLEAN = (NoOpEliminationPass,)
COUNTED = ("aten.reshape", "aten.slice", "aten.slice_scatter")


def counts(backend):
    ops = [node.target for node in backend.recorders[0].steps[-1].nodes]
    return tuple(ops.count(op) for op in COUNTED)


def compiled(function, *inputs, dynamic=True):
    backend = LabBackend(passes=CLEAN, keep_graphs=False)
    torch._dynamo.reset()
    if dynamic:
        torch._dynamo.mark_dynamic(inputs[0], 0)
    return torch.compile(function, backend=backend, fullgraph=True)(*inputs), backend


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("tokens", "rows"), [(256, 256), (256, 512), (1024, 1024), (1024, 1025)])
@pytest.mark.parametrize("hidden", [64, 4096])
def test_only_what_does_something_stays(dtype, tokens, rows, hidden):
    table = torch.randn(rows, hidden, dtype=dtype)

    def function(x, table):
        y = x.reshape(-1, hidden // 16, 16).reshape(-1, hidden).reshape(-1, hidden)
        y = y.reshape(-1, hidden // 16, 16)[0 : x.size(0)]
        y = torch.slice_scatter(torch.ones_like(y), y, 0, 0, y.size(0))
        return (y + 1, table[: x.size(0)] + 1)

    x = torch.randn(tokens, hidden, dtype=dtype)
    found, backend = compiled(function, x, table)
    assert all(torch.equal(a, b) for a, b in zip(function(x, table), found, strict=True))
    assert counts(backend) == (1, 1, 0)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_slice_that_ends_at_minus_one_stays(dynamic):
    x = torch.randn(6, 4)
    found, backend = compiled(lambda x: x[:-1] + 1, x, dynamic=dynamic)
    assert torch.equal(found, x[:-1] + 1)
    assert counts(backend) == (0, 1, 0)


def inputs():
    return [torch.arange(24).view(4, 6), torch.arange(12).view(4, 3)]


def copied_on_the_way(x, y):
    """The first reshape copies; without it the second would be a view of what is returned."""
    part = (x * 2)[:, 1:4]
    return (part.reshape(12).reshape(4, 3), part)


def copied_and_written(x, y):
    z = x * 2
    again = z.t().reshape(24).reshape(6, 4)
    z.add_(1)
    return (again + 1, z)


def returned_reshape(x, y):
    z = y + 1
    return (z.reshape(12).reshape(4, 3), z.reshape(2, 6))


def input_reshaped(x, y):
    return (x.reshape(24).reshape(4, 6), y.reshape(3, 4).reshape(12))


def whole_scatter(x, y):
    return (torch.slice_scatter(x, x * 2, 1, 0, 6) + 1, torch.slice_scatter(x, x.t().reshape(4, 6)))


def strided_whole_scatter(x, y):
    z = torch.slice_scatter(y, (x * 2)[:, 1:4], 0, 0, 4)
    return (z, z.as_strided((12,), (1,)))


def steps_of_one(x, y):
    return (x[:1][::2] + 1, x[1:][0:3] + 2, x[::2] + 3)


@pytest.mark.parametrize(
    "function",
    [
        *(copied_on_the_way, copied_and_written, returned_reshape, input_reshaped),
        *(whole_scatter, strided_whole_scatter, steps_of_one),
    ],
    ids=lambda f: f.__name__,
)
def test_the_meaning_stays(function):
    run = compile_and_run(function, inputs(), CLEAN)
    assert differences(run, function, inputs()) == []
    assert wrong_graph(run) == []


@pytest.fixture
def draw():
    return Sketch(torch.arange(24).view(4, 6))


def test_one_copy_does_not_become_two(draw):
    turned = draw(aten.permute.default, draw.inputs[0], [1, 0])
    flat = draw(aten.reshape.default, turned, [24])
    back = [draw(aten.neg.default, draw(aten.reshape.default, flat, [n, 24 // n])) for n in (2, 3)]
    both = draw(aten.cat.default, [draw(aten.reshape.default, x, [24]) for x in back])
    assert len(draw.run(both, passes=CLEAN).calls("reshape")) == 5


def test_places_in_memory_are_not_indices(draw):
    base = draw(aten.mul.Tensor, draw.inputs[0], 2)
    turned = draw(aten.permute.default, draw(aten.reshape.default, base, [6, 4]), [1, 0])
    scatter = draw(aten.slice_scatter.default, base, turned, 0, 0, 4)
    placed = draw(aten.as_strided.default, scatter, [24], [1], 0)
    assert draw.run(draw(aten.neg.default, placed), passes=CLEAN).calls("slice_scatter")


def test_a_graph_that_writes_in_place_is_left_alone(draw):
    source = draw(aten.mul.Tensor, draw.inputs[0], 2)
    same = draw(aten.slice.Tensor, source, 0, 0, 4)
    draw(torch.ops.mlalab_test.scale.default, source, 3)
    run = draw.run(draw(aten.neg.default, same), passes=CLEAN)
    assert str(run.after) == str(run.before)


@settings(max_examples=20)
@given(st.randoms(use_true_random=False))
def test_random_programs_keep_their_meaning(random):
    program = write(random.randrange)
    run = compile_and_run(program.function, program.make_inputs(), CLEAN)
    assert differences(run, program, program.make_inputs()) == []
    assert wrong_graph(run) == []
