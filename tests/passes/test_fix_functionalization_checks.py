"""Without each safety check some program is wrong: each is needed, and the tests would see it."""

from __future__ import annotations

import operator

import pytest
import torch
from torch._higher_order_ops.auto_functionalize import auto_functionalized

from mlalab.errors import VerifyError
from mlalab.passes import fix_functionalization as fix
from mlalab.passes import scatters, values
from mlalab.passes.aliasing import AliasIndex, Region
from tests.passes.test_fix_functionalization import CASES
from tests.passes.toy_harness import Sketch, compile_and_run, differences, wrong_graph
from tests.passes.toy_ops import ops

aten = torch.ops.aten


def by_hand(draw):
    """Return a run of a graph written by hand, which asserts that it keeps its meaning."""

    def run():
        sketch = Sketch(torch.arange(48).view(4, 12))
        q = sketch(aten.mul.Tensor, sketch.inputs[0], 3)
        sketch.run(*(sketch(aten.neg.default, x) for x in draw(sketch, q)))

    return run


def compiled(program, inputs):
    run = compile_and_run(program, inputs)
    problems = differences(run, program, inputs) + wrong_graph(run)
    assert not problems, problems


def case(name):
    return lambda: compiled(CASES[name].program, [torch.randint(-99, 99, (4, 6))])


def scaled(draw, x):
    call = draw(auto_functionalized, ops.scale.default, x=x, by=3)
    return draw(operator.getitem, call, 1)


def late(draw, x, y):
    call = draw(auto_functionalized, ops.late.default, x=x, y=y)
    return [draw(operator.getitem, call, 1)]


def overlapping_arguments(draw, q):
    return late(draw, q, draw(aten.slice.Tensor, q, 0, 1, 4))


def one_argument_twice(draw, q):
    return late(draw, q, q)


def put_back_elsewhere(draw, q):
    item = scaled(draw, draw(aten.slice.Tensor, q, 1, 0, 4))
    return [draw(aten.slice_scatter.default, q, item, 1, 1, 5)]


def half_put_back(draw, q):
    item = scaled(draw, draw(aten.slice.Tensor, q, 1, 0, 4))
    half = draw(aten.slice.Tensor, item, 1, 0, 2)
    return [draw(aten.slice_scatter.default, q, half, 1, 0, 2)]


def overwritten_elsewhere(draw, q):
    item = scaled(draw, draw(aten.slice.Tensor, q, 1, 0, 4))
    zeros = draw(aten.zeros.default, [4, 2], dtype=torch.int64)
    return [item, draw(aten.slice_scatter.default, q, zeros, 1, 0, 2)]


def seen_as_another_dtype(draw, q):
    halves = draw(aten.slice.Tensor, draw(aten.view.dtype, q, torch.int32), 1, 2, 4)
    return [scaled(draw, draw(aten.slice.Tensor, q, 1, 1, 2)), halves]


def read_by_place(draw, q):
    item = scaled(draw, draw(aten.slice.Tensor, q, 1, 2, 8))
    return [draw(aten.as_strided.default, item, [2], [3], 2), q]


def expanded(draw, q):
    call = draw(auto_functionalized, ops.stamp.default, x=draw(aten.expand.default, q, [3, 4, 12]))
    return [draw(operator.getitem, call, 1), q]


def view_of_a_dropped_clone(draw, q):
    clone = draw(aten.clone.default, q)
    flat, corner = draw(aten.reshape.default, clone, [-1]), draw(aten.diagonal.default, clone)
    clone.replace_all_uses_with(q)
    draw.graph.erase_node(clone)
    return [scaled(draw, flat), corner]


def returned_with_gaps(a):
    ops.scale(a, 3)
    return (a[1:],)


def item_of_a_call_that_stays(a):
    ops.exchange(a, a)
    ops.scale(a, 3)
    return (a[1:],)


def with_gaps(program):
    return lambda: compiled(program, [torch.arange(48).view(4, 12)[:, ::2]])


def always(value):
    return lambda *_, **__: value


def in_elements(value):
    key, offset = value.untyped_storage()._cdata, value.storage_offset()
    return Region(key, offset, tuple(value.shape), tuple(value.stride()))


KEPT_APART = case("results_that_eager_mode_keeps_apart")
NEEDED = {
    "later readers": (AliasIndex, "readers_after", always(()), case("old_value_read_later")),
    "overlap": (Region, "overlaps", always(False), case("old_value_read_later")),
    "overlapping arguments": (fix, "_overlap", always(False), by_hand(overlapping_arguments)),
    "arguments passed twice": (fix, "_nodes_in", always([]), by_hand(one_argument_twice)),
    "inputs": (AliasIndex, "aliases", always([]), case("input_that_must_not_change")),
    "place of a chain": (Region, "same_as", always(True), by_hand(put_back_elsewhere)),
    "whole of a chain": (scatters, "_WHOLE", {aten.slice.Tensor}, by_hand(half_put_back)),
    "extent overwritten": (fix, "only_overwrites", always(True), by_hand(overwritten_elsewhere)),
    "bytes": (Region, "of", staticmethod(in_elements), by_hand(seen_as_another_dtype)),
    "own overlap": (Region, "self_overlapping", False, by_hand(expanded)),
    "place in memory": (fix, "layout_readers", always(()), by_hand(read_by_place)),
    "how results lie": (fix, "layout_readers", always(()), with_gaps(returned_with_gaps)),
    "results apart": (fix, "gives_new_sharing", always(False), KEPT_APART),
    "calls that stay": (
        *(fix, "_stays_functional", always(False)),
        with_gaps(item_of_a_call_that_stays),
    ),
    "stale views": (values, "_is_stale", always(False), by_hand(view_of_a_dropped_clone)),
    "stale eager inputs": (
        *(values, "_drop_stale_eager_inputs", always(None)),
        case("results_kept_apart_at_an_offset"),
    ),
}
"""Check → what to replace, by what, and a program that is wrong then."""


@pytest.mark.parametrize("name", NEEDED)
def test_every_check_is_needed(name, monkeypatch):
    owner, attribute, replacement, program = NEEDED[name]
    program()
    monkeypatch.setattr(owner, attribute, replacement)
    with pytest.raises(
        (AssertionError, VerifyError), match=r"differs|share memory|lie otherwise|alias|memory than"
    ):
        program()
