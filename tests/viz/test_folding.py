"""What is drawn and what is hidden: never anything that a step touched."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mlalab.viz.folding import focus, fold
from mlalab.viz.overlay import after_side, before_side, overlay, topological
from tests.viz.samples import LAYER, steps


def names(view) -> set[str]:
    return {node.key for node in view.nodes}


def edge(view, source: str, target: str):
    return next(e for e in view.edges if (e.source, e.target) == (source, target))


def test_plumbing_is_folded_into_the_edge_with_its_names():
    view = fold(overlay(steps()[0]))
    assert names(view).isdisjoint({"split", "getitem", "view", "slice_1", "permute"})
    assert edge(view, "mm", "mul").folded == ("split", "getitem", "view", "slice_1")
    assert edge(view, "x", "mm").folded == ()


def test_all_draws_every_node_and_edge():
    step = steps()[0]
    view = fold(overlay(step), "all")
    assert names(view) == {node.name for node in step.nodes}
    assert {(e.source, e.target) for e in view.edges} == {
        (source, node.name) for node in step.nodes for source in node.inputs
    }
    assert view.folded == 0


@pytest.mark.parametrize("number", [1, 3])
def test_nothing_that_the_step_touched_is_folded(number):
    before, after = steps()[number - 1 : number + 1]
    touched = {*after.created, *after.erased, *after.rewired}
    touched |= {buffer for node in after.nodes for buffer in node.mutates}
    assert touched <= names(fold(overlay(after, before)))


def test_matched_nodes_that_survive_are_shown():
    captured, fused, *_ = steps()
    match = replace(fused.matches[0], matched=("slice_1", "getitem_2"))
    view = fold(overlay(replace(fused, matches=(match,)), captured))
    assert {"slice_1", "getitem_2"} <= names(view)


def test_states_come_from_the_step():
    captured, fused, *_ = steps()
    states = overlay(fused, captured).states
    assert states["fused"] == "created"
    assert states["mul"] == "erased"
    assert states["copy"] == "rewired"
    assert states["mm"] == "same"


def test_edges_tell_old_from_new():
    captured, fused, *_ = steps()
    edges = overlay(fused, captured).edges
    assert edges["add", "copy"] == "erased"
    assert edges["getitem_5", "copy"] == "created"
    assert edges["x", "mm"] == "same"


def test_a_removed_edge_between_survivors_is_erased():
    _, _, missed, in_place = steps()
    assert overlay(in_place, missed).edges["getitem_3", "mm_1"] == "erased"
    moved = replace(missed.nodes[-1], inputs=("mm_1",), text="return mm_1")
    step = replace(missed, nodes=(*missed.nodes[:-1], moved), rewired=("output",))
    graph = overlay(step, missed)
    assert graph.edges["add_2", "output"] == "erased"
    assert graph.edges["mm_1", "output"] == "created"


def test_a_retraced_step_is_drawn_alone():
    captured, fused, *_ = steps()
    graph = overlay(replace(fused, retraced=True), captured)
    assert set(graph.states.values()) == {"same"}
    assert set(graph.records) == {node.name for node in fused.nodes}


def test_writes_are_kept_and_their_readers_wait():
    _, _, missed, in_place = steps()
    view = fold(overlay(in_place, missed))
    assert set(view.writes) == {("fused_1", "slice_1"), ("attention_1", "empty")}
    assert ("attention_1", "mm_1") in view.waits  # reads `empty`, which attention fills
    assert ("fused_1", "attention_1") in view.waits  # reads `view`, of which slice_1 is a part
    order = [node.key for node in view.nodes]
    assert order.index("attention_1") < order.index("mm_1")


def test_lines_between_views_of_one_memory_say_so():
    for step in steps():
        view = fold(overlay(step), "all")
        base = {node.name: node.alias_of or node.name for node in step.nodes}
        shared = {(edge.source, edge.target) for edge in view.edges if edge.shared}
        assert shared == {
            (e.source, e.target) for e in view.edges if base[e.source] == base[e.target]
        }
        assert shared
        folded = fold(overlay(step)).edges
        assert all(base[e.source] == base[e.target] for e in folded if e.shared)


def test_like_layers_are_one_box():
    view = fold(overlay(steps(4)[0]))
    [box] = [node.layers for node in view.nodes if node.layers]
    assert box.layers == tuple(LAYER.format(i) for i in (1, 2, 3))
    assert "mm_L2" in box.members
    assert {"mm", "add_2", "x"} <= names(view)
    assert edge(view, "add_2", box.key)
    assert edge(view, box.key, "output")


def test_a_box_of_layers_counts_what_the_step_did_inside():
    captured, fused, *_ = steps(3)
    view = fold(overlay(fused, captured))
    [box] = [node.layers for node in view.nodes if node.layers]
    assert dict(box.changes) == {"created": 6, "erased": 22, "rewired": 4}


def test_a_layer_that_a_fusion_missed_is_not_hidden():
    captured, fused, *_ = steps(3)
    late = [n for n in captured.nodes if n.layer == LAYER.format(2)]
    kept = [n for n in fused.nodes if n.layer != LAYER.format(2)]
    ends = "_L2"
    partly = replace(
        fused,
        nodes=(*kept[:-1], *late, kept[-1]),
        created=tuple(n for n in fused.created if not n.endswith(ends)),
        erased=tuple(n for n in fused.erased if not n.endswith(ends)),
        rewired=tuple(n for n in fused.rewired if not n.endswith(ends)),
    )
    assert "mul_L2" in names(fold(overlay(partly, captured)))


def test_side_by_side_marks_what_goes_and_what_comes():
    captured, fused, *_ = steps()
    before, after = before_side(captured, fused), after_side(captured, fused)
    assert before.states["mul"] == "erased"
    assert set(before.states.values()) == {"same", "erased"}
    assert set(after.states.values()) == {"same", "created", "rewired"}


def test_focus_keeps_the_neighbours_of_what_changed():
    captured, fused, *_ = steps()
    view = focus(fold(after_side(captured, fused)), {*fused.created, *fused.rewired})
    assert {"fused", "copy", "mm", "slice_scatter"} <= names(view)
    assert names(view).isdisjoint({"x", "add_2", "output"})


def test_focus_on_nothing_keeps_everything():
    view = fold(overlay(steps()[0]))
    assert focus(view, set()) is view


def test_topological_order_is_stable_and_survives_a_cycle():
    assert topological("cab", [("a", "b")]) == ["c", "a", "b"]
    assert topological("bac", [("a", "b")]) == ["a", "b", "c"]
    assert sorted(topological("abc", [("a", "b"), ("b", "a"), ("b", "c")])) == ["a", "b", "c"]


def test_focus_keeps_a_box_of_layers_that_the_step_touched():
    captured, fused, *_ = steps(3)
    for side in (before_side(captured, fused), after_side(captured, fused)):
        view = focus(fold(side), {*fused.created, *fused.erased, *fused.rewired})
        assert [box.layers.layers for box in view.nodes if box.layers] == [
            (LAYER.format(1), LAYER.format(2))
        ]
