"""One graph that holds two: a step's nodes together with the ones that the step erased.

The step itself says what it created, erased and rewired (recorded by FX's own hooks), so nothing
is guessed here by comparing text or structure.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from mlalab.records import NodeRecord, StepRecord

State = Literal["same", "created", "erased", "rewired"]
Edge = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Overlay:
    """A graph to draw, in topological order, with what the step did to each node and edge."""

    records: dict[str, NodeRecord]
    states: dict[str, State]
    edges: dict[Edge, State]
    touched: frozenset[str]
    """Nodes that must stay visible: changed, matched, refused, or written in place."""
    waits: tuple[Edge, ...]
    """(writer, reader): an in-place write and a node that must run after it, though it reads the
    buffer rather than the writer. Functional graphs have none; a drawing that forgot them would
    show a read above the write that it depends on."""


def overlay(step: StepRecord, before: StepRecord | None = None) -> Overlay:
    """The step's graph; with `before`, also the nodes and edges that the step removed."""
    if before is None or step.retraced:
        return _overlay({node.name: node for node in step.nodes}, {}, {}, ())
    after = {node.name: node for node in step.nodes}
    old = {node.name: node for node in before.nodes}
    gone = {name: old[name] for name in step.erased if name in old and name not in after}
    states = _after_states(step) | dict.fromkeys(gone, "erased")
    edges = {edge: _edge_state(edge, states, old) for edge in _edges(after.values())}
    for edge in _edges(old.values()):
        if edge not in edges and all(name in states or name in after for name in edge):
            edges[edge] = "erased"
    shown = {name for match in step.matches for name in match.matched}
    shown |= {refusal.at for refusal in step.refusals if refusal.at is not None}
    return _overlay(after | gone, states, edges, shown)


def before_side(before: StepRecord, after: StepRecord) -> Overlay:
    """The graph before a step, with the nodes that the step is about to erase."""
    erased: tuple[str, ...] = () if after.retraced else after.erased
    states: dict[str, State] = dict.fromkeys(erased, "erased")
    records = {node.name: node for node in before.nodes}
    edges = {edge: _edge_state(edge, states, records) for edge in _edges(records.values())}
    matched = {name for match in after.matches for name in match.matched}
    return _overlay(records, states, edges, matched)


def after_side(before: StepRecord, after: StepRecord) -> Overlay:
    """The graph after a step, with the nodes that the step created or rewired."""
    records = {node.name: node for node in after.nodes}
    old = {node.name: node for node in before.nodes}
    states: dict[str, State] = {} if after.retraced else _after_states(after)
    edges = {edge: _edge_state(edge, states, old) for edge in _edges(records.values())}
    return _overlay(records, states, edges, ())


def topological(names: Iterable[str], edges: Iterable[Edge]) -> list[str]:
    """`names` in an order in which edges point forward, as close to the given one as possible.

    An overlay may hold a cycle (an erased node between two nodes that changed places); it is
    then broken at the earliest node that is left.
    """
    place = {name: i for i, name in enumerate(names)}
    by_place = list(place)
    readers: dict[str, list[str]] = {name: [] for name in place}
    waiting = dict.fromkeys(place, 0)
    for source, target in edges:
        readers[source].append(target)
        waiting[target] += 1
    ready = [place[name] for name, count in waiting.items() if not count]
    result: dict[str, None] = {}
    earliest = iter(by_place)
    while len(result) < len(by_place):
        if not ready:
            ready.append(place[next(name for name in earliest if name not in result)])
        name = by_place[heapq.heappop(ready)]
        if name in result:
            continue
        result[name] = None
        for reader in readers[name]:
            waiting[reader] -= 1
            if not waiting[reader] and reader not in result:
                heapq.heappush(ready, place[reader])
    return list(result)


def _overlay(
    records: Mapping[str, NodeRecord],
    states: Mapping[str, State],
    edges: Mapping[Edge, State],
    matched: Iterable[str],
) -> Overlay:
    known = edges or dict.fromkeys(_edges(records.values()), "same")
    known = {edge: state for edge, state in known.items() if all(n in records for n in edge)}
    order = topological(records, known)
    written = {name for record in records.values() for name in record.mutates}
    live = [record for record in records.values() if states.get(record.name) != "erased"]
    return Overlay(
        records={name: records[name] for name in order},
        states={name: states.get(name, "same") for name in order},
        edges=known,
        touched=frozenset(states) | frozenset(matched) | written,
        waits=tuple(_waits(live)),
    )


def _waits(nodes: Iterable[NodeRecord]) -> Iterable[Edge]:
    """For every node, the last write before it to storage that it reads."""
    roots: dict[str, str] = {}
    writers: dict[str, str] = {}
    for node in nodes:
        read = {roots.get(source, source) for source in node.inputs}
        yield from ((writers[root], node.name) for root in sorted(read) if root in writers)
        roots[node.name] = node.alias_of or node.name
        writers |= {roots.get(name, name): node.name for name in node.mutates}


def _after_states(step: StepRecord) -> dict[str, State]:
    states: dict[str, State] = dict.fromkeys(step.rewired, "rewired")
    return states | dict.fromkeys(step.created, "created")


def _edges(nodes: Iterable[NodeRecord]) -> dict[Edge, None]:
    return {(source, node.name): None for node in nodes for source in node.inputs}


def _edge_state(edge: Edge, states: Mapping[str, State], old: Mapping[str, NodeRecord]) -> State:
    """Created if an end is new or a rewired node did not read it before; erased likewise."""
    ends = {states.get(name, "same") for name in edge}
    if "erased" in ends:
        return "erased"
    was_there = edge[1] in old and edge[0] in old[edge[1]].inputs
    rewired = states.get(edge[1]) == "rewired" and not was_there
    return "created" if "created" in ends or rewired else "same"
