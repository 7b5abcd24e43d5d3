"""The FP8 inspector: a byte as bit fields, a cache row or a block as a strip of bytes.

`inspect_fp8(0x38)` has a picture and a widget whose bits flip; `inspect_fp8(row, source=...)` has a
picture of every byte, and `.at(i)` gives one of them. This is the one part of `viz` that reads
tensors instead of records.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mlalab.errors import InputError
from mlalab.fp8 import Format, format_named, format_of
from mlalab.fp8_errors import Errors, errors, read, relative_errors, scale_of
from mlalab.viz import bits_text
from mlalab.viz.show import Figure, Pictured

MOST_ROWS = 64
"""Rows that fit a picture: a few blocks of a cache."""


def inspect_fp8(
    what: int | Tensor,
    *,
    format: str | None = None,
    source: float | Tensor | None = None,
    scale: float | Tensor = 1.0,
) -> ByteView | RowsView:
    """Look at FP8 bytes: one, a cache row, or a block.

    Args:
        what: a byte, or a tensor of `uint8` or FP8, `[..., C]`.
        format: "e4m3fn", "e4m3fnuz" or "e5m2"; by default the tensor's dtype, or, for raw bytes,
            what bytes mean on their device.
        source: what was quantised: a number, or a tensor of the shape of `what`.
        scale: dequantisation scale of the bytes.

    Raises:
        ConfigError: no format is called so.
        InputError: no byte, no FP8 tensor, no scale, two shapes, or too many rows for a picture.
    """
    factor = scale_of(scale)
    if isinstance(what, Tensor):
        fmt = format_named(format) if format else format_of(what)
        rows = None if source is None else torch.as_tensor(source)
        return RowsView(_bytes_of(what), fmt, rows, factor)
    fmt = format_named(format) if format else format_of(torch.empty(0, dtype=torch.uint8))
    return ByteView(what, fmt, None if source is None else float(source), factor)


def _bytes_of(stored: Tensor) -> Tensor:
    if stored.dtype != torch.uint8:
        format_of(stored)  # raises for a tensor that is not FP8
    return stored.view(torch.uint8)


def _figure(view: Pictured, svg: str, alt: str, caption: str) -> Figure:
    return Figure(svg=svg, alt=alt, caption=caption, text=repr(view))


@dataclass(frozen=True, slots=True)
class ByteView(Pictured):
    """One byte, read in a format.

    Args:
        source: what was quantised into it, if known.
        scale: dequantisation scale.
    """

    byte: int
    format: Format
    source: float | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        self.format.fields(self.byte)  # raises for what is no byte

    @property
    def value(self) -> float:
        """What the byte says, before the scale."""
        return self.format.decode(self.byte)

    @property
    def error(self) -> float | None:
        """Relative error against the source, if there is one."""
        if self.source is None:
            return None
        found = self.value * self.scale
        if found == self.source or (math.isnan(found) and math.isnan(self.source)):
            return 0.0
        return abs(found - self.source) / abs(self.source) if self.source else math.inf

    def figure(self) -> Figure:
        """The byte as bit fields, in each format, and its neighbours on a number line."""
        from mlalab.viz import _byte_picture

        alt = bits_text.byte_alt(self)
        caption = (
            f"The byte 0x{self.byte:02X} in three formats, and what is next to it in {self.format}."
        )
        return _figure(self, _byte_picture.draw(self, alt), alt, caption)

    def widget(self) -> Any:
        """The byte with bits to flip; its traits `byte` and `format` follow what is shown."""
        from mlalab.viz.bits_widget import BitsWidget

        return BitsWidget(
            byte=self.byte, format=self.format.name, source=self.source, scale=self.scale
        )

    def __repr__(self) -> str:
        return bits_text.byte_text(self)


@dataclass(frozen=True, slots=True, eq=False)
class RowsView(Pictured):
    """Bytes of a cache row or a block, `[..., C]`.

    Args:
        source: what was quantised, of the same shape, if known.
        scale: dequantisation scale.
    """

    stored: Tensor
    format: Format
    source: Tensor | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        rows = self.stored.numel() // max(self.stored.shape[-1], 1) if self.stored.ndim else 0
        if not 1 <= rows <= MOST_ROWS:
            raise InputError(
                f"A picture holds 1 to {MOST_ROWS} rows of bytes, got a tensor "
                f"{list(self.stored.shape)}; pass a row or a block: cache.storage[0]."
            )
        if self.source is not None:
            relative_errors(self.stored, self.source)  # raises for two shapes

    def at(self, *index: int) -> ByteView:
        """One byte of it, with its source."""
        source = None if self.source is None else float(self.source[index])
        return ByteView(int(self.stored[index]), self.format, source, self.scale)

    @property
    def values(self) -> Tensor:
        """What the bytes say, fp32, before the scale."""
        return read(self.stored, self.format)

    @property
    def errors(self) -> Errors | None:
        """The errors in numbers, where there is a source."""
        if self.source is None:
            return None
        return errors(self.stored, self.source, self.scale, self.format)

    def figure(self) -> Figure:
        """Every byte as a cell: its magnitude and, where there is a source, its error."""
        from mlalab.viz import _bytes_picture

        alt = bits_text.rows_alt(self)
        caption = f"{bits_text.sizes(self.stored)} as {self.format}, a cell per byte."
        return _figure(self, _bytes_picture.draw(self, alt), alt, caption)

    def counts(self) -> dict[str, int]:
        """How many bytes are NaN, at the limit, and −0."""
        return {name: int(at.sum()) for name, at in self.marked().items()}

    def marked(self) -> dict[str, Tensor]:
        """Where bytes are NaN, at the limit, and −0."""
        values = self.values
        return {
            "NaN": values.isnan(),
            "at the limit": values.abs() == self.format.largest,
            "negative zero": (values == 0) & values.signbit(),
        }

    def __repr__(self) -> str:
        return bits_text.rows_text(self)
