"""One laid-out graph as SVG markup, and the legend that explains its marks."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape

from mlalab.viz.boxes import Label, label, tooltip
from mlalab.viz.folding import ShownEdge, ShownNode, View
from mlalab.viz.layout import Layout, Placed, Point, lay_out
from mlalab.viz.measure import text_width
from mlalab.viz.overlay import State
from mlalab.viz.theme import CLASS, NOTE_SIZE, SUB_SIZE

_TITLE_LINE = 15
_SUB_LINE = 13
_MARK_RADIUS = 8
_GLYPHS: dict[State, str] = {
    "created": "M-4 0H4M0-4V4",
    "erased": "M-4 0H4",
    "rewired": "M-4.5 1.2C-3-3 -1-2 0 0S3 3 4.5-1.2",
}
_WRITE_OFFSET = 7
"""A write runs beside the line that brought the buffer, this many pixels to its right."""
_WRITE_SAG = 8
"""Its curves also hang lower, or it would hide behind that line where both run sideways."""
_BADGE_ROOM = 24
_MEANINGS: dict[State, str] = {
    "created": "created",
    "erased": "erased",
    "rewired": "reads something else now",
}


@dataclass(frozen=True, slots=True)
class Panel:
    """Markup of a graph whose upper left corner is at 0, 0."""

    markup: str
    width: int
    height: int


def draw_panel(view: View, *, tooltips: bool) -> Panel:
    """Lay out and draw a view. `tooltips` adds everything known of a node as its `<title>`."""
    labels = {node.key: label(node) for node in view.nodes}
    plan = lay_out(
        [labels[node.key].box(node.key) for node in view.nodes],
        [(edge.source, edge.target) for edge in view.edges],
        view.waits,
    )
    written = {buffer for _, buffer in view.writes}
    parts = [_edge(edge, plan) for edge in view.edges]
    parts += [_write(node, buffer, plan) for node, buffer in view.writes]
    parts += [_node(n, plan.boxes[n.key], labels[n.key], written, tooltips) for n in view.nodes]
    parts += [_badge(edge, plan) for edge in view.edges if edge.folded]
    return Panel("".join(parts), plan.width, plan.height)


def legend(
    states: Collection[State] = tuple(_MEANINGS),
    *,
    writes: bool = True,
    shared: bool = True,
    folded: bool = True,
) -> Panel:
    """A row of marks, each with its meaning; all of them unless told otherwise."""
    entries = [(_swatch(state), text) for state, text in _MEANINGS.items() if state in states]
    if writes:
        dots = '<g class="w"><path d="M0 0H26"/><path class="a" d="M22-4l4 4-4 4"/></g>'
        entries.append((dots, "writes in place"))
    if shared:
        ring = '<circle class="o" cx="5" r="4"/>'
        line = f'<g class="e es"><path d="M0 0H26m-4-4 4 4-4 4"/>{ring}</g>'
        entries.append((line, "a view: same memory"))
    if folded:
        entries.append((f'<g transform="translate(14 0)">{_count("n")}</g>', "n views folded"))
    parts = []
    x = 10
    for mark, text in entries:
        parts.append(
            f'<g transform="translate({x} 12)">{mark}<text class="f" x="36" y="4">{text}</text></g>'
        )
        x += 36 + round(text_width(text, NOTE_SIZE)) + 26
    return Panel("".join(parts), x if parts else 0, 24 if parts else 0)


def _node(
    node: ShownNode, at: Placed, words: Label, written: Collection[str], tooltips: bool
) -> str:
    """One box with its text and state mark, at its place."""
    attributes = f'class="n {CLASS[node.state]}" data-n="{escape(node.key)}"'
    title = ""
    if node.layers is not None:
        title = ", ".join(node.layers.layers)
    elif tooltips and node.record is not None:
        title = tooltip(node.record)
    return (
        f'<g {attributes} transform="translate({at.x} {at.y})">'
        + (f"<title>{escape(title)}</title>" if title else "")
        + _frame(node, words, node.key in written)
        + _text(words)
        + _mark(node.state, -at.width // 2, -at.height // 2)
        + "</g>"
    )


def _frame(node: ShownNode, words: Label, written: bool) -> str:
    """The outline: a second one inside if rewired, sheets behind it for a stack of layers."""
    round_ends = words.kind == "input" and not written
    frame = _rect("b", words.width, words.height, 11 if round_ends else 6)
    if node.layers is not None:
        return _rect("b", words.width, words.height, 6, shift=5) + frame
    if node.state == "rewired":
        return frame + _rect("i", words.width - 7, words.height - 7, 4)
    return frame


def _rect(name: str, width: int, height: int, radius: int, shift: int = 0) -> str:
    x, y = _number(-width / 2 + shift), _number(-height / 2 + shift)
    return f'<rect class="{name}" x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}"/>'


def _text(words: Label) -> str:
    """The lines of a label, centred; a pill has name and shape in one line."""
    if words.kind == "input":
        shape = f'<tspan class="u" dx="5">{escape(words.subs[0])}</tspan>' if words.subs else ""
        return f'<text class="p" y="3.5">{escape(words.titles[0])}{shape}</text>'
    y = -(len(words.titles) * _TITLE_LINE + len(words.subs) * _SUB_LINE) // 2 + 11
    title_class = ' class="x"' if words.kind == "custom" else ""
    parts = []
    for line in words.titles:
        parts.append(f'<text{title_class} y="{y}">{escape(line)}</text>')
        y += _TITLE_LINE
    y -= 1
    for line in words.subs:
        parts.append(f'<text class="u" y="{y}">{escape(line)}</text>')
        y += _SUB_LINE
    return "".join(parts)


def _mark(state: State, x: int, y: int) -> str:
    """The +, − or ~ of a changed node, on its upper left corner."""
    if state == "same":
        return ""
    return (
        f'<g transform="translate({x} {y})"><circle class="m" r="{_MARK_RADIUS}"/>'
        f'<path class="g" d="{_GLYPHS[state]}"/></g>'
    )


def _swatch(state: State) -> str:
    inner = _rect("i", 21, 9, 2) if state == "rewired" else ""
    return (
        f'<g class="{CLASS[state]}" transform="translate(16 0)">{_rect("b", 28, 16, 4)}{inner}'
        f"{_mark(state, -14, 0)}</g>"
    )


def _edge(edge: ShownEdge, plan: Layout) -> str:
    """A line with an open arrow head, and both ends' names for the page to highlight it by."""
    route = plan.routes[edge.source, edge.target]
    back = -5 if route[-1][1] >= route[-2][1] else 5
    head = f"m-4 {back} 4 {-back} 4 {back}"
    attributes = f'class="e e{CLASS[edge.state]}" {_ends(edge.source, edge.target)}'
    ring = _ring(*route[0]) if edge.shared else ""
    if edge.state == "erased":  # a dashed arrow head would fall apart
        x, y = route[-1]
        tip = f'<path class="a" d="M{x} {y}{head}"/>'
        return f'<g {attributes}><path d="{_path(route)}"/>{tip}{ring}</g>'
    if ring:
        return f'<g {attributes}><path d="{_path(route)}{head}"/>{ring}</g>'
    return f'<path {attributes} d="{_path(route)}{head}"/>'


def _ring(x: int, y: int) -> str:
    """The mark of shared memory, where a line leaves the buffer."""
    return f'<circle class="o" cx="{x}" cy="{y + 5}" r="4"/>'


def _write(node: str, buffer: str, plan: Layout) -> str:
    """A dotted line from a node back up to the buffer that it writes in place."""
    route = plan.routes.get((buffer, node))
    if route is None:
        return ""
    shifted = [(x + _WRITE_OFFSET, y) for x, y in reversed(route)]
    (x, y) = shifted[-1]
    return (
        f'<g class="w" {_ends(node, buffer)}><path d="{_path(shifted, _WRITE_SAG)}"/>'
        f'<path class="a" d="M{x} {y}m-4 5 4 -5 4 5"/></g>'
    )


def _ends(source: str, target: str) -> str:
    """Names of both ends, for the page to find the lines of a node by."""
    return f'data-a="{escape(source)}" data-b="{escape(target)}"'


def _badge(edge: ShownEdge, plan: Layout) -> str:
    """How many nodes a line stands for, on the line just above its end."""
    route = plan.routes[edge.source, edge.target]
    steps = list(zip(route[::-1], route[-2::-1], strict=False))
    roomy = (step for step in steps if abs(step[0][1] - step[1][1]) >= _BADGE_ROOM)
    (x1, y1), (x2, y2) = next(roomy, steps[0])
    x, y = (x1 + x2) // 2, (y1 + y2) // 2
    return (
        f'<g transform="translate({x} {y})"><title>{escape(", ".join(edge.folded))}</title>'
        f"{_count(str(len(edge.folded)))}</g>"
    )


def _count(text: str) -> str:
    width = 2 * math.ceil(max(14, text_width(text, SUB_SIZE) + 8) / 2)
    return (
        f'<rect class="q" x="{-width // 2}" y="-7" width="{width}" height="14" rx="7"/>'
        f'<text class="u" text-anchor="middle" y="3.5">{text}</text>'
    )


def _path(route: Sequence[Point], sag: int = 0) -> str:
    x, y = route[0]
    parts = [f"M{x} {y}"]
    for i, (nx, ny) in enumerate(route[1:], 2):
        middle = (y + ny) // 2 + sag
        if nx != x:
            parts.append(f"C{x} {middle} {nx} {middle} {nx} {ny}")
        elif i == len(route) or route[i][0] != x:  # the last of a straight run
            parts.append(f"V{ny}")
        x, y = nx, ny
    return "".join(parts)


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
