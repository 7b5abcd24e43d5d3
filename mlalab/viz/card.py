"""The light card that a picture stands on, and the marks for what is no plain number.

A mark has a shape of its own and stands next to a word in the legend: colour alone tells nothing.
"""

from __future__ import annotations

from html import escape

from mlalab.viz import theme
from mlalab.viz.measure import text_width

MARKS = {
    "NaN": ("M-3 -3L3 3M-3 3L3 -3", theme.WRITE),
    "at the limit": ("M-3 3L0 -3L3 3Z", theme.STROKE["erased"]),
    "negative zero": ("M-3.5 0H3.5", theme.STROKE["rewired"]),
}
"""What is marked → (path around 0, 0; colour)."""


def card(width: float, height: float, body: str, alt: str) -> str:
    """Put `body` on a card: a whole SVG document."""
    width, height = round(width), round(height)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="mg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="{escape(alt)}">'
        f"<style>{theme.style()}</style>"
        f'<rect x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="10" '
        f'fill="{theme.CARD}" stroke="{theme.FRAME}"/>{body}</svg>'
    )


def words(
    x: float,
    y: float,
    text: str,
    *,
    size: float = theme.TITLE_SIZE,
    ink: str = theme.INK,
    bold: bool = False,
    anchor: str = "start",
) -> str:
    """One line of text."""
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{weight} '
        f'style="font-size:{size:g}px;fill:{ink}">{escape(text)}</text>'
    )


def mark(name: str, x: float, y: float) -> str:
    """The mark of what is called `name`, its centre at (x, y)."""
    path, colour = MARKS[name]
    return (
        f'<path transform="translate({x:g} {y:g})" d="{path}" fill="none" stroke="{colour}" '
        'stroke-width="1.8"/>'
    )


def mark_legend(x: float, y: float, counts: dict[str, int]) -> str:
    """Marks in a row, each with its name and how often it occurs."""
    parts = []
    for name, count in counts.items():
        label = f"{name}: {count}"
        parts.append(mark(name, x + 4, y - 4) + words(x + 14, y, label, size=theme.NOTE_SIZE))
        x += 34 + text_width(label, theme.NOTE_SIZE)
    return "".join(parts)
