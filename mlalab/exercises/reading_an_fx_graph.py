"""Exercises of `02_reading_an_fx_graph`: what is plumbing, what shares memory, what would die."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

from mlalab.records import NodeRecord
from mlalab.teach import Case, Exercise, same_as

Nodes = Sequence[NodeRecord]
WRITE, ATTENTION = "mlalab.write", "mlalab.unified_mla_attention_with_output"


def movers_reference(nodes: Nodes) -> tuple[int, int]:
    """Return how many calls are no plumbing, and the bytes of their results that are known."""
    moving = [node for node in nodes if node.op == "call_function" and not node.plumbing]
    return len(moving), sum(node.bytes or 0 for node in moving)


def aliases_reference(nodes: Nodes, name: str) -> list[str]:
    """Return the names of all other nodes that share storage with the one called `name`."""
    owner = {node.name: node.alias_of or node.name for node in nodes}
    return [n for n, storage in owner.items() if n != name and storage == owner.get(name)]


def dying_reference(nodes: Nodes, name: str) -> list[str]:
    """Return the calls that lose their last reader when `name` is erased, and then theirs."""
    erased = {name}
    # A reader stands below what it reads, so one walk upwards finds them all.
    for node in reversed(nodes):
        readers = {reader.name for reader in nodes if node.name in reader.inputs}
        if node.op == "call_function" and not node.mutates and readers and readers <= erased:
            erased.add(node.name)
    return [node.name for node in nodes if node.name in erased and node.name != name]


def toy_graph() -> tuple[NodeRecord, ...]:
    """A small graph with what an exercise should think of: views of views, a write, two readers."""
    return (
        _node("x", "placeholder"),
        _node("w", "placeholder"),
        _node("b", "placeholder"),
        _node("mm", "aten.mm", "x", "w"),
        _view("view", "aten.reshape", "mm", of="mm"),
        _view("slice_1", "aten.slice", "view", of="mm"),
        _node("neg", "aten.neg", "slice_1"),
        _view("permute", "aten.permute", "b", of="b"),
        replace(_node("empty", "aten.empty"), shape=("s77", 3), bytes=None),
        replace(_node("add", "aten.add", "neg", "permute"), shape=("s77", 3), bytes=None),
        replace(_none("write", WRITE, "empty", "add"), mutates=("empty",)),
        _node("relu", "aten.relu", "neg"),
        _none("output", "output", "relu", "empty"),
    )


def _none(name: str, target: str, *inputs: str) -> NodeRecord:
    op = target if target in ("placeholder", "output") else "call_function"
    text = f"{name} = {target}({', '.join(inputs)})"
    return NodeRecord(name=name, op=op, target=target, text=text, inputs=inputs, users=0)


def _node(name: str, target: str, *inputs: str) -> NodeRecord:
    return replace(_none(name, target, *inputs), shape=(2, 3), bytes=24)


def _view(name: str, target: str, *inputs: str, of: str) -> NodeRecord:
    return replace(_node(name, target, *inputs), plumbing=True, alias_of=of)


@cache
def _real(step: str) -> tuple[NodeRecord, ...]:
    from mlalab.lab import trace
    from mlalab.layers.options import LayerOptions

    # On the CPU, so that every machine judges alike.
    return trace("tiny", tokens=3, options=LayerOptions())[step].nodes


def _functional() -> Nodes:
    return _real("aot")


def _fused() -> Nodes:
    return _real("FixFunctionalizationPass")


def _whole(label: str, nodes: Callable[[], Nodes]) -> Callable[[], Case]:
    return lambda: Case(label, (tuple(nodes()),))


def _at(label: str, nodes: Callable[[], Nodes], target: str) -> Callable[[], Case]:
    """A graph, and in it the first node of `target`; in an empty one, a name that it lacks."""

    def make() -> Case:
        graph = tuple(nodes())
        name = next((node.name for node in graph if node.target == target), target)
        return Case(label, (graph, name))

    return make


EXERCISES = {
    "02.movers": Exercise(
        same_as(
            movers_reference,
            [
                _whole("no nodes", lambda: ()),
                _whole("one input", lambda: toy_graph()[:1]),
                _whole("the toy graph", toy_graph),
                _whole("the functional graph of a layer", _functional),
                _whole("the fused graph of a layer", _fused),
            ],
        ),
        "Views cost nothing; nearly every other call reads and writes memory.",
    ),
    "02.aliases": Exercise(
        same_as(
            aliases_reference,
            [
                _at("no nodes", lambda: (), "aten.mm"),
                _at("the toy graph and mm, which owns its storage", toy_graph, "aten.mm"),
                _at("the toy graph and slice_1, a view itself", toy_graph, "aten.slice"),
                _at("the toy graph and add, which has no alias", toy_graph, "aten.add"),
                _at("a layer's fused graph and a matmul", _fused, "aten.mm"),
                _at("a layer's fused graph and a slice", _fused, "aten.slice"),
            ],
        ),
        "Whoever writes one of them writes all of them.",
    ),
    "02.dying": Exercise(
        same_as(
            dying_reference,
            [
                _at("no nodes", lambda: (), "aten.mm"),
                _at("one input", lambda: toy_graph()[:1], "placeholder"),
                _at(
                    "the toy graph without add, whose neg has another reader", toy_graph, "aten.add"
                ),
                _at("the toy graph without write, which reads empty and add", toy_graph, WRITE),
                _at("the toy graph without output, where write stays", toy_graph, "output"),
                _at("a layer's functional graph without output", _functional, "output"),
                _at("a layer's fused graph without its attention", _fused, ATTENTION),
            ],
        ),
        "This is dead-code elimination: from the erased node upwards, sparing what writes.",
    ),
}
