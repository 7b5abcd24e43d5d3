"""From a function to a pattern: wildcards, symbolic sizes, keywords, copies, further outputs."""

from __future__ import annotations

import pytest
import torch
from torch import fx
from torch._inductor import pattern_matcher as pm
from torch._subclasses import FakeTensorMode

from mlalab.graphs import aten
from mlalab.passes import tracing
from tests.passes.mutants import OTHER, lowered

NAMES = ("x", "y")


def pattern_from(function, tensors, wildcards=(), *, blind=False):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = [mode.from_tensor(x) for x in tensors]
        gm = tracing.trace(function, fake, wildcards)
    return tracing.to_pattern(gm, NAMES, wildcards, blind=blind)


def match(pattern, gm, target):
    """Return the match at the only node that calls `target`."""
    (anchor,) = gm.graph.find_nodes(op="call_function", target=target)
    return pattern.match(anchor)


def two(x, y):
    """Two results that share a product; the first is the anchor."""
    product = x * y
    return product.sum(-1), product.exp()


X, Y = torch.randn(3, 4), torch.randn(3, 4)


@pytest.fixture
def graph():
    gm, _ = lowered(two, (X, Y))
    return gm


def test_a_function_matches_its_own_graph(graph):
    found = match(pattern_from(two, (X, Y)), graph, aten.sum.dim_IntList)
    assert [found.kwargs[name].op for name in NAMES] == ["placeholder", "placeholder"]
    assert [node.target for node in found.output_nodes()] == [
        aten.sum.dim_IntList,
        aten.exp.default,
    ]


@pytest.mark.parametrize("blind", [False, True])
def test_only_a_blind_pattern_ignores_sizes_and_constants(graph, blind):
    other = (torch.randn(5, 4), torch.randn(5, 4))
    found = match(pattern_from(two, other, blind=blind), graph, aten.sum.dim_IntList)
    assert bool(found) == blind

    def first_dimension(x, y):
        product = x * y
        return product.sum(0), product.exp()

    found = match(pattern_from(first_dimension, (X, Y), blind=blind), graph, aten.sum.dim_IntList)
    assert bool(found) == blind


@pytest.mark.parametrize("blind", [False, True])
def test_keywords_that_the_pattern_lacks_are_a_difference(blind):
    def plain(x, y):
        return (x + y,)

    gm, _ = lowered(lambda x, y: (torch.add(x, y, alpha=2),), (X, Y))
    assert not match(pattern_from(plain, (X, Y), blind=blind), gm, aten.add.Tensor)


@pytest.mark.parametrize("blind", [False, True])
def test_a_wildcard_string_binds_what_it_finds(blind):
    def write(x, y, *, layer_name):
        return (torch.ops.mlalab.unified_mla_kv_cache_update(x, y, layer_name, "auto", x[0, 0]),)

    tensors = torch.randn(5, 16), torch.randn(5, 8)
    pattern = pattern_from(write, tensors, ("layer_name",), blind=blind)
    gm, _ = lowered(lambda x, y: write(x, y, layer_name=OTHER), tensors)
    op = torch.ops.mlalab.unified_mla_kv_cache_update.default
    assert match(pattern, gm, op).kwargs["layer_name"] == OTHER


def test_a_symbolic_size_is_a_wildcard_each_time_it_occurs():
    def halves(x, y):
        rows = y.size(0)
        return (x.reshape(2, rows // 2, 4).cos() + y.reshape(2, rows // 2, 4),)

    tensors = (torch.randn(6, 4), torch.randn(6, 4))
    gm, _ = lowered(halves, tensors, dynamic=(0, 1))
    values = [n.meta["val"] for n in gm.graph.nodes if n.op == "placeholder"]
    tensors = [v for v in values if isinstance(v, torch.Tensor)]
    found = []
    # Which of the two comes first in the graph depends on torch's version.
    for given in (tensors, tensors[::-1]):
        with given[0].fake_mode:
            traced = tracing.trace(halves, given, ())
        pattern = tracing.to_pattern(traced, NAMES, (), blind=False)
        found.append(bool(match(pattern, gm, aten.add.Tensor)))
    assert any(found)


def test_a_copy_is_optional_while_sizes_are_unknown():
    def repeated(x, y):
        return (x.unsqueeze(1).expand(-1, 2, -1).reshape(x.size(0), 8) * y,)

    some, none = ((torch.randn(n, 4), torch.randn(n, 8)) for n in (3, 0))
    graphs = [lowered(repeated, tensors)[0] for tensors in (some, none)]
    copies = [
        len(gm.graph.find_nodes(op="call_function", target=aten.clone.default)) for gm in graphs
    ]
    assert copies == [1, 0]
    for tensors, blind, expected in (
        (some, True, [True, True]),
        (some, False, [True, False]),
        (none, False, [False, True]),
    ):
        pattern = pattern_from(repeated, tensors, blind=blind)
        assert [bool(match(pattern, gm, aten.mul.Tensor)) for gm in graphs] == expected


def test_a_reader_outside_the_pattern_is_no_difference():
    gm, _ = lowered(lambda x, y: (*two(x, y), (x * y).relu()), (X, Y))
    product = gm.graph.find_nodes(op="call_function", target=aten.mul.Tensor)[0]
    for other in gm.graph.find_nodes(op="call_function", target=aten.mul.Tensor)[1:]:
        other.replace_all_uses_with(product)
    assert len(product.users) == 3
    assert match(pattern_from(two, (X, Y)), gm, aten.sum.dim_IntList)


def test_a_further_output_is_sought_near_the_first():
    """Layers that share a factor, as layers share their cos: each finds its own product."""

    def layers(x, y):
        shared = y.cos()
        return [part for i in range(4) for part in ((x * i * shared).sum(-1), (x + i) * shared)]

    def pattern(x, y):
        shared = y.cos()
        return (x * shared).sum(-1), x * shared

    gm, _ = lowered(layers, (X, Y))
    found = pattern_from(pattern, (X, Y))
    anchors = gm.graph.find_nodes(op="call_function", target=aten.sum.dim_IntList)
    order = {node: index for index, node in enumerate(gm.graph.nodes)}
    for anchor in anchors:
        result = found.match(anchor)
        if result:
            first, second = result.output_nodes()
            between = [n for n in anchors if order[second] < order[n] < order[first]]
            assert between == []


def test_one_node_is_never_two_outputs():
    def pattern(x, y):
        shared = y.cos()
        key = y * shared
        return key.sum(-1), x * shared, key

    def key_only(x, y):
        key = y * y.cos()
        return key.sum(-1), key

    gm, _ = lowered(pattern, (X, Y))
    assert match(pattern_from(pattern, (X, Y)), gm, aten.sum.dim_IntList)
    gm, _ = lowered(key_only, (X, Y))
    assert not match(pattern_from(pattern, (X, Y)), gm, aten.sum.dim_IntList)


def test_a_replacement_takes_its_strings_after_its_tensors():
    def write(x, y, *, layer_name, kv_cache_dtype):
        op = torch.ops.mlalab.unified_mla_kv_cache_update
        return (op(x, y, layer_name, kv_cache_dtype, x[0, 0]),)

    names = ("layer_name", "kv_cache_dtype")
    with FakeTensorMode() as mode:
        gm = tracing.trace(write, [mode.from_tensor(X), mode.from_tensor(Y)], names)
    gm = tracing.with_wildcard_inputs(gm, names)
    placeholders = [n.name for n in gm.graph.nodes if n.op == "placeholder"]
    assert placeholders[2:] == list(names)
    (call,) = gm.graph.find_nodes(
        op="call_function", target=torch.ops.mlalab.unified_mla_kv_cache_update.default
    )
    assert [str(a) for a in call.args[2:4]] == list(names)
    assert all(isinstance(a, fx.Node) for a in call.args[2:4])


def test_torch_still_has_what_the_patterns_build_on():
    assert issubclass(tracing.Call, pm.CallFunction)
    assert pm.MULTIPLE is not None
    assert hasattr(pm.MultiOutputPattern, "_match_from_anchors")


def test_what_a_decomposition_writes_in_place_is_functional_in_a_pattern():
    def norm(x, y):
        return torch.nn.functional.rms_norm(x, y.shape, y, 1e-6)

    tensors = (torch.randn(3, 4).bfloat16(), torch.randn(4).bfloat16())
    gm, _ = lowered(norm, tensors)
    (anchor,) = gm.graph.find_nodes(op="call_function", target=aten.add.Scalar)
    (last,) = gm.graph.output_node().args[0]
    assert anchor < last
    assert pattern_from(norm, tensors).match(last)
