"""What the FP8 inspector says in words: the text form and the sentence beside its pictures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor

from mlalab.fp8 import FORMATS, Format
from mlalab.fp8_errors import error_table

if TYPE_CHECKING:
    from mlalab.viz.bits import ByteView, RowsView


def byte_text(view: ByteView) -> str:
    """The byte in each format, what is next to it, and its error."""
    fields = bit_fields(view.byte, view.format)
    lines = [
        f"0x{view.byte:02X} = {fields} in {view.format}: {exact(view.value)}",
        f"{'':10}{'fields':12}{'kind':15}{'value':>16}",
    ]
    lines += [
        f"{fmt.name:10}{bit_fields(view.byte, fmt):12}{fmt.kind(view.byte):15}"
        f"{exact(fmt.decode(view.byte)):>16}"
        for fmt in FORMATS.values()
    ]
    lines.append(next_to(view))
    if view.source is not None:
        lines.append(
            f"source {number(view.source)}, scale {number(view.scale)}: read back as "
            f"{number(view.value * view.scale)}, relative error {view.error:.2%}"
        )
    return "\n".join(lines)


def rows_text(view: RowsView) -> str:
    """Size, range and marked bytes, and the table of errors where there is a source."""
    marks = ", ".join(f"{name} {count}" for name, count in view.counts().items())
    least, most = magnitudes(view)
    lines = [
        f"{sizes(view.stored)} as {view.format}",
        f"magnitudes from {exact(least)} to {exact(most)}; {marks}",
    ]
    if view.errors is not None:
        lines.append(error_table({f"scale {number(view.scale)}": view.errors}))
    return "\n".join(lines)


def number(value: float) -> str:
    """A value in at most six digits."""
    return "NaN" if math.isnan(value) else f"{value:.6g}"


def exact(value: float) -> str:
    """The value of a byte in all its digits, or, for the tiny ones of e5m2, ten of them."""
    return "NaN" if math.isnan(value) else f"{value:.10g}"


def bit_fields(byte: int, fmt: Format) -> str:
    """The bits of a byte, with a blank between fields."""
    text = f"{byte:08b}"
    return f"{text[0]} {text[1 : 1 + fmt.exponent_bits]} {text[1 + fmt.exponent_bits :]}"


def next_to(view: ByteView) -> str:
    """The values on both sides."""
    below, above = view.format.neighbours(view.byte)
    if below is None and above is None:
        return "NaN has no neighbours"
    said = [
        f"next {where} 0x{byte:02X} = {exact(view.format.decode(byte))}"
        for where, byte in (("below", below), ("above", above))
        if byte is not None
    ]
    return ", ".join(said)


def byte_alt(view: ByteView) -> str:
    """The byte in a sentence."""
    others = " and ".join(
        f"{exact(fmt.decode(view.byte))} in {fmt}"
        for fmt in FORMATS.values()
        if fmt is not view.format
    )
    error = "" if view.error is None else f" It is {view.error:.2%} off its source."
    return (
        f"The byte 0x{view.byte:02X} is {exact(view.value)} in {view.format} "
        f"({next_to(view)}); the same bits are {others}.{error}"
    )


def magnitudes(view: RowsView) -> tuple[float, float]:
    """The smallest and the largest magnitude that is not 0."""
    size = view.values.abs()
    kept = size[size > 0]
    return (float(kept.min()), float(kept.max())) if kept.numel() else (0.0, 0.0)


def sizes(stored: Tensor) -> str:
    """How many bytes, by dimension."""
    return f"{' × '.join(map(str, stored.shape))} bytes"


def rows_alt(view: RowsView) -> str:
    """The bytes in a sentence."""
    least, most = magnitudes(view)
    marks = ", ".join(f"{count} {name}" for name, count in view.counts().items())
    found = view.errors
    error = ""
    if found is not None:
        error = (
            f" Against the source the error is {found.mean:.1%} on average and {found.worst:.1%} "
            f"at most in the normal range, and {found.saturated} saturated."
        )
    return (
        f"{sizes(view.stored)} read as {view.format} hold magnitudes from {exact(least)} to "
        f"{exact(most)}: {marks}.{error}"
    )
