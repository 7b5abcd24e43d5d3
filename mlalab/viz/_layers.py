"""Equal layers collapsed into one box, so that a model of 61 layers draws like one of two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mlalab.viz.overlay import Edge, Overlay, State


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerBox:
    """Layers drawn as one box."""

    key: str
    layers: tuple[str, ...]
    members: tuple[str, ...]
    """Names of the nodes inside, with those that lie between the layers."""
    changes: tuple[tuple[State, int], ...]
    """How many of the members the step created, erased and rewired."""


def layer_boxes(graph: Overlay) -> list[LayerBox]:
    """Boxes for runs of layers that are like an earlier one, which stays drawn in full.

    Layers are alike when they hold the same ops, changed by the step in the same way; so a layer
    in which a fusion did not fire is never hidden behind one in which it did.
    """
    layers: dict[str, list[str]] = {}
    for name, record in graph.records.items():
        if record.layer is not None:
            layers.setdefault(record.layer, []).append(name)
    runs = _runs({layer: _signature(graph, names) for layer, names in layers.items()})
    links = _links(graph.edges)
    boxes: list[LayerBox] = []
    taken: set[str] = set()
    for run in runs:
        members = _closure({name for layer in run for name in layers[layer]}, *links)
        foreign = {graph.records[name].layer for name in members} - {*run, None}
        if foreign or members & taken:
            continue
        taken |= members
        names = tuple(name for name in graph.records if name in members)
        counts = Counter(graph.states[name] for name in names)
        states: tuple[State, ...] = ("created", "erased", "rewired")
        changes = tuple((state, counts[state]) for state in states if counts[state])
        boxes.append(LayerBox(key=f"layers:{run[0]}", layers=run, members=names, changes=changes))
    return boxes


def _signature(graph: Overlay, names: Iterable[str]) -> frozenset[tuple[tuple[str, str], int]]:
    """The multiset of (op, what the step did to it) of a layer; what feeds it has no op."""
    records = ((graph.records[name], graph.states[name]) for name in names)
    ops = Counter((r.target, state) for r, state in records if r.op == "call_function")
    return frozenset(ops.items())


def _runs(signatures: Mapping[str, object]) -> list[tuple[str, ...]]:
    """Consecutive layers with one signature, without the first layer of each signature."""
    seen: set[object] = set()
    runs: list[tuple[str, ...]] = []
    previous = None
    for layer, signature in signatures.items():
        if signature not in seen:
            previous = None
        elif signature == previous:
            runs[-1] = (*runs[-1], layer)
        else:
            runs.append((layer,))
            previous = signature
        seen.add(signature)
    return runs


def _links(edges: Iterable[Edge]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Readers and sources of every node."""
    readers: dict[str, list[str]] = {}
    sources: dict[str, list[str]] = {}
    for source, target in edges:
        readers.setdefault(source, []).append(target)
        sources.setdefault(target, []).append(source)
    return readers, sources


def _closure(
    seed: set[str], readers: Mapping[str, list[str]], sources: Mapping[str, list[str]]
) -> set[str]:
    """The seed, everything on a path between two of its nodes, and inputs that only it reads.

    Without the paths, replacing the seed by one box would close a cycle.
    """
    members = seed | (_reach(seed, readers) & _reach(seed, sources))
    inputs = {source for name in members for source in sources.get(name, ())} - members
    return members | {n for n in inputs if n not in sources and members.issuperset(readers[n])}


def _reach(seed: Iterable[str], links: Mapping[str, list[str]]) -> set[str]:
    """Everything that can be reached from the seed."""
    found: set[str] = set()
    stack = list(seed)
    while stack:
        for other in links.get(stack.pop(), ()):
            if other not in found:
                found.add(other)
                stack.append(other)
    return found
