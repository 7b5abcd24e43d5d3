"""Diffs come from FX's own hooks and say exactly what happened."""

import torch
from torch import fx

from mlalab.recorder import Recorder, watch
from mlalab.records import Refusal

aten = torch.ops.aten


def small():
    graph = fx.Graph()
    x = graph.placeholder("x")
    a = graph.call_function(aten.neg.default, (x,))
    b = graph.call_function(aten.relu.default, (a,))
    graph.output((b,))
    for node in graph.nodes:
        node.meta["val"] = torch.empty(2)
    return fx.GraphModule({}, graph)


def replace_neg(gm):
    (neg,) = gm.graph.find_nodes(op="call_function", target=aten.neg.default)
    with gm.graph.inserting_before(neg):
        new = gm.graph.call_function(aten.abs.default, neg.args)
        scratch = gm.graph.call_function(aten.sin.default, neg.args)
    new.meta["val"] = scratch.meta["val"] = neg.meta["val"]
    neg.replace_all_uses_with(new)
    gm.graph.erase_node(neg)
    gm.graph.erase_node(scratch)


def test_watch_sees_created_erased_and_rewired():
    gm = small()
    with watch(gm) as events:
        replace_neg(gm)
    assert events.any
    assert events.survivors == ("abs_default",)
    assert events.gone == ("neg_default",)
    assert tuple(n.name for n in events.rewired) == ("relu_default",)


def test_hooks_are_removed_even_after_an_error():
    gm = small()
    try:
        with watch(gm) as events:
            raise ValueError
    except ValueError:
        replace_neg(gm)
    assert not events.any
    assert not (gm._create_node_hooks or gm._erase_node_hooks)


def test_direct_assignment_of_arguments_is_seen():
    gm = small()
    relu = gm.graph.find_nodes(op="call_function", target=aten.relu.default)[0]
    (x,) = gm.graph.find_nodes(op="placeholder")
    with watch(gm) as events:
        relu.args = (x,)
    assert tuple(n.name for n in events.rewired) == ("relu_default",)


def test_a_step_keeps_its_own_copy_of_the_graph():
    recorder, gm = Recorder(), small()
    recorder.capture("start", gm, "note")
    with recorder.step("change", "cleanup", gm) as draft:
        replace_neg(gm)
        draft.note = "done"
    assert [[n.name for n in g.graph.nodes] for g in recorder.graphs] == [
        ["x", "neg_default", "relu_default", "output"],
        ["x", "abs_default", "relu_default", "output"],
    ]
    step = recorder.steps[1]
    assert (step.created, step.erased, step.rewired) == (
        ("abs_default",),
        ("neg_default",),
        ("relu_default",),
    )
    assert step.note == "done"
    x = torch.randn(2)
    assert recorder.graphs[0](x)[0].equal((-x).relu())
    assert recorder.graphs[1](x)[0].equal(x.abs())


def test_an_unchanged_step_is_dropped_on_request():
    recorder, gm = Recorder(keep_graphs=False), small()
    with recorder.step("nothing", "inductor", gm) as draft:
        draft.keep_unchanged = False
    assert recorder.steps == []
    with recorder.step("nothing", "fusion", gm):
        pass
    assert [s.name for s in recorder.steps] == ["nothing"]
    assert recorder.graphs == []


def test_a_step_that_only_refused_is_kept():
    recorder, gm = Recorder(keep_graphs=False), small()
    with recorder.step("careful", "cleanup", gm) as draft:
        draft.keep_unchanged = False
        draft.refusals = (Refusal(node="neg_default", layer=None, reason="someone reads it"),)
    assert [r.reason for s in recorder.steps for r in s.refusals] == ["someone reads it"]


def test_only_a_later_capture_is_a_retrace():
    recorder, gm = Recorder(), small()
    recorder.capture("a", gm, "")
    recorder.capture("b", gm, "")
    assert [s.retraced for s in recorder.steps] == [False, True]
