"""Graphs that a tracer would not write, or not today; numbers count the source's known bugs."""

from __future__ import annotations

import operator

import pytest
import torch
from torch._higher_order_ops.auto_functionalize import auto_functionalized

from mlalab.passes.fix_functionalization import FixFunctionalizationPass
from tests.passes.toy_harness import Sketch
from tests.passes.toy_ops import ops

aten = torch.ops.aten
MAX = 2**63 - 1


@pytest.fixture
def draw():
    return Sketch(torch.arange(48).view(4, 12))


@pytest.fixture
def q(draw):
    """A query as the layers make it: a view of what a projection gave."""
    return draw(aten.mul.Tensor, draw.inputs[0], 3)


def heads(draw, q):
    return draw(aten.reshape.default, q, [4, 2, 6])


def part(draw, base, start=2, end=MAX):
    return draw(aten.slice.Tensor, base, 2, start, end)


def scale(draw, x, index=1):
    call = draw(auto_functionalized, ops.scale.default, x=x, by=3)
    return call, draw(operator.getitem, call, index)


def chain(draw, a, b, item, start=2, end=MAX):
    copied = draw(aten.copy.default, part(draw, b, start, end), item)
    return draw(aten.slice_scatter.default, a, copied, 2, start, end)


def outcome(run):
    assert all(run.reasons), "a reason is never empty"
    return (len(run.calls("clone")), len(run.calls("_scatter")), len(run.calls("auto_func")))


IN_PLACE, CLONED, LEFT = (0, 0, 0), (1, 1, 0), (0, 1, 1)


def test_the_chain_is_folded(draw, q):
    a, b = heads(draw, q), heads(draw, q)
    _, item = scale(draw, part(draw, b))
    run = draw.run(draw(aten.neg.default, chain(draw, a, b, item)))
    assert outcome(run) == IN_PLACE
    # The scatter, the copy and the copy's target are gone, and so is everything only they read.
    assert not run.calls("copy")
    assert len(run.calls("slice")) == 1


def test_no_chain_at_all(draw, q):  # [2]
    b = heads(draw, q)
    _, item = scale(draw, part(draw, b))
    assert outcome(draw.run(draw(aten.neg.default, item))) == IN_PLACE


def test_several_chains(draw, q):  # [2]
    a, b, c = heads(draw, q), heads(draw, q), heads(draw, q)
    _, item = scale(draw, part(draw, b))
    first, second = chain(draw, a, b, item), chain(draw, c, b, item)
    third = draw(aten.slice_scatter.default, c, item, 2, 2, MAX)
    total = draw(aten.add.Tensor, draw(aten.add.Tensor, first, second), third)
    assert outcome(draw.run(total)) == IN_PLACE


def test_items_missing_or_twice(draw, q):  # [3]
    b = heads(draw, q)
    x, z = part(draw, b, 0, 3), part(draw, b, 3)
    call = draw(auto_functionalized, ops.optional.default, x=x, y=None, z=z)
    twice = [draw(operator.getitem, call, 3) for _ in range(2)]
    results = [draw(operator.getitem, call, 0) for _ in range(2)]
    run = draw.run(*(draw(aten.neg.default, n) for n in (*twice, *results)))
    assert outcome(run) == IN_PLACE


def test_two_results_each_read_twice(draw, q):
    call = draw(auto_functionalized, ops.extremes.default, x=q)
    items = [draw(operator.getitem, call, i) for i in (0, 1, 1, 0, 2)]
    assert outcome(draw.run(*(draw(aten.neg.default, n) for n in items))) == IN_PLACE


@pytest.mark.parametrize("same_node", [True, False])  # [4]
def test_the_other_view_is_alive(draw, q, same_node):
    b = heads(draw, q)
    a = b if same_node else heads(draw, q)
    before = draw(aten.neg.default, a)
    _, item = scale(draw, part(draw, b))
    run = draw.run(before, draw(aten.neg.default, chain(draw, a, b, item)))
    assert outcome(run) == IN_PLACE


def test_the_other_view_is_read_later(draw, q):  # [4] [7]
    a, b = heads(draw, q), heads(draw, q)
    _, item = scale(draw, part(draw, b))
    new = draw(aten.neg.default, chain(draw, a, b, item))
    run = draw.run(new, draw(aten.neg.default, a))
    assert outcome(run) == CLONED
    assert "still reads the old value" in run.reasons[0]


def test_other_readers_of_item_and_copy(draw, q):  # [5]
    a, b = heads(draw, q), heads(draw, q)
    _, item = scale(draw, part(draw, b))
    copied = draw(aten.copy.default, part(draw, b), item)
    scatter = draw(aten.slice_scatter.default, a, copied, 2, 2, MAX)
    run = draw.run(*(draw(aten.neg.default, n) for n in (scatter, copied, item)))
    assert outcome(run) == IN_PLACE
    assert len(run.calls("aten.copy")) == 1


@pytest.mark.parametrize(("start", "end"), [(0, 4), (1, 5)])  # [6]
def test_put_back_somewhere_else(draw, q, start, end):
    a, b = heads(draw, q), heads(draw, q)
    _, item = scale(draw, part(draw, b))
    run = draw.run(draw(aten.neg.default, chain(draw, a, b, item, start, end)))
    assert outcome(run) == CLONED


def test_bounds_of_the_copys_target_do_not_matter(draw, q):  # [6]: a copy overwrites it whole
    a, b = heads(draw, q), heads(draw, q)
    _, item = scale(draw, part(draw, b))
    copied = draw(aten.copy.default, part(draw, b, 0, 4), item)
    scatter = draw(aten.slice_scatter.default, a, copied, 2, 2, MAX)
    assert outcome(draw.run(draw(aten.neg.default, scatter))) == IN_PLACE


def test_put_back_into_another_tensor(draw, q):
    b, other = heads(draw, q), heads(draw, draw(aten.mul.Tensor, q, 2))
    _, item = scale(draw, part(draw, b))
    scatter = draw(aten.slice_scatter.default, other, item, 2, 2, MAX)
    assert outcome(draw.run(draw(aten.neg.default, scatter))) == (0, 1, 0)


def test_half_of_a_result_put_back(draw, q):
    b = heads(draw, q)
    _, item = scale(draw, part(draw, b))
    half = draw(aten.slice.Tensor, item, 2, 0, 2)
    scatter = draw(aten.slice_scatter.default, b, half, 2, 2, 4)
    assert outcome(draw.run(draw(aten.neg.default, scatter))) == CLONED


def test_two_versions_of_one_tensor(draw, q):
    b = heads(draw, q)
    call = draw(auto_functionalized, ops.exchange.default, x=part(draw, b, 0, 2), y=part(draw, b))
    items = [draw(operator.getitem, call, i) for i in (1, 2)]
    first = draw(aten.slice_scatter.default, b, items[0], 2, 0, 2)
    second = draw(aten.slice_scatter.default, b, items[1], 2, 2, MAX)
    run = draw.run(*(draw(aten.neg.default, n) for n in (first, second)))
    assert outcome(run)[0] == 2


def test_a_disjoint_part_is_read_later(draw, q):  # [7]: the nope columns
    b = heads(draw, q)
    nope = part(draw, b, 0, 2)
    _, item = scale(draw, part(draw, b))
    run = draw.run(draw(aten.neg.default, item), draw(aten.neg.default, nope))
    assert outcome(run) == IN_PLACE


def test_an_earlier_read_of_a_later_written_result(draw, q):
    """The plain call's own result is memory too: written, while a later node reads it."""
    call = draw(auto_functionalized, ops.optional.default, x=q, y=None, z=None)
    result = draw(operator.getitem, call, 0)
    _, item = scale(draw, draw(aten.reshape.default, result, [-1]))
    run = draw.run(*(draw(aten.neg.default, n) for n in (item, result)))
    assert run.reasons == ["x: neg_default_1 still reads the old value of optional_default"]


def test_the_target_of_a_copy_is_an_input(draw, q):
    """Dropping the copy must not drop the graph's input with it."""
    draw = Sketch(torch.arange(48).view(4, 12), torch.zeros(4, 12, dtype=torch.int64))
    q = draw(aten.mul.Tensor, draw.inputs[0], 3)
    _, item = scale(draw, q)
    copied = draw(aten.copy.default, draw.inputs[1], item)
    scatter = draw(aten.slice_scatter.default, q, copied, 1, 0, MAX)
    run = draw.run(draw(aten.neg.default, scatter))
    assert len(run.after.find_nodes(op="placeholder")) == 2
    assert outcome(run) == IN_PLACE


def test_used_whole_is_left_alone(draw, q):
    call, item = scale(draw, q)
    run = draw.run(call, item)
    assert run.reasons == ["its result is used whole by output, not item by item"]
    assert str(run.after) == str(run.before)


@pytest.mark.parametrize("index", [-1, 0])
def test_results_that_no_tracer_reads_are_left_alone(draw, q, index):
    _, item = scale(draw, q, index)
    run = draw.run(item)
    assert outcome(run) == (0, 0, 1)
    assert str(run.after) == str(run.before)


@pytest.mark.parametrize(
    "view", [(aten.expand.default, [3, 4, 12]), (aten.unfold.default, 1, 3, 1)]
)
def test_memory_that_names_an_element_twice_is_left_alone(draw, q, view):
    op, *args = view
    x = draw(op, q, *args)
    call = draw(auto_functionalized, ops.stamp.default, x=x)
    run = draw.run(draw(aten.neg.default, draw(operator.getitem, call, 1)))
    assert "two indices may name one element" in run.reasons[0]
    assert str(run.after) == str(run.before)


def test_an_as_strided_scatter_is_left_alone(draw, q):
    _, item = scale(draw, part(draw, heads(draw, q)))
    zero = draw(aten.zeros.default, [2], dtype=torch.int64)
    scatter = draw(aten.as_strided_scatter.default, item, zero, [2], [1], 3)
    run = draw.run(draw(aten.neg.default, scatter))
    assert "by its place in memory" in run.reasons[0]
    assert str(run.after) == str(run.before)


def test_views_that_a_pass_left_with_stale_values(draw, q):
    """What Inductor does when it drops a clone: its views still carry the clone's storage."""
    clone = draw(aten.clone.default, q)
    flat = draw(aten.reshape.default, clone, [-1])
    rows = draw(aten.diagonal.default, clone)
    clone.replace_all_uses_with(q)
    draw.graph.erase_node(clone)
    _, item = scale(draw, flat)
    run = draw.run(draw(aten.neg.default, item), draw(aten.neg.default, rows))
    assert run.reasons == ["x: neg_default_1 still reads the old value of diagonal_default"]


def test_the_pass_does_nothing_twice(draw, q):
    a, b = heads(draw, q), heads(draw, q)
    _, item = scale(draw, part(draw, b))
    run = draw.run(draw(aten.neg.default, chain(draw, a, b, item)))
    printed = str(run.after)
    assert FixFunctionalizationPass.apply(run.after).matches == ()
    assert str(run.after) == printed
