"""The exercises on graphs: on real traces, on a toy graph, and on none."""

from __future__ import annotations

import pytest

from mlalab.exercises.reading_an_fx_graph import (
    EXERCISES,
    aliases_reference,
    dying_reference,
    movers_reference,
    toy_graph,
)
from mlalab.teach import check


def movers(nodes):
    moving = [n for n in nodes if n.op == "call_function" and not n.plumbing]
    return len(moving), sum(n.bytes for n in moving if n.bytes is not None)


def unknown_counted(nodes):
    moving = [n for n in nodes if n.op == "call_function" and not n.plumbing]
    return len(moving), sum(n.bytes for n in moving)


def aliases(nodes, name):
    storage = {n.name: n.alias_of or n.name for n in nodes}
    return [n.name for n in nodes if n.name != name and storage[n.name] == storage[name]]


def dying(nodes, name, spare=lambda node: node.mutates, inputs=("placeholder", "output")):
    gone = [name]
    for node in nodes[::-1]:
        readers = [n.name for n in nodes if node.name in n.inputs]
        if readers and all(r in gone for r in readers) and node.op not in inputs:
            gone += [] if spare(node) else [node.name]
    return [n.name for n in nodes if n.name in gone[1:]]


def dying_at_once(nodes, name):
    return [
        n.name
        for n in nodes
        if n.op == "call_function"
        and not n.mutates
        and [r.name for r in nodes if n.name in r.inputs] == [name]
    ]


def read_by_it(nodes, name):
    read = {i for n in nodes if n.name == name for i in n.inputs}
    return [n.name for n in nodes if n.name in read and n.op == "call_function"]


@pytest.mark.parametrize(
    ("name", "attempt"), [("02.movers", movers), ("02.aliases", aliases), ("02.dying", dying)]
)
def test_right_answers_pass(name, attempt):
    assert repr(check(name, attempt)).startswith(f"{name}: right.")


@pytest.mark.parametrize(
    ("name", "attempt", "words"),
    [
        ("02.movers", lambda nodes: movers(n for n in nodes if n.bytes), "the toy graph"),
        ("02.movers", lambda nodes: (len(nodes), movers(nodes)[1]), "With one input"),
        ("02.movers", unknown_counted, "TypeError"),
        ("02.movers", lambda nodes: movers(nodes)[0], "2 values"),
        (
            "02.aliases",
            lambda nodes, name: [n.name for n in nodes if n.alias_of == name],
            "slice_1",
        ),
        ("02.aliases", lambda nodes, name: [name, *aliases(nodes, name)], "With"),
        ("02.aliases", lambda nodes, name: [], "which owns its storage"),
        ("02.dying", read_by_it, "whose neg has another reader"),
        ("02.dying", dying_at_once, "With the toy graph without write"),
        ("02.dying", lambda *a: dying(*a, inputs=()), "With the toy graph without add"),
        ("02.dying", lambda *a: dying(*a, spare=lambda _: False), "without its attention"),
        ("02.dying", lambda *_: ..., "blank"),
    ],
)
def test_wrong_answers_get_one_sentence(name, attempt, words):
    verdict = repr(check(name, attempt))
    assert verdict.startswith(f"{name}: not yet. ")
    assert words in verdict
    assert "\n" not in verdict


def test_references_on_the_toy_graph():
    nodes = toy_graph()
    assert movers_reference(nodes) == (6, 72)
    assert aliases_reference(nodes, "slice_1") == ["mm", "view"]
    assert dying_reference(nodes, "add") == ["permute"]
    assert dying_reference(nodes, "write") == ["permute", "add"]
    assert dying_reference(nodes, "output") == ["relu"]


def test_every_case_names_a_node_that_is_there():
    """A renamed op would leave a case without an answer, and nothing would be judged by it."""
    seen = []

    def look(nodes, name):
        seen.append(not nodes or name in {node.name for node in nodes})
        return dying(nodes, name)

    assert check("02.dying", look)
    assert all(seen)
    assert len(seen) == 7
    assert list(EXERCISES) == ["02.movers", "02.aliases", "02.dying"]
