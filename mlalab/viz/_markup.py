"""Markup that every picture of a graph is made of: boxes, marks, badges, lines, a legend's row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from mlalab.viz.boxes import Label
from mlalab.viz.folding import ShownEdge
from mlalab.viz.layout import Layout, Placed, Point
from mlalab.viz.measure import text_width
from mlalab.viz.theme import NOTE_SIZE, SUB_SIZE

_TITLE_LINE = 15
_SUB_LINE = 13
_MARK_RADIUS = 8
_BADGE_ROOM = 24


@dataclass(frozen=True, slots=True)
class Panel:
    """Markup of a graph whose upper left corner is at 0, 0."""

    markup: str
    width: int
    height: int


def box(
    attributes: str, at: Placed, words: Label, *, title: str, frame: str, glyph: str | None
) -> str:
    """One box at its place: its frame and text, and the mark, if any, on its upper left corner.

    Args:
        attributes: of the group; `title`: its tooltip, which may be empty.
    """
    return (
        f'<g {attributes} transform="translate({at.x} {at.y})">'
        + (f"<title>{escape(title)}</title>" if title else "")
        + frame
        + _text(words)
        + _mark(glyph, -words.width // 2, -words.height // 2)
        + "</g>"
    )


def rect(name: str, width: int, height: int, radius: int, shift: int = 0) -> str:
    """A rectangle around 0, 0, moved down and to the right by `shift`."""
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


def _mark(glyph: str | None, x: int, y: int) -> str:
    if glyph is None:
        return ""
    return (
        f'<g transform="translate({x} {y})"><circle class="m" r="{_MARK_RADIUS}"/>'
        f'<path class="g" d="{glyph}"/></g>'
    )


def swatch(css: str, glyph: str | None, inner: str | None) -> str:
    """A small box for the legend; `inner` is the class of a second outline inside."""
    second = "" if inner is None else rect(inner, 21, 9, 2)
    return (
        f'<g class="{css}" transform="translate(16 0)">{rect("b", 28, 16, 4)}{second}'
        f"{_mark(glyph, -14, 0)}</g>"
    )


def legend_row(entries: Iterable[tuple[str, str]], *, folded: bool) -> Panel:
    """A row of marks, each with its meaning; `folded` adds that of the badge on a line."""
    parts, x = [], 10
    more = [(f'<g transform="translate(14 0)">{_count("n")}</g>', "n views folded")]
    for mark, text in (*entries, *(more if folded else ())):
        parts.append(
            f'<g transform="translate({x} 12)">{mark}<text class="f" x="36" y="4">{text}</text></g>'
        )
        x += 36 + round(text_width(text, NOTE_SIZE)) + 26
    return Panel("".join(parts), x if parts else 0, 24 if parts else 0)


def badge(edge: ShownEdge, plan: Layout) -> str:
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


def path(route: Sequence[Point], sag: int = 0) -> str:
    """The `d` of a line through these points; its curves hang `sag` pixels lower."""
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
