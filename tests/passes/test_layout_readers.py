"""Readers that see how a tensor lies: they see after the fusion what they saw before it."""

from __future__ import annotations

import pytest
import torch

from mlalab.graphs import aten, value_of
from mlalab.passes.layout_readers import keep_dense
from tests.passes import awkward
from tests.passes.models import FUSED, PLUMBING, fuse, one, stand, targets
from tests.passes.toy_harness import Sketch

# Few numbers have one order: of five tokens the sums agree whatever lies where.
TOKENS = 37


@pytest.mark.parametrize(
    ("model", "dynamic"),
    [(awkward.rotated_key_summed, False), (awkward.rotated_query_summed, True)],
)
def test_what_is_summed_is_copied_where_it_would_lie_otherwise(model, dynamic):
    trace = fuse(stand(one(model), tokens=TOKENS), dynamic=dynamic)
    assert FUSED in targets(trace)
    assert targets(trace).count("aten.clone") == 1


@pytest.mark.parametrize("model", [awkward.rotated_key_by_place, awkward.rotated_key_and_itself])
def test_what_sees_places_or_leaves_the_graph_lies_as_it_did(model):
    trace = fuse(stand(one(model), tokens=TOKENS)).check()
    assert trace.ok and FUSED in targets(trace)
    copies = [node for node in trace[-1].nodes if node.target == "aten.clone"]
    assert copies and all(copy.stride in ((16, 16, 1), (3, 1)) for copy in copies)


def test_what_lay_so_before_is_summed_as_it_lies():
    model = one(awkward.rotated_key_summed)
    trace = fuse(stand(model, tokens=TOKENS, rope_custom_op=True))
    assert FUSED in targets(trace)
    assert not set(PLUMBING) & set(targets(trace))


@pytest.fixture
def gaps():
    """A value that leaves gaps between its rows."""
    sketch = Sketch(torch.arange(48).view(4, 12))
    return value_of(sketch(aten.slice.Tensor, sketch.inputs[0], 1, 3, 9))


def readers(sketch, node):
    """Add what reads a node of `[4, 6]`: a sum, a view that is summed, a view, and a product."""
    view = sketch(aten.reshape.default, node, [6, 4])
    summed = sketch(aten.sum.default, node), sketch(aten.mean.dim, view, [0])
    return summed[0], view, sketch(aten.unsqueeze.default, node, 0), sketch(aten.neg.default, node)


def test_only_sums_read_the_copy(gaps):
    sketch = Sketch(torch.arange(24.0).view(4, 6))
    node = sketch(aten.mul.Tensor, sketch.inputs[0], 2)
    total, view, other_view, negated = readers(sketch, node)
    keep_dense(node, gaps)
    (copy,) = (n for n in sketch.graph.nodes if n.target is aten.clone.default)
    assert set(copy.users) == {total, view}
    assert set(node.users) == {copy, other_view, negated}
    assert value_of(copy).stride() == (6, 1)


def test_nothing_is_copied_without_a_need(gaps):
    sketch = Sketch(torch.arange(24.0).view(4, 6), torch.arange(24.0).view(6, 4))
    dense = sketch(aten.mul.Tensor, sketch.inputs[0], 2)
    turned = sketch(aten.permute.default, sketch.inputs[1], [1, 0])
    for node in (dense, turned):
        readers(sketch, node)
    unread = sketch(aten.neg.default, dense)
    before = list(sketch.graph.nodes)
    keep_dense(dense, value_of(unread))
    keep_dense(turned, gaps)
    keep_dense(unread, gaps)
    assert list(sketch.graph.nodes) == before
