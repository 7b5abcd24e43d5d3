"""Exercises of 05: the solution passes, and what one would plausibly write instead does not."""

from __future__ import annotations

import pytest

from mlalab.exercises.defunctionalization import EXERCISES, old_value_readers
from mlalab.exercises.functional_graphs import SCATTERED, scattered
from mlalab.graphs import aten, value_of
from mlalab.passes.aliasing import Region
from mlalab.passes.scatters import overwritten
from mlalab.teach import check


def any_later_reader_of_the_name(lines, call, target):
    later = lines[[line.name for line in lines].index(call) + 1 :]
    return [line.name for line in later if line.kind == "op" and target in line.reads]


def readers(lines, call, target, *, touches, views=False, caller=True):
    named = {line.name: line for line in lines}
    written = named[target]
    later = lines[[line.name for line in lines].index(call) + 1 :]
    found = [
        line.name
        for line in later
        if (line.kind == "op" or views) and any(touches(named[n], written) for n in line.reads)
    ]
    owner = named[written.memory]
    return found + ([owner.name] if caller and owner.kind == "input" else [])


def same_memory(a, b):
    return a.memory == b.memory


def open_overlap(a, b):
    return same_memory(a, b) and a.columns[0] < b.columns[1] and b.columns[0] < a.columns[1]


def overlap(a, b):
    return same_memory(a, b) and max(a.columns[0], b.columns[0]) < min(a.columns[1], b.columns[1])


def everything_is_a_reader(lines, call, target):
    return readers(lines, call, target, touches=overlap, views=True)


def the_caller_is_forgotten(lines, call, target):
    return readers(lines, call, target, touches=overlap, caller=False)


def columns_are_forgotten(lines, call, target):
    return readers(lines, call, target, touches=same_memory)


def an_empty_view_overlaps(lines, call, target):
    return readers(lines, call, target, touches=open_overlap)


def good_folds(target, item):
    place = Region.of(value_of(target))
    return [s for s in any_scatter(target, item) if Region.of(overwritten(s)).same_as(place)]


def any_scatter(target, item):
    copies = [user for user in item.users if user.target is aten.copy.default]
    return [
        user
        for source in (item, *copies)
        for user in source.users
        if user.target is aten.slice_scatter.default and user.args[1] is source
    ]


def no_copies(target, item):
    return [s for s in good_folds(target, item) if s.args[1] is item]


def same_columns_of_any_tensor(target, item):
    return [s for s in any_scatter(target, item) if s.args[2:] == target.args[1:]]


def same_base_by_name(target, item):
    return [s for s in good_folds(target, item) if s.args[0] is target.args[0]]


def turn_back(graph, call, item, *, before=None, fold=True):
    with graph.inserting_before(before or call):
        graph.call_function(call.args[0], (), dict(call.kwargs))
    for scatter in any_scatter(None, item) if fold else ():
        scatter.replace_all_uses_with(scatter.args[0])
        graph.erase_node(scatter)
    item.replace_all_uses_with(call.kwargs["query"])
    graph.erase_node(item)
    graph.erase_node(call)


def the_call_is_forgotten(graph, call, item):
    turn_back(graph, call, item)
    graph.erase_node(next(n for n in graph.nodes if "rotary" in str(n.target)))


def the_scatter_stays(graph, call, item):
    turn_back(graph, call, item, fold=False)


def too_late(graph, call, item):
    (output,) = graph.find_nodes(op="output")
    turn_back(graph, call, item, before=output)


def the_call_left_dead(graph, call, item):
    with graph.inserting_before(call):
        graph.call_function(call.args[0], (), dict(call.kwargs))


def all_at_once(graph, call, item):
    graph.erase_node(call)


@pytest.mark.parametrize(
    ("name", "solution"),
    [
        ("05.readers", old_value_readers),
        ("05.readers", lambda *a: readers(*a, touches=overlap)),
        ("05.folds", good_folds),
        ("05.folds", lambda t, i: [s.name for s in reversed(good_folds(t, i))]),
        ("05.turn_back", turn_back),
    ],
)
def test_solutions_pass(name, solution):
    verdict = check(name, solution)
    assert verdict, verdict


@pytest.mark.parametrize(
    ("name", "attempt", "words"),
    [
        ("05.readers", any_later_reader_of_the_name, "whole memory"),
        ("05.readers", everything_is_a_reader, "a view after the call that nobody reads"),
        ("05.readers", the_caller_is_forgotten, "the caller's"),
        ("05.readers", columns_are_forgotten, "other columns"),
        ("05.readers", an_empty_view_overlaps, "no columns"),
        ("05.folds", any_scatter, "into other columns"),
        ("05.folds", no_copies, "back through a copy"),
        ("05.folds", same_columns_of_any_tensor, "into another tensor"),
        ("05.folds", same_base_by_name, "twice, once elsewhere"),
        ("05.folds", lambda t, i: 1 / 0, "ZeroDivisionError"),
        ("05.turn_back", the_call_is_forgotten, "output 0 differs in 60 of 180"),
        ("05.turn_back", the_scatter_stays, "still copies"),
        ("05.turn_back", too_late, "differs"),
        ("05.turn_back", the_call_left_dead, "auto_functionalized is still in the graph"),
        ("05.turn_back", all_at_once, "RuntimeError"),
        *((name, lambda *a: ..., "") for name in EXERCISES),
    ],
)
def test_wrong_attempts_get_one_sentence(name, attempt, words):
    verdict = check(name, attempt)
    assert not verdict
    assert words in verdict.complaint
    assert "\n" not in repr(verdict)


def test_every_kind_of_scatter_is_told_apart():
    cases = [scattered(kind) for kind in SCATTERED]
    found = [len(good_folds(case.target, case.item)) for case in cases]
    assert sorted(found) == [0, 0, 0, 0, 1, 1, 1]
