"""One laid-out graph as SVG markup, and the legend that explains its marks."""

from __future__ import annotations

from collections.abc import Collection
from html import escape

from mlalab.viz._markup import Panel, badge, box, legend_row, path, rect, swatch
from mlalab.viz.boxes import Label, label, tooltip
from mlalab.viz.folding import ShownEdge, ShownNode, View
from mlalab.viz.layout import Layout, Placed, lay_out
from mlalab.viz.overlay import State
from mlalab.viz.theme import CLASS

_GLYPHS: dict[State, str] = {
    "created": "M-4 0H4M0-4V4",
    "erased": "M-4 0H4",
    "rewired": "M-4.5 1.2C-3-3 -1-2 0 0S3 3 4.5-1.2",
}
_INNER: dict[State, str] = {"rewired": "i"}
_WRITE_OFFSET = 7
"""A write runs beside the line that brought the buffer, this many pixels to its right."""
_WRITE_SAG = 8
"""Its curves also hang lower, or it would hide behind that line where both run sideways."""
_MEANINGS: dict[State, str] = {
    "created": "created",
    "erased": "erased",
    "rewired": "reads something else now",
}


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
    parts += [badge(edge, plan) for edge in view.edges if edge.folded]
    return Panel("".join(parts), plan.width, plan.height)


def legend(
    states: Collection[State] = tuple(_MEANINGS),
    *,
    writes: bool = True,
    shared: bool = True,
    folded: bool = True,
) -> Panel:
    """A row of marks, each with its meaning; all of them unless told otherwise."""
    entries = [
        (swatch(CLASS[state], _GLYPHS[state], _INNER.get(state)), text)
        for state, text in _MEANINGS.items()
        if state in states
    ]
    if writes:
        dots = '<g class="w"><path d="M0 0H26"/><path class="a" d="M22-4l4 4-4 4"/></g>'
        entries.append((dots, "writes in place"))
    if shared:
        ring = '<circle class="o" cx="5" r="4"/>'
        line = f'<g class="e es"><path d="M0 0H26m-4-4 4 4-4 4"/>{ring}</g>'
        entries.append((line, "a view: same memory"))
    return legend_row(entries, folded=folded)


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
    frame = _frame(node, words, node.key in written)
    return box(attributes, at, words, title=title, frame=frame, glyph=_GLYPHS.get(node.state))


def _frame(node: ShownNode, words: Label, written: bool) -> str:
    """The outline: a second one inside if rewired, sheets behind it for a stack of layers."""
    round_ends = words.kind == "input" and not written
    frame = rect("b", words.width, words.height, 11 if round_ends else 6)
    if node.layers is not None:
        return rect("b", words.width, words.height, 6, shift=5) + frame
    if node.state == "rewired":
        return frame + rect(_INNER[node.state], words.width - 7, words.height - 7, 4)
    return frame


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
        return f'<g {attributes}><path d="{path(route)}"/>{tip}{ring}</g>'
    if ring:
        return f'<g {attributes}><path d="{path(route)}{head}"/>{ring}</g>'
    return f'<path {attributes} d="{path(route)}{head}"/>'


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
        f'<g class="w" {_ends(node, buffer)}><path d="{path(shifted, _WRITE_SAG)}"/>'
        f'<path class="a" d="M{x} {y}m-4 5 4 -5 4 5"/></g>'
    )


def _ends(source: str, target: str) -> str:
    """Names of both ends, for the page to find the lines of a node by."""
    return f'data-a="{escape(source)}" data-b="{escape(target)}"'
