"""Odd graphs: each fuses, or is refused with a reason and left alone, and computes what eager does.

`fuse` compares every recorded graph, bit for bit, with the one before it, and the first with eager.
"""

from __future__ import annotations

import pytest
import torch
from torch._functorch.compile_utils import fx_graph_cse

from mlalab.passes.fusion import CleanUp, PassResult
from mlalab.passes.pipeline import PIPELINE
from tests.passes import awkward
from tests.passes.models import (
    FUSED,
    FUSION,
    PLUMBING,
    UPDATE,
    attend,
    fuse,
    one,
    project,
    rotate,
    stand,
    targets,
    write,
)

CLEAN = [
    awkward.rotated_query_read,
    awkward.rotated_key_read,
    awkward.rotated_key_summed_later,
    awkward.cos_read,
    awkward.query_scaled,
    awkward.query_scaled_in_place,
    awkward.query_born_3d,
    awkward.query_joined,
    awkward.key_squeezed,
    awkward.one_product_split,
]
"""Fused, and nothing is copied any more."""
COPIED = [
    awkward.query_read_before,
    awkward.query_read_after,
    awkward.key_read_after,
    awkward.rotated_parts_returned,
    awkward.rope_part_scaled_in_place,
    awkward.rotated_twice,
]
"""Fused; a reader of an old value, or a second writer, still needs a copy."""
NATIVE_ONLY = [awkward.key_rotated_first]
"""Fused from native RoPE; the custom op leaves a graph that no variant has."""
REFUSED = {
    awkward.key_scaled: "found aten.mul at mul",
    awkward.only_the_cache_is_rotated: "found no node that computes it",
    awkward.latent_needs_query: "depends on a result, so fusing would close a cycle",
    awkward.latent_needs_key: "depends on a result, so fusing would close a cycle",
    awkward.cache_written_last: "uses the state of the same layer first, and reads a result",
}
UNCOVERED = {
    awkward.half_rotated: "found aten.cat at cat",
    awkward.computed_in_fp64: "found prims.convert_element_type at convert_element_type",
}
"""Native forms of RoPE that no variant has."""

each_rope = pytest.mark.parametrize("custom_op", [False, True], ids=["native", "custom op"])


def named(models):
    return pytest.mark.parametrize("model", models, ids=lambda model: model.__name__)


def assert_fused(trace, layers=1):
    assert trace[FUSION].status == "applied"
    assert trace[FUSION].refusals == ()
    assert targets(trace).count(FUSED) == layers
    assert UPDATE not in targets(trace)


def assert_refused(trace, reason):
    step, before = trace[FUSION], trace.before(FUSION)
    assert step.status == "refused"
    assert [reason in refusal.reason for refusal in step.refusals] == [True]
    # Sorted: Inductor brings nodes nearer to their readers before any pass of ours runs.
    assert sorted(n.text for n in step.nodes) == sorted(n.text for n in before.nodes)
    assert (step.created, step.erased, step.rewired, step.matches) == ((), (), (), ())
    assert targets(trace).count(UPDATE) == 1


@each_rope
@named(CLEAN)
def test_fused_without_a_copy(model, custom_op):
    trace = fuse(stand(one(model), rope_custom_op=custom_op))
    assert_fused(trace)
    assert not set(PLUMBING) & set(targets(trace))


@each_rope
@named(COPIED)
def test_fused_with_copies_where_old_values_are_read(model, custom_op):
    assert_fused(fuse(stand(one(model), rope_custom_op=custom_op)))


@named(NATIVE_ONLY)
def test_fused_from_native_rope_only(model):
    assert_fused(fuse(stand(one(model))))
    assert_refused(fuse(stand(one(model), rope_custom_op=True)), "auto_functionalized")


@each_rope
@named(REFUSED)
def test_refused(model, custom_op):
    assert_refused(fuse(stand(one(model), rope_custom_op=custom_op)), REFUSED[model])


@named(UNCOVERED)
def test_an_uncovered_form_is_refused(model):
    assert_refused(fuse(stand(one(model))), UNCOVERED[model])


def test_a_permutation_before_rope_stays_before_the_fused_op():
    trace = fuse(stand(one(awkward.permuted)))
    assert_fused(trace)
    assert trace[FUSION].matches[0].variant == "deepseek_scaling/neox (fp32)"


@each_rope
def test_without_a_cache_update_there_is_nothing_to_match(custom_op):
    trace = fuse(stand(one(awkward.no_cache_update), rope_custom_op=custom_op))
    assert (trace[FUSION].status, trace[FUSION].refusals) == ("no match", ())


@pytest.mark.parametrize("dynamic", [False, True])
@named([awkward.query_scaled_in_place, awkward.query_read_after, awkward.key_squeezed])
def test_half_precision_and_any_token_count(model, dynamic):
    bench = stand(one(model), dtype=torch.bfloat16, kv_cache_dtype="fp8")
    assert_fused(fuse(bench, dynamic=dynamic))


# Several layers, or one several times.


def twice(layers, positions, hidden):
    (layer,) = layers
    return layer(positions, layer(positions, hidden))


def side_by_side(layers, positions, hidden):
    (layer,) = layers
    return layer(positions, hidden) + layer(positions, hidden * 2)


@each_rope
@named([twice, side_by_side])
def test_a_layer_called_twice_is_fused_twice(model, custom_op):
    trace = fuse(stand(model, rope_custom_op=custom_op))
    assert_fused(trace, 2)
    assert not set(PLUMBING) & set(targets(trace))


def one_rope(layers, positions, hidden):
    for layer in layers:
        q, kv_c, k_pe = project(layer, hidden)
        k_pe = rotate(layers[0], positions, q, k_pe)
        hidden = attend(layer, q, kv_c, k_pe, write(layer, kv_c, k_pe))
    return hidden


def ropes_first(layers, positions, hidden):
    parts = [(layer, *project(layer, hidden)) for layer in layers]
    turned = [(x, q, kv_c, rotate(layers[0], positions, q, k)) for x, q, kv_c, k in parts]
    dummies = [write(layer, kv_c, k_pe) for layer, _, kv_c, k_pe in turned]
    return [attend(*part, dummy) for part, dummy in zip(turned, dummies, strict=True)]


@each_rope
@named([one_rope, ropes_first])
def test_layers_that_share_one_rope(model, custom_op):
    trace = fuse(stand(model, 3, rope_custom_op=custom_op))
    assert_fused(trace, 3)
    layers = [f"model.layers.{i}.self_attn" for i in range(3)]
    assert [match.layer for match in trace[FUSION].matches] == layers


def merge_equal_nodes(graph):
    """Keep one of equal nodes, so that all layers read the same cos and sin."""
    merged = fx_graph_cse(graph)
    assert len(merged.nodes) < len(graph.nodes)
    for node in reversed(graph.nodes):
        graph.erase_node(node)
    graph.output(graph.graph_copy(merged, {}))
    for old, new in zip(merged.nodes, graph.nodes, strict=True):
        new.meta = old.meta
    return PassResult()


@named([one_rope, ropes_first])
def test_layers_that_share_cos_and_sin(model):
    merge = CleanUp(name="merge", note="", run=merge_equal_nodes)
    trace = fuse(stand(model, 3), passes=[merge, *PIPELINE])
    assert targets(trace, "merge").count("aten.index") == 1
    assert_fused(trace, 3)
    queries = [match.matched for match in trace[FUSION].matches]
    assert len({*queries[0]} & {*queries[1]} & {*queries[2]}) == 14


def crossed(layers, positions, hidden):
    first, second = layers
    q, kv_c, k_pe = project(first, hidden)
    k_pe = rotate(first, positions, q, k_pe)
    hidden = attend(first, q, kv_c, k_pe, write(first, kv_c, k_pe))
    q, kv_c, unused = project(second, hidden)
    unused = rotate(second, positions, q, unused)
    return attend(second, q, kv_c, k_pe, write(second, kv_c, k_pe)), unused.clone()


def exchanged(layers, positions, hidden):
    parts = [project(layers[0], hidden), project(layers[1], hidden * 2)]
    keys = [rotate(layer, positions, q, k) for layer, (q, _, k) in zip(layers, parts, strict=True)]
    results = []
    for layer, (q, _, _), (_, kv_c, _), k_pe in zip(
        layers, parts, parts[::-1], keys[::-1], strict=True
    ):
        results.append(attend(layer, q, kv_c, k_pe, write(layer, kv_c, k_pe)))
    return results


@each_rope
def test_a_key_that_two_layers_write_is_fused_once(custom_op):
    trace = fuse(stand(crossed, 2, rope_custom_op=custom_op))
    assert [match.layer for match in trace[FUSION].matches] == ["model.layers.0.self_attn"]
    (refusal,) = trace[FUSION].refusals
    assert refusal.layer == "model.layers.1.self_attn"
    assert "close a cycle" in refusal.reason


@each_rope
def test_keys_that_layers_exchange_are_fused(custom_op):
    assert_fused(fuse(stand(exchanged, 2, rope_custom_op=custom_op)), 2)
