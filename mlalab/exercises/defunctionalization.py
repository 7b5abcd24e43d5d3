"""Exercises of notebook 05: who still reads, what folds, and one call turned back by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, fx

from mlalab.checking import compare
from mlalab.errors import first_line
from mlalab.exercises.functional_graphs import SCATTERED, Draft, rotated_query, scattered
from mlalab.graphs import aten, is_call, wrapped_op
from mlalab.passes.scatters import folds
from mlalab.teach import Case, Exercise, poisoned, same_as


class Line(NamedTuple):
    """One line of a printed graph."""

    name: str
    kind: Literal["input", "op", "view"]
    """A view reads no element; an op does; an input's memory is the caller's."""
    memory: str
    """Name of the line whose memory this one's value lies in; its own, unless it is a view."""
    columns: tuple[int, int]
    """First and past-the-last column of that memory that it touches."""
    reads: tuple[str, ...] = ()


def old_value_readers(lines: Sequence[Line], call: str, target: str) -> list[str]:
    """Return who would see it, if the line `call` wrote the memory of `target` in place.

    That is, in order: every op after `call` that reads a line whose memory and columns overlap
    those of `target`; and, last, the input whose memory it is, since the caller may read that.
    """
    named = {line.name: line for line in lines}
    written = named[target]
    later = lines[[line.name for line in lines].index(call) + 1 :]
    found = [
        line.name
        for line in later
        if line.kind == "op" and any(_overlap(named[name], written) for name in line.reads)
    ]
    own = named[written.memory]
    return found + ([own.name] if own.kind == "input" else [])


def _overlap(a: Line, b: Line) -> bool:
    first, last = max(a.columns[0], b.columns[0]), min(a.columns[1], b.columns[1])
    return a.memory == b.memory and first < last


_Q = [
    Line("x", "input", "x", (0, 12)),
    Line("q", "op", "q", (0, 12), ("x",)),
    Line("nope", "view", "q", (0, 8), ("q",)),
    Line("pe", "view", "q", (8, 12), ("q",)),
]


def _lines(label: str, *more: Line, target: str = "pe") -> Callable[[], Case]:
    rotate = Line("rotate", "op", "rotate", (0, 4), (target,))
    return lambda: Case(label, ([*_Q, *more[:1], rotate, *more[1:]], "rotate", target))


def _op(name: str, *reads: str) -> Line:
    return Line(name, "op", name, (0, 12), reads)


def _view(name: str, columns: tuple[int, int], memory: str = "q") -> Line:
    return Line(name, "view", memory, columns, (memory,))


READERS = (
    _lines("a reader before the call only", _op("early", "pe", "q")),
    _lines("a reader after the call", _op("early", "pe"), _op("late", "x", "pe")),
    _lines("a reader of other columns", _op("early", "x"), _op("late", "nope")),
    _lines("a reader of the whole memory", _op("early", "x"), _op("late", "nope", "q")),
    _lines("a view after the call that nobody reads", _op("early", "q"), _view("v", (8, 12))),
    _lines(
        "a view after the call, and its reader",
        *(_op("early", "q"), _view("v", (7, 9)), _op("late", "v"), _op("other", "x")),
    ),
    _lines("a view of no columns", _view("none", (10, 10)), _op("late", "none")),
    _lines("a target of no columns", _view("none", (10, 10)), _op("late", "q"), target="none"),
    _lines("a target that is the caller's", _view("px", (8, 12), "x"), target="px"),
    _lines(
        "a target that is the caller's, and a reader",
        *(_view("px", (8, 12), "x"), _op("late", "x"), _op("other", "pe")),
        target="px",
    ),
    _lines("two readers", _op("early", "q"), _op("one", "pe"), _op("two", "q", "nope")),
)


def _judge_folds(attempt: Any) -> str | None:
    for kind in SCATTERED:
        case = scattered(kind)
        expected = [fold.scatter.name for fold in folds(case.target, [case.item])]
        with_kind = f"With a result put {kind}:"
        try:
            found = attempt(case.target, case.item)
        except Exception as error:  # whatever a learner's code raises is the answer
            return f"{with_kind} it stopped with {first_line(error)}."
        if found is ...:
            return "The blank `...` is still there: put your code in its place."
        if not isinstance(found, list):
            return f"{with_kind} a list of nodes is expected, and this is a {type(found).__name__}."
        if sorted(map(str, found)) != sorted(expected):
            right = ", ".join(expected) or "none"
            return f"{with_kind} found {', '.join(map(str, found)) or 'none'}, expected {right}."
    return None


def _judge_turned_back(attempt: Any) -> str | None:
    for tokens, directly in ((5, False), (1, True), (0, False), (7, True)):
        draft = rotated_query(tokens, read_directly=directly)
        before = copy.deepcopy(draft.graph)
        complaint = _turned_back(attempt, draft.graph) or _same_meaning(before, draft)
        if complaint:
            extra = ", the result read directly as well" if directly else ""
            return f"With {tokens} tokens{extra}: {complaint}."
    return None


def _turned_back(attempt: Any, graph: fx.Graph) -> str | None:
    """Let `attempt` rewrite `graph`; return what is still, or newly, wrong with its form."""
    (call,) = (node for node in graph.nodes if wrapped_op(node) is not None)
    (item,) = call.users
    try:
        attempt(graph, call, item)
        graph.lint()
    except Exception as error:  # whatever a learner's code raises is the answer
        return f"it stopped with {first_line(error)}"
    for node in graph.nodes:
        if wrapped_op(node) is not None:
            return f"{node.name} is still in the graph: put a plain call of its op in its place"
        if is_call(node, aten.slice_scatter.default):
            return f"{node.name} still copies the whole query to put back what is there already"
    return None


def _same_meaning(before: fx.Graph, draft: Draft) -> str | None:
    """Run both graphs on inputs that share memory, with poisoned outputs; return a difference."""
    results = []
    for graph in (before, draft.graph):
        given = copy.deepcopy(draft.given)
        with poisoned():
            results.append([*fx.Interpreter(_module(graph)).run(*given), *given])
    names = [f"output {i}" for i in range(len(results[0]) - len(draft.given))]
    names += ["the caller's x", "the caller's residual", "the positions", "the table"]
    for name, expected, found in zip(names, *results, strict=True):
        if not isinstance(found, Tensor) or found.shape != expected.shape:
            return f"{name} has another shape"
        diff = compare(name, expected, found)
        if not diff.equal:
            return f"{name} differs in {diff.mismatched} of {diff.total} places"
    return None


def _module(graph: fx.Graph) -> fx.GraphModule:
    return fx.GraphModule(torch.nn.Module(), graph)


EXERCISES = {
    "05.readers": Exercise(
        same_as(old_value_readers, READERS),
        "This is the question that the pass asks of every write, with bytes for columns.",
    ),
    "05.folds": Exercise(
        _judge_folds, "A scatter is folded by where it writes, not by how it looks."
    ),
    "05.turn_back": Exercise(
        _judge_turned_back, "Same bits, one copy of the query less, and the op as it was written."
    ),
}
