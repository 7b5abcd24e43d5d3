"""A replacement stands behind its inputs and touches the cache when the original would have."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from mlalab.graphs import aten, value_of, wrapped_op
from mlalab.passes import placing
from mlalab.passes.driver import verify
from mlalab.passes.mla_rope_kvcache_cat import MLARoPEKVCacheCatFusionPass
from mlalab.passes.rope_forms import custom_rope, native_rope, ops
from mlalab.rope import RotaryEmbedding
from tests.passes.mutants import LAYER, OTHER, lowered, run, tensors_of

FUSION = MLARoPEKVCacheCatFusionPass
ROPES = {
    "custom op": custom_rope(is_neox=False),
    "native": native_rope(RotaryEmbedding, is_neox=False, in_fp32=True),
}
each_rope = pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)


FUSED, UPDATE = "fused_rope_unified_mla_kv_cache_update", "unified_mla_kv_cache_update"


def write(kv_c, k_pe, scale, layer=LAYER):
    return ops.unified_mla_kv_cache_update(kv_c, k_pe, layer, "auto", scale)


def apply(function, prepare=lambda graph: None):
    """Fuse the graph of a function; what it computes, the cache included, must stay the same.

    Args:
        prepare: changes the order of the graph's nodes first.
    """
    tensors = tensors_of(FUSION.variants[0])
    gm, inputs = lowered(function, tensors)
    prepare(gm.graph)
    gm.graph.lint()
    expected = run(fx.Interpreter(gm).run, inputs)
    result = FUSION.apply(gm.graph)
    verify(gm.graph, FUSION.name)
    found = run(fx.Interpreter(gm).run, inputs)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    return gm.graph, result


def names(graph):
    """Return the mlalab ops in order."""
    calls = [n for n in graph.nodes if n.op == "call_function"]
    ops_called = [wrapped_op(node) or node.target for node in calls]
    return [op._opname for op in ops_called if getattr(op, "namespace", None) == "mlalab"]


def anchors(graph):
    return graph.find_nodes(op="call_function", target=FUSION.anchor)


@each_rope
def test_inputs_computed_late_are_waited_for(rope):
    def function(positions, q_pe, k_pe, kv_c, table, scale):
        q_rot, k_rot = rope(positions, q_pe, k_pe, table)
        return write(kv_c.exp(), k_rot, scale), q_rot.cos(), k_rot

    def latent_last(graph):
        (anchor,) = anchors(graph)
        for node in (anchor.args[0], anchor):
            graph.output_node().prepend(node)

    graph, result = apply(function, latent_last)
    assert len(result.matches) == 1
    assert names(graph) == [FUSED]


def test_a_matched_node_that_somebody_else_reads_moves_with_the_rest():
    """The squeezed key belongs to the pattern, stands early, and another op reads it."""

    def function(positions, q_pe, k_pe, kv_c, table, scale):
        q_rot, k_rot = ROPES["custom op"](positions, q_pe, k_pe, table)
        flat = k_rot.squeeze(1)
        return write(kv_c.exp(), flat, scale), q_rot, flat.cos()

    def latent_last(graph):
        (anchor,) = anchors(graph)
        after = [anchor.args[0], anchor, *(n for n in graph.nodes if n.target == aten.cos.default)]
        for node in after:
            graph.output_node().prepend(node)

    graph, result = apply(function, latent_last)
    assert len(result.matches) == 1
    assert names(graph) == [FUSED]


def crossing(rope, layer):
    """Return a function with two writes, and what puts the first of them after the rope."""

    def function(positions, q_pe, k_pe, kv_c, table, scale):
        first = write(kv_c.exp(), k_pe, scale)
        q_rot, k_rot = rope(positions, q_pe, k_pe, table)
        return first, write(kv_c, k_rot, scale, layer), q_rot, k_rot

    def rope_first(graph):
        first, second = anchors(graph)
        second.prepend(first)

    return function, rope_first


@each_rope
def test_a_write_of_the_same_layer_in_between_stays_before(rope):
    graph, result = apply(*crossing(rope, LAYER))
    assert len(result.matches) == 1
    assert names(graph) == [UPDATE, FUSED]


@each_rope
def test_a_write_of_another_layer_in_between_is_passed(rope):
    graph, result = apply(*crossing(rope, OTHER))
    assert len(result.matches) == 1
    assert names(graph) == [FUSED, UPDATE]


@each_rope
def test_without_that_care_the_cache_would_end_up_wrong(rope, monkeypatch):
    monkeypatch.setattr(placing, "_same_state", lambda node, match: False)
    with pytest.raises(AssertionError):
        apply(*crossing(rope, LAYER))


@each_rope
@pytest.mark.parametrize("layer", [LAYER, OTHER])
def test_a_use_of_the_cache_that_reads_a_result_and_comes_first_is_an_obstacle(rope, layer):
    def function(positions, q_pe, k_pe, kv_c, table, scale):
        q_rot, k_rot = rope(positions, q_pe, k_pe, table)
        first = write(q_rot.flatten(1)[:, : kv_c.size(1)], k_pe, scale)
        return first, write(kv_c, k_rot, scale, layer), q_rot, k_rot

    _, result = apply(function)
    assert len(result.matches) == (layer == OTHER)
    reasons = " ".join(refusal.reason for refusal in result.refusals)
    assert ("uses the state of the same layer first, and reads" in reasons) == (layer == LAYER)


@pytest.mark.parametrize("layer", [LAYER, OTHER])
def test_an_input_that_waits_for_a_later_use_of_the_cache_is_an_obstacle(layer):
    def function(positions, q_pe, k_pe, kv_c, table, scale):
        later = write(kv_c.exp(), k_pe, scale)
        q_rot, k_rot = ROPES["native"](positions, q_pe + later.sum(), k_pe, table)
        return write(kv_c, k_rot, scale, layer), later, q_rot, k_rot

    def later_last(graph):
        later = next(n for n in anchors(graph) if n.args[1].op == "placeholder")
        after = {later}
        for node in graph.nodes:
            if not after.isdisjoint(node.all_input_nodes) and node.op == "call_function":
                after.add(node)
        for node in [n for n in graph.nodes if n in after]:
            graph.output_node().prepend(node)

    _, result = apply(function, later_last)
    assert len(result.matches) == (layer == OTHER)
    reasons = " ".join(refusal.reason for refusal in result.refusals)
    assert ("used the state of the same layer" in reasons) == (layer == LAYER)


@each_rope
def test_a_write_in_place_in_between_is_an_obstacle(rope):
    def function(positions, q_pe, k_pe, kv_c, table, scale):
        q_rot, k_rot = rope(positions, q_pe, k_pe, table)
        return write(kv_c.exp(), k_rot, scale), q_rot, k_rot

    def write_in_place(graph):
        (anchor,) = anchors(graph)
        latent = anchor.args[0]
        with graph.inserting_before(anchor):
            zero = graph.call_function(aten.zero_.default, (latent,))
        zero.meta["val"] = value_of(latent)

    _, result = apply(function, write_in_place)
    assert [r.reason for r in result.refusals] == ["zero__default, in between, writes in place"]
