"""The picture of a step: one SVG, the same wherever it is shown.

It is plain markup without scripts, ids or references, so it works as an `<img>` in a notebook
that nobody has run or trusted yet, as a file, and inside the exported page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from mlalab.records import StepRecord
from mlalab.viz import theme
from mlalab.viz._markup import Panel
from mlalab.viz._panel import draw_panel, legend
from mlalab.viz.alt import before_after_alt, counts_text, step_alt
from mlalab.viz.card import card
from mlalab.viz.folding import Show, View, focus, fold
from mlalab.viz.measure import text_width
from mlalab.viz.overlay import after_side, before_side, overlay

_MARGIN = 20
_HEAD = 56
_GAP = 40
_WIDEST = 1240
"""Two graphs stand side by side up to this width, above each other beyond."""


def step_svg(step: StepRecord, before: StepRecord | None = None, *, show: Show = "changes") -> str:
    """Draw one graph; with `before`, also what the step created, erased and rewired."""
    view = fold(overlay(step, before), show)
    heads = [(step.name, counts_text(step, before))]
    return _document([draw_panel(view, tooltips=True)], heads, [view], step_alt(step, before))


def bare_svg(view: View) -> str:
    """A graph without card, heading, style sheet and tooltips: the stepper has its own."""
    panel = draw_panel(view, tooltips=False)
    width, height = panel.width + 2 * _MARGIN, panel.height + 2 * _MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="mg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">'
        f'<g transform="translate({_MARGIN} {_MARGIN})">{panel.markup}</g></svg>'
    )


def legend_svg() -> str:
    """The legend alone, for the page that shows bare pictures."""
    key = legend()
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="mg" viewBox="0 0 {key.width} {key.height}"'
        f' width="{key.width}" height="{key.height}">{key.markup}</svg>'
    )


def before_after_svg(before: StepRecord, after: StepRecord) -> str:
    """Draw two graphs: what is about to be erased, and what took its place.

    Only the changed nodes and their neighbours, unless nothing changed: two whole graphs next to
    each other would be too small to read.
    """
    changed = {*after.created, *after.erased, *after.rewired}
    views = [
        focus(fold(side), changed)
        for side in (before_side(before, after), after_side(before, after))
    ]
    panels = [draw_panel(view, tooltips=True) for view in views]
    heads = [
        (f"before {after.name}", f"{len(before.nodes)} nodes"),
        (f"after {after.name}", counts_text(after, before)),
    ]
    return _document(panels, heads, views, before_after_alt(before, after))


@dataclass(frozen=True, slots=True)
class _Block:
    """A panel with its heading above and its count below."""

    markup: str
    width: int
    height: int


def _block(panel: Panel, head: tuple[str, str], view: View) -> _Block:
    title, sub = head
    words = (title, theme.HEAD_SIZE, True), (sub, 12, False), (_share(view), 11, False)
    wide = max(panel.width, *(round(text_width(t, s, bold=b)) for t, s, b in words))
    foot = _HEAD + panel.height + 30
    markup = (
        f'<text class="h" x="0" y="10">{escape(title)}</text>'
        f'<text class="f" x="0" y="28">{escape(sub)}</text>'
        f'<g transform="translate({(wide - panel.width) // 2} {_HEAD})">{panel.markup}</g>'
        f'<text class="f" x="0" y="{foot}">{escape(_share(view))}</text>'
    )
    return _Block(markup, wide, foot)


def _document(
    panels: Sequence[Panel],
    heads: Sequence[tuple[str, str]],
    views: Sequence[View],
    alt: str,
) -> str:
    """Panels on one card with the legend below: in a row where a notebook can show it unshrunk."""
    blocks = [_block(*parts) for parts in zip(panels, heads, views, strict=True)]
    row = sum(block.width + _GAP for block in blocks) - _GAP <= _WIDEST
    x = y = _MARGIN
    parts: list[str] = []
    right = bottom = 0
    for block in blocks:
        parts.append(f'<g transform="translate({x} {y})">{block.markup}</g>')
        right, bottom = max(right, x + block.width), max(bottom, y + block.height)
        x, y = (x + block.width + _GAP, y) if row else (x, y + block.height + _GAP)
    key = _legend(views)
    parts.append(f'<g transform="translate({_MARGIN - 10} {bottom + 6})">{key.markup}</g>')
    width, height = max(right, _MARGIN + key.width) + _MARGIN, bottom + key.height + _MARGIN
    return card(width, height, "".join(parts), alt)


def _legend(views: Sequence[View]) -> Panel:
    return legend(
        {node.state for view in views for node in view.nodes},
        writes=any(view.writes for view in views),
        shared=any(edge.shared for view in views for edge in view.edges),
        folded=any(edge.folded for view in views for edge in view.edges),
    )


def _share(view: View) -> str:
    """How much of the graph the picture shows."""
    boxes = [node.layers for node in view.nodes if node.layers is not None]
    drawn = len(view.nodes) - len(boxes)
    parts = [f"{drawn} of {view.total} nodes drawn"]
    if view.folded:
        parts.append(f"{view.folded} views folded into lines")
    if boxes:
        layers = sum(len(box.layers) for box in boxes)
        parts.append(f"{layers} like layers are one box" if layers > 1 else "1 like layer is a box")
    return " · ".join(parts)
