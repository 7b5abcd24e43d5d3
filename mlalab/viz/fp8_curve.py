"""The relative error of FP8 over the whole range of magnitudes, as a curve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mlalab.errors import InputError
from mlalab.fp8 import Format, format_named
from mlalab.fp8_errors import error_table, errors, relative_errors, scale_of, store
from mlalab.viz.bits_text import number
from mlalab.viz.plots import line, plot
from mlalab.viz.show import Figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

_LEAST, _MOST = -14, 12
_BUCKETS = 4
"""Points of the curve per power of two: each is the largest error in its part."""
_SAMPLES = 64


def error_curve(names: Sequence[str] = ("e4m3fn", "e4m3fnuz"), scale: float = 1.0) -> Figure:
    """Draw the largest relative error at each magnitude from 2⁻¹⁴ to 2¹².

    Args:
        names: formats that a cache may be in.
        scale: dequantisation scale.

    Raises:
        ConfigError, InputError: no such format, none that a cache is in, none at all, or no scale.
    """
    if not names:
        raise InputError("No format is named; name one that a cache is in, such as e4m3fn.")
    scale = scale_of(scale)
    formats = [format_named(name) for name in names]
    count = (_MOST - _LEAST) * _BUCKETS
    power = _LEAST + torch.arange(count * _SAMPLES) / (_BUCKETS * _SAMPLES)
    source = torch.exp2(power)
    stored = {fmt: store(source, scale, fmt) for fmt in formats}
    at = torch.exp2(_LEAST + (torch.arange(count) + 0.5) / _BUCKETS)
    curves = {fmt.name: _worst(relative_errors(stored[fmt], source, scale, fmt)) for fmt in formats}
    summary = {fmt.name: errors(stored[fmt], source, scale, fmt) for fmt in formats}
    return plot(
        lambda canvas: _draw(canvas, at, curves),
        alt=_alt(formats, scale, max(row.worst for row in summary.values())),
        caption=f"Relative error of values stored in FP8 with scale {number(scale)}, computed: the "
        "largest in each quarter of a power of two.",
        text=error_table(summary),
    )


def _worst(relative: Tensor) -> Tensor:
    return relative.unflatten(0, (-1, _SAMPLES)).amax(-1)


def _alt(formats: Sequence[Format], scale: float, worst: float) -> str:
    spans = " and ".join(
        f"from {number(fmt.smallest * 2**fmt.mantissa_bits * scale)} to "
        f"{number(fmt.largest * scale)} in {fmt}"
        for fmt in formats
    )
    return (
        f"The error is flat, at most {worst:.1%}, {spans}; it rises towards 100% below, where "
        f"values become 0, and above, where they saturate."
    )


def _draw(canvas: Canvas, at: Tensor, curves: dict[str, Tensor]) -> None:
    axes = canvas.subplots()
    for index, (name, worst) in enumerate(curves.items()):
        look = line(index, marked=False)
        axes.plot(at.tolist(), (100 * worst).tolist(), label=name, **look)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_yticks([3, 10, 30, 100], ["3 %", "10 %", "30 %", "100 %"])
    axes.minorticks_off()
    axes.set_xlabel("magnitude of the value")
    axes.set_ylabel("relative error, at most")
    axes.legend()
