"""What of a graph is worth drawing: plumbing folded into edges, equal layers into one box.

Half of a captured graph only moves views around. Hiding that makes it readable, as long as
nothing that a pass touched is hidden and the picture says how much it leaves out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from mlalab.records import NodeRecord
from mlalab.viz._layers import LayerBox, layer_boxes
from mlalab.viz.overlay import Edge, Overlay, State, topological

Show = Literal["changes", "all"]
"""`changes` folds what the step left alone; `all` draws every node."""

_PRIORITY: tuple[State, ...] = ("created", "rewired", "same", "erased")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownNode:
    """One box of the picture: a node, or several equal layers."""

    key: str
    state: State
    record: NodeRecord | None = None
    """The node; None for a box of layers."""
    layers: LayerBox | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownEdge:
    """One line of the picture; `folded` are the plumbing nodes that it stands for."""

    source: str
    target: str
    state: State
    folded: tuple[str, ...] = ()
    shared: bool = False
    """Whether both ends are the same memory: the target is a view of the source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Everything that is drawn, and how much is not."""

    nodes: tuple[ShownNode, ...]
    edges: tuple[ShownEdge, ...]
    writes: tuple[Edge, ...]
    """(box, buffer that it writes in place), both drawn."""
    waits: tuple[Edge, ...]
    """(box, box that must come below it although no line joins them)."""
    total: int
    folded: int
    """Nodes hidden in edges."""


def fold(graph: Overlay, show: Show = "changes") -> View:
    """Choose what to draw of `graph`."""
    boxes = layer_boxes(graph) if show == "changes" else []
    inside = {name: box.key for box in boxes for name in box.members}
    hidden = _foldable(graph) - inside.keys() if show == "changes" else set()
    edges = _merge(_shortcut(graph, hidden), inside)
    memory = {name: record.alias_of or name for name, record in graph.records.items()}
    if show == "changes":
        hidden |= _cut_off(graph, edges, hidden | inside.keys())
    shown = {box.key: ShownNode(key=box.key, state="same", layers=box) for box in boxes}
    for name, record in graph.records.items():
        if name not in hidden and name not in inside:
            shown[name] = ShownNode(key=name, state=graph.states[name], record=record)
    places = dict.fromkeys(inside.get(name, name) for name in graph.records if name not in hidden)
    writes = ((n, buffer) for n, record in graph.records.items() for buffer in record.mutates)
    waits = _between(graph.waits, inside, shown)
    return View(
        nodes=tuple(shown[key] for key in topological(places, [*edges, *waits])),
        edges=tuple(
            replace(edge, shared=a in memory and memory[a] == memory.get(b))
            for (a, b), edge in edges.items()
        ),
        writes=_between(writes, inside, shown),
        waits=waits,
        total=len(graph.records),
        folded=len(hidden),
    )


def focus(view: View, names: set[str]) -> View:
    """The part of a view with the named nodes and their neighbours; all of it if it has none.

    A box of layers that holds one of them stays as well.
    """
    centre = {
        node.key
        for node in view.nodes
        if node.key in names or (node.layers and names.intersection(node.layers.members))
    }
    if not centre:
        return view
    near = [edge for edge in view.edges if edge.source in centre or edge.target in centre]
    kept = centre | {key for edge in near for key in (edge.source, edge.target)}
    return replace(
        view,
        nodes=tuple(node for node in view.nodes if node.key in kept),
        edges=tuple(e for e in view.edges if e.source in kept and e.target in kept),
        writes=tuple(pair for pair in view.writes if kept.issuperset(pair)),
        waits=tuple(pair for pair in view.waits if kept.issuperset(pair)),
    )


def _foldable(graph: Overlay) -> set[str]:
    """Plumbing that the step neither changed, matched nor writes to."""
    return {
        name
        for name, record in graph.records.items()
        if record.plumbing and record.inputs and name not in graph.touched
    }


def _shortcut(graph: Overlay, hidden: set[str]) -> Iterable[ShownEdge]:
    """The edges between visible nodes, straight through the hidden ones."""
    entering: dict[str, list[Edge]] = {name: [] for name in graph.records}
    for edge in graph.edges:
        entering[edge[1]].append(edge)
    origins: dict[str, dict[str, tuple[str, ...]]] = {name: {} for name in hidden}
    for name in graph.records:
        if name in hidden:
            origins[name] = _origins(graph, name, entering[name], origins)
            continue
        for edge in entering[name]:
            state = graph.edges[edge]
            if edge[0] not in hidden:
                yield ShownEdge(source=edge[0], target=name, state=state)
                continue
            for source, via in origins[edge[0]].items():
                yield ShownEdge(source=source, target=name, state=state, folded=via)


def _origins(
    graph: Overlay,
    name: str,
    entering: Iterable[Edge],
    origins: Mapping[str, Mapping[str, tuple[str, ...]]],
) -> dict[str, tuple[str, ...]]:
    """Visible nodes whose data a hidden node passes on, with the hidden nodes on the way.

    Inputs other than the first count only if they are tensors: a size is not data.
    """
    found: dict[str, tuple[str, ...]] = {}
    for i, (source, _) in enumerate(entering):
        if i and graph.records[source].shape is None:
            continue
        for origin, via in origins.get(source, {source: ()}).items():
            found[origin] = tuple(dict.fromkeys((*found.get(origin, ()), *via, name)))
    return found


def _merge(edges: Iterable[ShownEdge], inside: Mapping[str, str]) -> dict[Edge, ShownEdge]:
    """One edge for each pair of boxes; the badge of a merged edge counts every folded node once."""
    merged: dict[Edge, ShownEdge] = {}
    for edge in edges:
        pair = inside.get(edge.source, edge.source), inside.get(edge.target, edge.target)
        if pair[0] == pair[1]:
            continue
        state, folded = edge.state, edge.folded if pair == (edge.source, edge.target) else ()
        if pair in merged:
            state = min(state, merged[pair].state, key=_PRIORITY.index)
            folded = tuple(dict.fromkeys((*merged[pair].folded, *folded)))
        merged[pair] = ShownEdge(source=pair[0], target=pair[1], state=state, folded=folded)
    return merged


def _cut_off(graph: Overlay, edges: Iterable[Edge], absent: set[str]) -> set[str]:
    """Untouched nodes whose every line was folded away: sizes that only plumbing reads."""
    linked = {name for edge in graph.edges for name in edge}
    still = {name for edge in edges for name in edge}
    return linked - still - absent - graph.touched


def _between(
    pairs: Iterable[Edge], inside: Mapping[str, str], shown: Mapping[str, ShownNode]
) -> tuple[Edge, ...]:
    """Pairs of nodes as pairs of different boxes, those that are both drawn."""
    boxes = ((inside.get(a, a), inside.get(b, b)) for a, b in pairs)
    return tuple(
        dict.fromkeys(p for p in boxes if p[0] != p[1] and p[0] in shown and p[1] in shown)
    )
