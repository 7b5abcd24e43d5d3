"""Fusing RoPE, cache write and preparation: what fuses, what is refused, and nothing is lost."""

from __future__ import annotations

import pytest
import torch

from mlalab.compile.capture import LabBackend
from mlalab.compile.config import PassConfig
from mlalab.context import make_batch
from mlalab.errors import InputError
from mlalab.lab import record
from mlalab.passes.mla_aiter_qk_rope_kvcache import MLAAiterQkRopeKVCacheFusionPass
from mlalab.workbench import BLOCK_SIZE
from tests.passes import awkward
from tests.passes.models import FUSION, attend, chain, fuse, one, rotate, stand, targets
from tests.passes.models import write as write_cache
from tests.passes.test_awkward_graphs import (
    crossed,
    each_rope,
    exchanged,
    named,
    one_rope,
    ropes_first,
    side_by_side,
    twice,
)

NAME = MLAAiterQkRopeKVCacheFusionPass.name
ON = PassConfig(fuse_aiter_qk_rope_kvcache_mla=True)
PREP, FUSED = (
    f"mlalab.{op}" for op in ("mla_decode_q_prep", "fused_aiter_qk_rope_kvcache_q_concat_quant_mla")
)
ATTENTION = "mlalab.unified_mla_attention_with_output"
FUSES = {
    "default": [
        *(awkward.query_read_before, awkward.query_read_after, awkward.key_read_after),
        *(awkward.cos_read, awkward.query_born_3d, awkward.query_joined, awkward.permuted),
        *(awkward.one_product_split, awkward.key_squeezed, awkward.rotated_twice),
    ],
    "rotated": [awkward.rotated_query_read, awkward.rotated_key_read],
}
"""Overload that the graph ends with → models."""


def reordered(layer, positions, q, kv_c, k_pe):
    """The query goes through a view that reorders it."""
    k_pe = rotate(layer, positions, q, k_pe)
    mixed = q.transpose(0, 1).reshape(q.shape)
    return awkward.finish(layer, mixed, kv_c, k_pe)


def sliced_rows(layer, positions, q, kv_c, k_pe):
    """The query of attention has rows in another order."""
    k_pe = rotate(layer, positions, q, k_pe)
    return awkward.finish(layer, torch.cat((q[1:], q[:1])), kv_c, k_pe)


def half_replaced(layer, positions, q, kv_c, k_pe):
    """Half of the rope columns are overwritten after RoPE."""
    k_pe = rotate(layer, positions, q, k_pe)
    q[..., -4:] = 1.0
    return awkward.finish(layer, q, kv_c, k_pe)


def nope_from_two_places(layer, positions, q, kv_c, k_pe):
    """The nope columns are put together of two tensors."""
    k_pe = rotate(layer, positions, q, k_pe)
    q[..., :4] = q[..., 4:8].relu()
    return awkward.finish(layer, q, kv_c, k_pe)


def nope_needs_rotated_query(layer, positions, q, kv_c, k_pe):
    """The nope columns depend on the rotated ones."""
    nope = layer.shape.qk_nope_head_dim
    k_pe = rotate(layer, positions, q, k_pe)
    q[..., :nope] = q[..., :nope] * q[..., nope:].sum(-1, keepdim=True)
    return awkward.finish(layer, q, kv_c, k_pe)


def nope_scaled_after(layer, positions, q, kv_c, k_pe):
    """Only the nope columns are scaled after RoPE: the rope columns are still the rotated ones."""
    nope = layer.shape.qk_nope_head_dim
    k_pe = rotate(layer, positions, q, k_pe)
    q[..., :nope] = q[..., :nope] * 0.5
    return awkward.finish(layer, q, kv_c, k_pe)


FUSES["default"].append(nope_scaled_after)
REFUSED = {
    awkward.query_scaled: "come from mul",
    awkward.query_scaled_in_place: "come from mul",
    awkward.rope_part_scaled_in_place: "come from mul",
    reordered: "not from all of one rotated query",
    sliced_rows: "come from cat",
    half_replaced: "not from all of one rotated query",
    nope_from_two_places: "columns 0..32 of the query come from relu and",
    nope_needs_rotated_query: "depends on a result, so fusing would close a cycle",
}


def assert_all_or_nothing(trace):
    """Every rotation is fused or has a refusal, and a refusal leaves the graph as it was."""
    step, before = trace[NAME], trace.before(NAME)
    rope = [n for n in before.nodes if "fused_rope_unified" in n.target]
    refused = {refusal.layer for refusal in step.refusals}
    left = [n for n in step.nodes if "fused_rope_unified" in n.target]
    assert len(left) + len(step.matches) == len(rope)
    assert {node.layer for node in left} <= refused
    if not step.matches:
        assert (step.created, step.erased, step.rewired) == ((), (), ())
        assert [n.text for n in step.nodes] == [n.text for n in before.nodes]


@each_rope
@pytest.mark.parametrize(("variant", "model"), [(v, m) for v, ms in FUSES.items() for m in ms])
def test_fused(variant, model, custom_op):
    trace = fuse(stand(one(model), rope_custom_op=custom_op), config=ON)
    assert [match.variant for match in trace[NAME].matches] == [variant]
    assert trace[NAME].refusals == ()
    assert targets(trace).count(FUSED) == 1
    assert not {PREP, "mlalab.fused_rope_unified_mla_kv_cache_update"} & set(targets(trace))
    (attention,) = [node for node in trace[-1].nodes if node.target == ATTENTION]
    assert "q=None" in attention.text
    assert "k_pe=None" in attention.text


@each_rope
@named(REFUSED)
def test_refused(model, custom_op):
    trace = fuse(stand(one(model), rope_custom_op=custom_op), config=ON)
    assert trace[NAME].status == "refused"
    assert REFUSED[model] in " / ".join(refusal.reason for refusal in trace[NAME].refusals)
    assert_all_or_nothing(trace)
    assert targets(trace).count(PREP) == 1


@each_rope
def test_rotated_parts_that_leave_the_graph_stay_right(custom_op):
    trace = fuse(stand(one(awkward.rotated_parts_returned), rope_custom_op=custom_op), config=ON)
    assert_all_or_nothing(trace)


@each_rope
@pytest.mark.parametrize("dynamic", [False, True])
def test_every_layer_once(dynamic, custom_op):
    bench = stand(chain, 3, rope_custom_op=custom_op, kv_cache_dtype="fp8", dtype=torch.bfloat16)
    trace = fuse(bench, config=ON, dynamic=dynamic)
    layers = [layer.layer_name for layer in bench.layers]
    assert [match.layer for match in trace[NAME].matches] == layers
    assert [n.layer for n in trace[-1].nodes if n.target == FUSED] == layers


@each_rope
@pytest.mark.parametrize("model", [twice, side_by_side])
def test_a_layer_called_twice(model, custom_op):
    trace = fuse(stand(model, rope_custom_op=custom_op), config=ON)
    assert len(trace[NAME].matches) == 2
    assert trace[NAME].refusals == ()


@each_rope
@pytest.mark.parametrize("model", [one_rope, ropes_first, crossed, exchanged])
def test_layers_that_share_or_exchange(model, custom_op):
    layers = 2 if model in (crossed, exchanged) else 3
    trace = fuse(stand(model, layers, rope_custom_op=custom_op), config=ON)
    assert_all_or_nothing(trace)
    if model is exchanged:
        assert "an op of layer" in trace[NAME].refusals[0].reason
    if model is one_rope:
        assert len(trace[NAME].matches) == 3


def two_readers(other_query):
    """Return a model in which one rotation serves two attentions of the layer."""

    def model(layer, positions, q, kv_c, k_pe):
        k_pe = rotate(layer, positions, q, k_pe)
        dummy = write_cache(layer, kv_c, k_pe)
        first = attend(layer, q, kv_c, k_pe, dummy)
        return first + attend(layer, other_query(layer, q), kv_c, k_pe, dummy)

    return model


def other_nope(layer, q):
    nope = layer.shape.qk_nope_head_dim
    return torch.cat((q[..., :nope] * 2, q[..., nope:]), -1)


def test_equal_preparations_become_one_and_different_ones_are_refused():
    trace = fuse(stand(one(two_readers(lambda layer, q: q))), config=ON)
    (match,) = trace[NAME].matches
    assert len(match.matched) == 3
    assert targets(trace).count(FUSED) == 1
    trace = fuse(stand(one(two_readers(other_nope))), config=ON)
    reasons = [refusal.reason for refusal in trace[NAME].refusals]
    assert len(reasons) == 2
    assert all("2 different queries are prepared from" in reason for reason in reasons)
    assert_all_or_nothing(trace)


def dummy_returned(layer, positions, q, kv_c, k_pe):
    k_pe = rotate(layer, positions, q, k_pe)
    dummy = write_cache(layer, kv_c, k_pe)
    return attend(layer, q, kv_c, k_pe, dummy), dummy


def test_a_dummy_dependency_that_something_reads_stays_empty():
    trace = fuse(stand(one(dummy_returned)), config=ON)
    assert "reads the dummy dependency" in trace[NAME].refusals[0].reason
    assert_all_or_nothing(trace)


def test_a_decode_only_graph_refuses_a_prefill():
    bench = stand(chain)
    torch._dynamo.reset()
    compiled = torch.compile(bench.module, backend=LabBackend(ON, decode_only=True))
    bench.run(compiled, bench.positions, bench.hidden_TD)
    bench.metadata = make_batch([1, 4], [3, 0], num_decodes=1, block_size=BLOCK_SIZE)
    with pytest.raises(InputError, match=r"layers\.0\.self_attn.*decode batches only"):
        bench.run(compiled, bench.positions, bench.hidden_TD)


def test_it_builds_on_the_first_fusion():
    asked = PassConfig(fuse_aiter_qk_rope_kvcache_mla=True, fuse_rope_kvcache_cat_mla=None)
    trace = record(stand(chain), config=asked)
    assert trace[FUSION].status == "applied"
    names = [step.name for step in trace]
    for name in MLAAiterQkRopeKVCacheFusionPass.after:
        assert names.index(name) < names.index(NAME)
