"""The pipeline as a whole: its order, nothing done twice, nothing at all when all is off."""

from __future__ import annotations

import dataclasses
import operator

import pytest
import torch

from mlalab.compile import inductor
from mlalab.compile.config import FLAGS, PassConfig
from mlalab.errors import ConfigError
from mlalab.lab import record
from mlalab.passes.driver import PassDriver, check_order
from mlalab.passes.fusion import CleanUp, Fusion, PassResult
from mlalab.passes.pipeline import PIPELINE
from mlalab.shapes import preset
from tests.passes.awkward import finish, rotated_query_read
from tests.passes.models import chain, fuse, one, rotate, shape_of, stand, targets

ON, OFF = (PassConfig(**dict.fromkeys(FLAGS, value)) for value in (True, False))
SHAPES = {"mla": shape_of(), "gqa": preset("tiny-gqa")}
FUSED = {
    "mla": "mlalab.fused_aiter_qk_rope_kvcache_q_concat_quant_mla",
    "gqa": "mlalab.fused_rope_and_unified_kv_cache_update",
}

each_model = pytest.mark.parametrize(
    ("kind", "custom_op"), [(kind, custom) for kind in SHAPES for custom in (False, True)]
)


def bench_of(kind, custom_op, layers=2):
    shape = SHAPES[kind]
    return stand(chain, layers, shape=shape, rope_custom_op=custom_op, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("first", "second"), [(name, p.name) for p in PIPELINE for name in p.after]
)
def test_no_pass_comes_before_one_it_builds_on(first, second):
    by_name = {p.name: p for p in PIPELINE}
    check_order([by_name[first], by_name[second]])
    with pytest.raises(ConfigError, match=f"{second} must come after {first}"):
        PassDriver([by_name[second], by_name[first]], ON)


@pytest.mark.parametrize("late", [p for p in PIPELINE if not isinstance(p, CleanUp)])
def test_no_fusion_comes_after_the_last_clean_up(late):
    assert PIPELINE[-1].last
    with pytest.raises(ConfigError, match=f"{late.name} must come before {PIPELINE[-1].name}"):
        PassDriver([PIPELINE[-1], late], ON)


def renamed(passes, suffix):
    return [dataclasses.replace(p, name=p.name + suffix) for p in passes]


def but_for_shapes(trace):
    """Return the ops of the last graph, in order, without those that only change a shape."""
    return [
        t for t in targets(trace) if t not in ("aten.reshape", "aten.unsqueeze", "aten.squeeze")
    ]


@each_model
def test_all_of_it_twice_is_all_of_it_once(kind, custom_op):
    """A second clean-up may drop shapes that a fusion left behind, and that is all there is."""
    bench, (*body, last) = bench_of(kind, custom_op), PIPELINE
    once = record(bench, config=ON)
    again = [*body, *renamed(body, " again")]
    twice = fuse(bench, config=ON, passes=[*again, last, *renamed([last], " again")])
    assert but_for_shapes(twice) == but_for_shapes(once)
    assert targets(once).count(FUSED[kind]) == 2
    assert not [m for step in twice if step.name.endswith("again") for m in step.matches]
    thrice = record(bench, config=ON, passes=[*again, *renamed(body, " once more"), last])
    assert [n.text for n in thrice[-1].nodes] == [n.text for n in twice[-1].nodes]


@each_model
def test_each_pass_twice_in_a_row_is_that_pass_once(kind, custom_op):
    bench = bench_of(kind, custom_op)
    doubled = [p for pass_ in PIPELINE for p in (pass_, *renamed([pass_], " again"))]
    doubled.remove(renamed([PIPELINE[-1]], " again")[0])
    once, twice = record(bench, config=ON), record(bench, config=ON, passes=doubled)
    assert [n.text for n in once[-1].nodes] == [n.text for n in twice[-1].nodes]


def final_graph(bench, setting):
    """Return the text of the last post-grad graph under `setting`, a context manager."""
    texts = []

    def inner(gm, inputs, **_):
        run = inductor.run_post_grad(gm, inputs)
        texts.append(gm.print_readable(print_output=False))
        return run

    def backend(gm, inputs):
        with setting:
            return inductor.compile_with(gm, inputs, inner)

    torch._dynamo.reset()
    compiled = torch.compile(bench.module, backend=backend, fullgraph=True)
    bench.run(compiled, bench.positions, bench.hidden_TD)
    return texts


@each_model
def test_all_off_is_no_custom_pass_at_all(kind, custom_op):
    bench = bench_of(kind, custom_op)
    none = torch._inductor.config.patch(enable_auto_functionalized_v2=False)
    (bare,) = final_graph(bench, none)
    assert final_graph(bench, inductor.configured(PassDriver(PIPELINE, OFF))) == [bare]
    on = inductor.configured(PassDriver(PIPELINE, ON))
    assert final_graph(bench, on) != [bare]


@pytest.mark.parametrize("pass_", [p for p in PIPELINE if isinstance(p, Fusion)])
def test_a_refusal_leaves_the_graph_as_it_was_and_says_why(pass_):
    shape = preset("tiny-gqa") if pass_.serves == "gqa" else shape_of()
    shape = dataclasses.replace(shape, rope=dataclasses.replace(shape.rope, kind="none"))
    seen = []

    def run(graph):
        seen.append(str(graph))
        result = pass_.apply(graph)
        seen.append(str(graph))
        seen.append(result)
        return PassResult()

    record(stand(chain, 2, shape=shape), passes=[CleanUp(name="watched", note="", run=run)])
    before, after, result = seen
    assert before == after
    assert result.matches == ()
    assert len({refusal.layer for refusal in result.refusals}) == 2
    assert all(refusal.reason for refusal in result.refusals)


def give_readers_their_own(graph):
    """Let each reader of an item read an equal item of its own."""
    for item in graph.find_nodes(op="call_function", target=operator.getitem):
        for reader in list(item.users)[1:]:
            with graph.inserting_after(item):
                twin = graph.node_copy(item)
            reader.replace_input_with(item, twin)
    return PassResult()


def with_twins(bench, before):
    """Fuse a model in which items have twins from the pass called `before` on."""
    twins = CleanUp(name="twins", note="", run=give_readers_their_own)
    at = [p.name for p in PIPELINE].index(before)
    trace = fuse(bench, config=ON, passes=[*PIPELINE[:at], twins, *PIPELINE[at:]])
    return trace, any(step.created for step in trace if step.name == "twins")


FUSIONS = {"mla": "MLARoPEKVCacheCatFusionPass", "gqa": "RopeKVCacheFusionPass"}
TWINS = {
    ("gqa", False, PIPELINE[0].name): 2,
    ("gqa", False, FUSIONS["gqa"]): 0,
    ("mla", True, FUSIONS["mla"]): 2,
}
"""Kind of layer, custom op, from which pass on items have twins → how many layers still fuse."""


@pytest.mark.parametrize(("kind", "custom_op", "before"), TWINS)
def test_items_that_are_taken_twice(kind, custom_op, before):
    trace, made = with_twins(bench_of(kind, custom_op), before)
    assert made
    fused = targets(trace).count(FUSED[kind])
    assert fused == TWINS[kind, custom_op, before]
    assert len([r.reason for r in trace[FUSIONS[kind]].refusals]) == 2 - fused


def test_items_of_a_fused_op_that_are_taken_twice():
    bench = stand(one(rotated_query_read))
    trace, made = with_twins(bench, "MLAAiterQkRopeKVCacheFusionPass")
    assert made
    assert targets(trace).count(FUSED["mla"]) == 1


def quantized(layer, positions, q, kv_c, k_pe):
    """What attention gives is quantised, as for a projection in FP8."""
    k_pe = rotate(layer, positions, q, k_pe)
    output = finish(layer, q, kv_c, k_pe)
    scale = output.abs().amax() / 448
    return (output / scale).clamp(-448, 448).to(torch.float8_e4m3fn), scale


@pytest.mark.parametrize("custom_op", [False, True])
def test_quantising_after_attention_changes_nothing(custom_op):
    trace = fuse(stand(one(quantized), rope_custom_op=custom_op), config=ON)
    assert targets(trace).count(FUSED["mla"]) == 1
