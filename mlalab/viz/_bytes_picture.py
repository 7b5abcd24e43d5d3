"""Many bytes drawn: a cell each, coloured by magnitude and, with a source, by error.

A line of cells is a small image inside the SVG, one pixel per byte: a block has thousands.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mlalab.viz import theme
from mlalab.viz.card import MARKS, card, mark, mark_legend, words

if TYPE_CHECKING:
    from mlalab.viz.bits import RowsView

_WIDEST = 1152
_PER_LINE = 64
"""Bytes in a line of the picture of one row."""
_LEVELS = 64
_LEFT, _HEIGHT, _GAP = 64, 13, 9
_BLUE = ((238, 243, 251), (9, 40, 105))
_BROWN = ((253, 243, 236), (120, 38, 0))
_LARGEST_ERROR = 2**-3
"""The darkest colour; half a step of a normal value is at most 2⁻⁴."""


def draw(view: RowsView, alt: str) -> str:
    """The whole picture: a panel of magnitudes, and one of errors where there is a source."""
    from mlalab.fp8_errors import relative_errors
    from mlalab.viz.bits_text import exact, sizes

    fmt = view.format
    span = torch.tensor([fmt.smallest, fmt.largest]).log2()
    magnitude = (view.values.abs().log2() - span[0]) / (span[1] - span[0])
    title = f"{sizes(view.stored)} as {fmt}"
    body = [words(24, 36, title, size=theme.HEAD_SIZE, bold=True)]
    ends = (exact(fmt.smallest), exact(fmt.largest))
    y = 56.0
    panel, width, y = _panel(view, magnitude, ("magnitude", *ends), _BLUE, y)
    body.append(panel)
    if view.source is not None:
        error = relative_errors(view.stored, view.source, view.scale, fmt) / _LARGEST_ERROR
        heads = ("relative error", "0 %", f"{_LARGEST_ERROR:.1%} or more")
        panel, width, y = _panel(view, error, heads, _BROWN, y + 14)
        body.append(panel)
    body.append(mark_legend(24, y + 16, view.counts()))
    return card(max(width + 24, 640), y + 36, "".join(body), alt)


def _panel(
    view: RowsView,
    shares_: Tensor,
    heads: tuple[str, str, str],
    ramp: tuple[Sequence[int], Sequence[int]],
    y: float,
) -> tuple[str, float, float]:
    """Lines of cells under a heading with its scale; returns markup, right end and bottom."""
    shares = _lines(shares_)
    marked = {name: _lines(at) for name, at in view.marked().items()}
    columns = max(len(line) for line in shares)
    cell = max(1, min(14, _WIDEST // columns))
    name, least, most = heads
    parts = [words(24, y + 12, name, bold=True), _ramp(_LEFT + 110, y, least, most, ramp)]
    y += 26
    step = _PER_LINE if _is_strip(view.stored) else 1
    for number, line in enumerate(shares):
        label = f"{number * step}"
        parts.append(words(_LEFT - 8, y + 10, label, size=10, ink=theme.FAINT, anchor="end"))
        parts.append(_image(line, ramp, y, cell))
        for what, lines in marked.items():
            at = lines[number].nonzero().flatten().tolist()
            parts += [mark(what, _LEFT + (i + 0.5) * cell, y + _HEIGHT + 4.5) for i in at]
        y += _HEIGHT + _GAP
    return "".join(parts), _LEFT + columns * cell, y


def _is_strip(stored: Tensor) -> bool:
    return stored.numel() == stored.shape[-1]


def _lines(x: Tensor) -> list[Tensor]:
    """One row in lines of `_PER_LINE`; several rows as they are."""
    if _is_strip(x):
        return list(x.flatten().split(_PER_LINE))
    return list(x.reshape(-1, x.shape[-1]))


def _image(shares: Tensor, ramp: tuple[Sequence[int], Sequence[int]], y: float, cell: int) -> str:
    """A line of cells, each share from 0 to 1 a colour of the ramp; NaN in the marks' colour."""
    levels = (shares * (_LEVELS - 1)).round().clamp(0, _LEVELS - 1)
    levels = torch.where(shares.isnan(), _LEVELS, levels).to(torch.uint8)
    data = base64.b64encode(_png(bytes(levels.tolist()), _palette(ramp))).decode("ascii")
    return (
        f'<image x="{_LEFT}" y="{y:g}" width="{len(shares) * cell}" height="{_HEIGHT}" '
        'preserveAspectRatio="none" style="image-rendering:pixelated" '
        f'href="data:image/png;base64,{data}"/>'
    )


def _palette(ramp: tuple[Sequence[int], Sequence[int]]) -> bytes:
    shares = [i / (_LEVELS - 1) for i in range(_LEVELS)]
    colours = [round(a + (b - a) * s) for s in shares for a, b in zip(*ramp, strict=True)]
    return bytes(colours) + bytes.fromhex(MARKS["NaN"][1].removeprefix("#"))


def _png(line: bytes, palette: bytes) -> bytes:
    """A PNG file of one line of palette colours."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(
            ">I", zlib.crc32(kind + data)
        )  # fmt: skip

    header = struct.pack(">IIBBBBB", len(line), 1, 8, 3, 0, 0, 0)
    pixels = zlib.compress(b"\0" + line, 9)
    parts = ((b"IHDR", header), (b"PLTE", palette), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def _ramp(
    x: float, y: float, least: str, most: str, ramp: tuple[Sequence[int], Sequence[int]]
) -> str:
    """The scale of colours, with what its ends mean."""
    cells = "".join(
        f'<rect x="{x + 90 + i * 12}" y="{y + 2}" width="12" height="11" fill="rgb('
        f'{",".join(str(round(a + (b - a) * i / 9)) for a, b in zip(*ramp, strict=True))})"/>'
        for i in range(10)
    )
    return (
        words(x + 84, y + 12, least, size=11, ink=theme.FAINT, anchor="end")
        + cells
        + words(x + 216, y + 12, most, size=11, ink=theme.FAINT)
    )
