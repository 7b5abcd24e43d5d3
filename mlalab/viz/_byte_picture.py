"""One byte drawn: its bit fields in every format, and its neighbours on a number line."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mlalab.fp8 import FORMATS, Format
from mlalab.viz import theme
from mlalab.viz.bits_text import exact, next_to, number
from mlalab.viz.card import card, words
from mlalab.viz.overlay import State

if TYPE_CHECKING:
    from mlalab.viz.bits import ByteView

_WIDTH = 880
_CELL = 32
_BITS_X = 150
_LINE = (80, _WIDTH - 80)
"""Where the number line starts and ends."""
_FIELDS: tuple[tuple[str, State], ...] = (
    ("sign", "erased"),
    ("exponent", "rewired"),
    ("mantissa", "created"),
)
"""Each field is named below its bits; its colours are those of states in a graph."""


def draw(view: ByteView, alt: str) -> str:
    """The whole picture."""
    title = f"0x{view.byte:02X} read as {view.format} is {_signed(view.value)}"
    body = [words(24, 36, title, size=theme.HEAD_SIZE, bold=True)]
    y = 58
    for fmt in FORMATS.values():
        body.append(_format_row(view.byte, fmt, y, chosen=fmt is view.format))
        y += 72
    line = _number_line(view, y + 4)
    return card(_WIDTH, y + (128 if _around(view) else 66), "".join((*body, line)), alt)


def _format_row(byte: int, fmt: Format, y: float, *, chosen: bool) -> str:
    frame = (
        f'<rect x="14" y="{y}" width="{_WIDTH - 28}" height="66" rx="8" fill="none" '
        f'stroke="{theme.INK}" stroke-width="2"/>'
    )
    kind = fmt.kind(byte)
    return "".join(
        (
            frame if chosen else "",
            words(26, y + 27, ("▸ " if chosen else "") + fmt.name, size=14, bold=chosen),
            words(26, y + 46, f"bias {fmt.bias}", size=11, ink=theme.FAINT),
            _bit_cells(byte, fmt, y + 8),
            words(480, y + 30, _formula(byte, fmt), size=13),
            words(480, y + 50, kind, size=11, ink=theme.FAINT),
            _badge(byte, fmt, y + 14),
        )
    )


def _bit_cells(byte: int, fmt: Format, y: float) -> str:
    parts = []
    x = float(_BITS_X)
    widths = (1, fmt.exponent_bits, fmt.mantissa_bits)
    bits = iter(f"{byte:08b}")
    for (name, state), width in zip(_FIELDS, widths, strict=True):
        middle = x + width * _CELL / 2
        for _ in range(width):
            parts.append(
                f'<rect x="{x:g}" y="{y}" width="{_CELL - 3}" height="30" rx="4" '
                f'fill="{theme.FILL[state]}" stroke="{theme.STROKE[state]}"/>'
                + words(x + (_CELL - 3) / 2, y + 21, next(bits), size=15, bold=True,
                        anchor="middle")
            )  # fmt: skip
            x += _CELL
        parts.append(words(middle, y + 46, name, size=11, ink=theme.STROKE[state], anchor="middle"))
        x += 10
    return "".join(parts)


def _formula(byte: int, fmt: Format) -> str:
    """How the fields make the value."""
    sign, exponent, mantissa = fmt.fields(byte)
    kind = fmt.kind(byte)
    if kind in ("NaN", "infinity"):
        return "a code of its own"
    if kind in ("zero", "negative zero"):
        return f"{'−' if sign else '+'}0"
    fraction = f"{mantissa:0{fmt.mantissa_bits}b}"
    leading, power = ("1", exponent) if exponent else ("0", 1)
    return f"{'−' if sign else '+'}{leading}.{fraction}₂ × 2^({power} − {fmt.bias})"


def _badge(byte: int, fmt: Format, y: float) -> str:
    """The value; what is no plain number stands in a box of its own shape."""
    kind = fmt.kind(byte)
    x, width = 700, 156
    boxes = {
        "NaN": f'rx="0" stroke="{theme.WRITE}" stroke-width="2.6"',
        "infinity": f'rx="17" stroke="{theme.CUSTOM}" stroke-width="2.6"',
        "negative zero": f'rx="6" stroke="{theme.STROKE["rewired"]}" stroke-dasharray="5 3"',
    }
    box = ""
    if kind in boxes:
        box = f'<rect x="{x}" y="{y}" width="{width}" height="34" fill="none" {boxes[kind]}/>'
    text = {"NaN": "× NaN", "negative zero": "−0 (negative)"}.get(kind, _signed(fmt.decode(byte)))
    return box + words(x + width / 2, y + 23, text, size=16, bold=True, anchor="middle")


def _number_line(view: ByteView, y: float) -> str:
    head = words(24, y + 18, f"next to it in {view.format}", size=12, ink=theme.FAINT)
    codes = _around(view)
    if not codes:
        return head + words(24, y + 44, next_to(view), size=13)
    values = [view.format.decode(code) for code in codes]
    low, high = values[0], values[-1]
    at = _LINE[1] - _LINE[0]

    def x_of(value: float) -> float:
        return _LINE[0] + at * (min(max(value, low), high) - low) / (high - low)

    line_y = y + 62
    parts = [head, f'<path d="M{_LINE[0]} {line_y}H{_LINE[1]}" stroke="{theme.LINE}"/>']
    for code, value in zip(codes, values, strict=True):
        own = value == view.value
        x = x_of(value)
        parts.append(_tick(x, line_y, own=own))
        parts.append(words(x, line_y + 22, _signed(value), size=12, bold=own, anchor="middle"))
        parts.append(
            words(x, line_y + 37, f"0x{code:02X}", size=10, ink=theme.FAINT, anchor="middle")
        )
    if view.source is not None and not math.isnan(view.source):
        parts.append(_source_mark(view, x_of(view.source / view.scale), line_y))
    return "".join(parts)


def _around(view: ByteView) -> list[int]:
    """Bytes of two values below, the value itself, and two above, as far as they are finite."""
    fmt = view.format
    if not math.isfinite(view.value):
        return []
    codes = [view.byte]
    for _ in range(2):
        below, above = fmt.neighbours(codes[0]).below, fmt.neighbours(codes[-1]).above
        if below is not None and math.isfinite(fmt.decode(below)):
            codes.insert(0, below)
        if above is not None and math.isfinite(fmt.decode(above)):
            codes.append(above)
    return codes


def _tick(x: float, y: float, *, own: bool) -> str:
    if own:
        return f'<path d="M{x:g} {y - 9}l7 9l-7 9l-7 -9Z" fill="{theme.STROKE["rewired"]}"/>'
    return f'<path d="M{x:g} {y - 6}v12" stroke="{theme.LINE}" stroke-width="1.6"/>'


def _source_mark(view: ByteView, x: float, y: float) -> str:
    colour = theme.STROKE["erased"]
    assert view.source is not None
    label = f"source {number(view.source)}".replace("-", "−")
    if view.scale != 1.0:
        label += f" ÷ {number(view.scale)}"
    label += f", error {view.error:.2%}"
    anchor = "start" if x < _WIDTH / 3 else "end" if x > 2 * _WIDTH / 3 else "middle"
    return (
        f'<path d="M{x:g} {y - 3}l-6 -12h12Z" fill="{theme.CARD}" stroke="{colour}" '
        f'stroke-width="1.8"/>' + words(x, y - 22, label, size=12, ink=colour, anchor=anchor)
    )


def _signed(value: float) -> str:
    return exact(value).replace("-", "−").replace("inf", "∞")
