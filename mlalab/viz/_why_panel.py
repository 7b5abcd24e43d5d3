"""A pattern as a picture: what agreed with the graph, the node that did not, what nobody reached.

Marks and borders tell the three apart as well as colours do: ✓ and a solid border, ✗ and a double
one with dashes, no mark and dots. The nodes are no nodes of the graph, so they carry no `data-n`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from html import escape
from typing import Literal

from mlalab.records import NodeRecord, PatternRecord, Refusal
from mlalab.viz import theme
from mlalab.viz._markup import Panel, badge, box, legend_row, path, rect, swatch
from mlalab.viz.boxes import Label, label, tooltip
from mlalab.viz.folding import ShownEdge, View, fold
from mlalab.viz.layout import Layout, Placed, lay_out
from mlalab.viz.measure import elide, text_width
from mlalab.viz.overlay import Overlay

Fate = Literal["agreed", "failed", "unreached"]

_CLASS: dict[Fate, str] = {"agreed": "ok", "failed": "no", "unreached": "un"}
_GLYPH: dict[Fate, str] = {
    "agreed": "M-4 .5L-1.3 3.4 4-3.2",
    "failed": "M-3.4-3.4 3.4 3.4M-3.4 3.4 3.4-3.4",
}
_INNER: dict[Fate, str] = {"failed": "j"}
_MEANING: dict[Fate, str] = {
    "agreed": "agrees",
    "failed": "differs",
    "unreached": "not reached",
}
_LONGEST = 44


def why_style() -> str:
    """The style that a picture of a pattern needs beside `theme.style`."""
    good, bad = theme.STROKE["created"], theme.STROKE["erased"]
    return (
        ".mg .y text{font-weight:600;text-anchor:middle}"
        f".mg .y .x{{fill:{theme.CUSTOM}}}.mg .y .p{{font-weight:400;font-size:{theme.SUB_SIZE}px}}"
        f".mg .y .u{{font-size:{theme.SUB_SIZE}px;font-weight:400}}"
        f".mg .ok>.b{{fill:{theme.FILL['created']};stroke:{good};stroke-width:2}}"
        f".mg .ok .m{{fill:{good}}}.mg .no .m,.mg .no .v{{fill:{bad}}}"
        f".mg .no>.b{{fill:{theme.FILL['erased']};stroke:{bad};stroke-width:2.6;"
        f"stroke-dasharray:6 3}}.mg .no>.j{{fill:none;stroke:{bad};stroke-width:1}}"
        f".mg .un>.b{{fill:{theme.CARD};stroke:{theme.LINE};stroke-width:1;"
        f"stroke-dasharray:1.5 3}}.mg .un text{{fill:{theme.FAINT};font-weight:400}}"
        f".mg .un .x{{fill:{theme.FAINT}}}"
        f".mg .l{{fill:none;stroke:{theme.LINE};stroke-width:1.3}}"
        ".mg .lu{stroke-width:1;stroke-dasharray:1.5 3}"
    )


def fates(pattern: PatternRecord, refusal: Refusal) -> dict[str, Fate]:
    """What became of each node of the pattern; without the output, which computes nothing."""
    found: dict[str, Fate] = dict.fromkeys(refusal.agreed, "agreed")
    if refusal.failed is not None:
        found[refusal.failed] = "failed"
    names = (node.name for node in pattern.nodes if node.op != "output")
    return {name: found.get(name, "unreached") for name in names}


def draw_pattern(pattern: PatternRecord, refusal: Refusal, *, live: bool) -> tuple[Panel, bool]:
    """Lay out and draw the pattern; say whether views are folded into its lines.

    With `live` the failing node is a button that carries the graph's node as `data-pick`; otherwise
    each node has a tooltip.
    """
    fate = fates(pattern, refusal)
    view = _view(pattern, fate)
    labels = {node.key: label(node) for node in view.nodes}
    if refusal.failed is not None:
        labels[refusal.failed] = _with_finding(labels[refusal.failed], refusal)
    plan = lay_out(
        [labels[node.key].box(node.key) for node in view.nodes],
        [(edge.source, edge.target) for edge in view.edges],
    )
    parts = [_line(edge, plan, fate) for edge in view.edges]
    for node in view.nodes:
        assert node.record is not None
        says = _button(refusal) if live and fate[node.key] == "failed" else ""
        words, at = labels[node.key], plan.boxes[node.key]
        parts.append(_node(fate[node.key], words, at, says, None if live else node.record))
    parts += [badge(edge, plan) for edge in view.edges if edge.folded]
    folded = any(edge.folded for edge in view.edges)
    return Panel("".join(parts), plan.width, plan.height), folded


def why_legend(shown: Collection[Fate], *, folded: bool) -> Panel:
    """A row of the marks that occur, each with its meaning."""
    entries = [
        (swatch(_CLASS[fate], _GLYPH.get(fate), _INNER.get(fate)), text)
        for fate, text in _MEANING.items()
        if fate in shown
    ]
    return legend_row(entries, folded=folded)


def _view(pattern: PatternRecord, fate: Mapping[str, Fate]) -> View:
    """What is drawn: the failing node and the results always."""
    records = {node.name: node for node in pattern.nodes if node.op != "output"}
    results = {name for node in pattern.nodes if node.op == "output" for name in node.inputs}
    failed = {name for name, what in fate.items() if what == "failed"}
    graph = Overlay(
        records=records,
        states=dict.fromkeys(records, "same"),
        edges={(a, node.name): "same" for node in records.values() for a in node.inputs},
        touched=frozenset(results | failed),
        waits=(),
    )
    return fold(graph)


def _with_finding(words: Label, refusal: Refusal) -> Label:
    """The label of the failing node with what the pattern expects and what the graph has."""
    said = f"expected {refusal.expected}", f"found {refusal.found}"
    lines = [elide(line, _LONGEST) for line in said]
    widest = max(text_width(line, theme.SUB_SIZE) for line in lines)
    width = 2 * math.ceil((widest + 24) / 2)
    return replace(
        words,
        kind="op" if words.kind == "input" else words.kind,
        subs=(*words.subs, *lines),
        width=max(words.width, width),
        height=max(words.height, 30) + 26,
    )


def _button(refusal: Refusal) -> str:
    pick = escape(refusal.at or refusal.node)
    return (
        f' role="button" tabindex="0" data-pick="{pick}" '
        f'aria-label="{escape(f"expected {refusal.expected}, found {refusal.found}")}: {pick}"'
    )


def _node(fate: Fate, words: Label, at: Placed, says: str, record: NodeRecord | None) -> str:
    """One box with its mark; `says` are more attributes."""
    frame = rect("b", words.width, words.height, 11 if words.kind == "input" else 6)
    if fate in _INNER:
        frame += rect(_INNER[fate], words.width - 7, words.height - 7, 4)
    attributes = f'class="y {_CLASS[fate]}"{says}'
    title = "" if record is None else tooltip(record)
    return box(attributes, at, words, title=title, frame=frame, glyph=_GLYPH.get(fate))


def _line(edge: ShownEdge, plan: Layout, fate: Mapping[str, Fate]) -> str:
    """A line with an arrow head: dotted where nothing was compared."""
    route = plan.routes[edge.source, edge.target]
    dotted = "unreached" in (fate[edge.source], fate[edge.target])
    return f'<path class="l{" lu" if dotted else ""}" d="{path(route)}m-4 -5 4 5 4 -5"/>'
