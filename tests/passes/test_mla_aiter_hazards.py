"""What vLLM #41839 got wrong, on toys: a cycle, a lost argument, guards; and the time."""

from __future__ import annotations

import copy
import time

import pytest
import torch
from torch import fx
from torch._inductor import pattern_matcher as pm

from mlalab.compile.capture import LabBackend
from mlalab.compile.config import PassConfig
from mlalab.context import ForwardContext, forward_context
from mlalab.graphs import aten, bound_arguments, fake_mode_of, is_call, value_of, wrapped_op
from mlalab.lab import record
from mlalab.passes.driver import verify
from mlalab.passes.fusion import CleanUp, PassResult
from mlalab.passes.mla_aiter_checks import ROPE
from mlalab.passes.mla_aiter_qk_rope_kvcache import MLAAiterQkRopeKVCacheFusionPass
from mlalab.passes.mla_decode_q_prep_lift import MLADecodeQPrepLiftPass
from mlalab.passes.pipeline import PIPELINE
from mlalab.passes.tracing import Call
from tests.passes import awkward
from tests.passes.models import chain, one, project, rotate, stand

ON = PassConfig(fuse_aiter_qk_rope_kvcache_mla=True)
BOTH = (MLADecodeQPrepLiftPass, MLAAiterQkRopeKVCacheFusionPass)
EARLIER = PIPELINE[: PIPELINE.index(MLADecodeQPrepLiftPass)]
ops = torch.ops.mlalab


def before(bench, passes=EARLIER, mark=None):
    """Return the graph that `passes` leave, and the context in which passes may go on."""
    kept = []

    def keep(graph):
        kept.append(fx.GraphModule(graph.owning_module, copy.deepcopy(graph)))
        return PassResult()

    last = CleanUp(name="keep", note="", run=keep)
    backend = LabBackend(ON, passes=[*passes, last], decode_only=True, keep_graphs=False)
    torch._dynamo.reset()
    compiled = torch.compile(bench.module, backend=backend, fullgraph=True)
    for x in (bench.positions, bench.hidden_TD) if mark else ():
        mark(x, 0)
    bench.run(compiled, bench.positions, bench.hidden_TD)
    return kept[0], ForwardContext(layers={layer.layer_name: layer for layer in bench.layers})


def seed_rule(graph):
    """Fuse as the seed does: walk back over at most eight scatters, else keep the scattered query.

    The rotated results are thought to be the new op's own.
    """
    (prep,) = graph.find_nodes(op="call_function", target=ops.mla_decode_q_prep.default)
    (rope,) = [n for n in graph.nodes if wrapped_op(n) is ROPE]
    q = bound_arguments(prep)["q"]
    for _ in range(8):
        if is_call(q, aten.slice_scatter.default):
            q = q.args[0]
    with graph.inserting_before(rope):
        new = graph.call_function(
            ops.fused_aiter_qk_rope_kvcache_q_concat_quant_mla.rotated,
            (q, *(rope.kwargs[name] for name in ("q_pe", "k_pe", "kv_c", "positions"))),
        )
    for item in list(rope.users):
        item.replace_input_with(rope, new)
    prep.replace_all_uses_with(new)


@pytest.mark.parametrize("model", [awkward.query_scaled, awkward.query_scaled_in_place])
def test_walking_back_over_scatters_closes_a_cycle_where_ours_refuses(model):
    gm, context = before(stand(one(model)))
    with forward_context(context):
        MLADecodeQPrepLiftPass.apply(gm.graph)
        wrong = copy.deepcopy(gm.graph)
        seed_rule(wrong)
        with pytest.raises(RuntimeError, match="used before it has been defined"):
            wrong.lint()
        result = MLAAiterQkRopeKVCacheFusionPass.apply(gm.graph)
    with forward_context(context):
        verify(gm.graph, "ours")
    assert result.matches == ()
    assert any("come from mul" in refusal.reason for refusal in result.refusals)


def attention_pattern(kind):
    """Return a pattern of attention as a later fusion may know it: without `q_prepped`."""
    names = ("q", "kv_c", "k_pe", "output", "layer_name", "kv_cache_dummy_dep")
    keywords = {name: pm.Ignored() for name in names}
    op = torch.ops.mlalab.unified_mla_attention_with_output.default
    hop = torch.ops.higher_order.auto_functionalized
    if kind is Call:
        return Call(hop, [op], keywords, None)
    return pm.CallFunction(hop, op, _users=pm.MULTIPLE, **keywords)


def test_a_later_fusion_must_not_lose_the_prepared_query():
    """Torch's own matcher ignores keywords that a pattern does not have; mlalab's refuses them."""
    gm, context = before(stand(chain))
    with forward_context(context):
        for pass_ in BOTH:
            pass_.apply(gm.graph)
    (attention,) = [n for n in gm.graph.nodes if n.kwargs.get("q_prepped") is not None]
    assert attention_pattern(pm.CallFunction).match(attention)
    assert not attention_pattern(Call).match(attention)


MARKS = {
    "symbolic": torch._dynamo.mark_dynamic,
    "unbacked": torch._dynamo.decorators.mark_unbacked,
}


def rotated_parts_read(layers, positions, hidden):
    """Something reads the rotated query of each layer beside attention."""
    shown = []
    for layer in layers:
        q, kv_c, k_pe = project(layer, hidden)
        k_pe = rotate(layer, positions, q, k_pe)
        hidden = awkward.finish(layer, q, kv_c, k_pe)
        shown.append(q.view(-1, q.size(-1)))
    return hidden, *shown


@pytest.mark.parametrize("kind", MARKS)
@pytest.mark.parametrize("custom_op", [False, True])
@pytest.mark.parametrize("model", [chain, rotated_parts_read])
def test_symbolic_sizes_gain_no_guard(kind, custom_op, model):
    bench = stand(model, 2, rope_custom_op=custom_op)
    gm, context = before(bench, mark=MARKS[kind])
    shape_env = fake_mode_of([value_of(node) for node in gm.graph.nodes]).shape_env
    guards, asserts = len(shape_env.guards), str(shape_env.deferred_runtime_asserts)
    with forward_context(context):
        lifted, fused = (pass_.apply(gm.graph) for pass_ in BOTH)
    with forward_context(context):
        verify(gm.graph, "both")
    assert (len(lifted.matches), len(fused.matches), fused.refusals) == (2, 2, ())
    assert len(shape_env.guards) == guards
    assert str(shape_env.deferred_runtime_asserts) == asserts


def test_what_writes_in_place_in_between_is_an_obstacle():
    gm, context = before(stand(chain))
    graph = gm.graph
    with forward_context(context):
        MLADecodeQPrepLiftPass.apply(graph)
        (prep,) = graph.find_nodes(op="call_function", target=ops.mla_decode_q_prep.default)
        base = bound_arguments(prep)["q"].args[0]
        with graph.inserting_before(prep):
            zero = graph.call_function(aten.zero_.default, (base,))
        zero.meta["val"] = value_of(base)
        text = str(graph)
        (refusal,) = MLAAiterQkRopeKVCacheFusionPass.apply(graph).refusals
    assert refusal.reason == f"{zero.name}, in between, writes in place"
    assert str(graph) == text


def test_columns_computed_late_are_waited_for():
    """The nope columns are computed only after RoPE, in the order of the graph."""

    def late(layer, positions, q, kv_c, k_pe):
        nope = layer.shape.qk_nope_head_dim
        q_rot, k_rot = layer.rotary_emb(positions, q[..., nope:].relu(), k_pe)
        return awkward.finish(layer, torch.cat((q[..., :nope].cos(), q_rot), -1), kv_c, k_rot)

    gm, context = before(stand(one(late)))
    (cos,) = [n for n in gm.graph.nodes if is_call(n, aten.cos.default)]
    (rope,) = [n for n in gm.graph.nodes if wrapped_op(n) is ROPE]
    for item in reversed(list(rope.users)):
        rope.append(item)
    rope.append(cos)
    assert cos > rope
    with forward_context(context):
        results = [pass_.apply(gm.graph) for pass_ in BOTH]
    with forward_context(context):
        verify(gm.graph, "both")
    assert len(results[-1].matches) == 1


def test_an_unknown_layer_is_refused_by_both():
    gm, _ = before(stand(chain))
    text = str(gm.graph)
    with forward_context(ForwardContext(layers={})):
        results = [pass_.apply(gm.graph) for pass_ in BOTH]
    assert all("has no layer" in result.refusals[0].reason for result in results[:1])
    assert [result.matches for result in results] == [(), ()]
    assert "no query is prepared" in results[1].refusals[0].reason
    assert str(gm.graph) == text


def test_time_grows_with_the_layers_and_stays_small():
    gm, context = before(stand(chain, 16))
    with forward_context(context):
        for pass_ in BOTH:
            start = time.perf_counter()
            assert len(pass_.apply(gm.graph).matches) == 16
            assert time.perf_counter() - start < 1


def test_both_run_in_a_trace_of_real_code():
    trace = record(stand(chain, 2), config=ON, mode="inductor").check()
    assert len(trace[MLAAiterQkRopeKVCacheFusionPass.name].matches) == 2
    assert all(step.verdict in ("ok", "differs") for step in trace)
