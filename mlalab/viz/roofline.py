"""Floors and measured times of the decode preparation: as curves, under the roof, and as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlalab.viz import theme
from mlalab.viz.plots import line, plot, tokens_axis
from mlalab.viz.show import Figure
from mlalab.viz.text import table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

    from mlalab.bench.roofline import Floor

_WAYS = {"two": "two launches", "one": "one launch", "copy": "copy of as many bytes"}
_COLUMNS = ("memory", "compute", "launch")


def floors_text(groups: Sequence[Sequence[Floor]]) -> str:
    """Return every floor and time as a table, in µs per layer."""
    head = ("q/cache", "N", "T", "flop/byte", *_COLUMNS, "binds", "one", "copy", "floor/one")
    return table([head, *(_row(floor) for group in groups for floor in group)], 1)


def _row(floor: Floor) -> tuple[str, ...]:
    spec = floor.spec
    limits = (f"{floor.limits[x]:.2f}" if x in floor.limits else "-" for x in _COLUMNS)
    where = (spec.format, str(spec.heads), str(spec.tokens), f"{floor.intensity:.0f}")
    times = (f"{floor.one:.2f}", f"{floor.copy:.2f}", f"{floor.share:.2f}")
    return (*where, *limits, floor.binds, *times)


def floors_figure(groups: Sequence[Sequence[Floor]], provenance: str) -> Figure:
    """Return, side by side for each N, times over tokens above the floor under them."""

    def draw(canvas: Canvas) -> None:
        panels = canvas.subplots(1, len(groups), squeeze=False)[0]
        panels[0].set_ylabel("µs per layer")
        for axes, group in zip(panels, groups, strict=True):
            _draw_times(axes, group)

    return plot(
        draw,
        alt=_times_alt(groups),
        caption=f"µs per layer, {provenance}; grey: no kernel can be there.",
        text=floors_text(groups),
        size=(4.4 * len(groups), 3.9),
    )


def _draw_times(axes: Axes, group: Sequence[Floor]) -> None:
    tokens = [floor.spec.tokens for floor in group]
    for index, (way, label) in enumerate(_WAYS.items()):
        axes.plot(
            tokens,
            [getattr(floor, way) for floor in group],
            label=label,
            **line(index),
        )
    roof = [max(floor.limits.values()) for floor in group]
    axes.fill_between(tokens, roof, color=theme.FRAME)
    axes.plot(tokens, roof, color=theme.INK, linewidth=1.2, label="floor")
    axes.set_yscale("log", base=2)
    axes.set_ylim(bottom=0.5)
    ticks = [1 << i for i in range(10) if 1 << i < 1.5 * max(floor.two for floor in group)]
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.set_title(f"N = {group[0].spec.heads}, {group[0].spec.format}")
    axes.legend(loc="upper left")
    tokens_axis(axes, tokens)


def _times_alt(groups: Sequence[Sequence[Floor]]) -> str:
    parts = []
    for group in groups:
        shares = [floor.share for floor in group]
        kinds = list(dict.fromkeys(floor.binds for floor in group))
        parts.append(
            f"with {group[0].spec.heads} heads the floor ({', then '.join(kinds)}) is "
            f"{100 * min(shares):.0f} to {100 * max(shares):.0f} % of the time of one launch"
        )
    return f"Times of one launch, two and a copy over a floor: {'; '.join(parts)}."


def roofline_figure(
    groups: Sequence[Sequence[Floor]], roof: tuple[float, float], provenance: str
) -> Figure:
    """Return operations per second over operations per byte, under the machine's roof.

    Args:
        roof: bytes and operations per second.
    """
    rate, peak = roof
    ridge = peak / rate

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        edge = [0.5, ridge, 2000.0]
        axes.plot(edge, [min(x * rate, peak) / 1e12 for x in edge], color=theme.INK)
        axes.annotate(
            *(f"ridge: {ridge:.0f} flop/byte", (ridge, peak / 1e12)),
            xytext=(4, -16),
            textcoords="offset points",
        )
        for index, group in enumerate(groups):
            axes.plot(
                [floor.intensity for floor in group],
                [floor.reached for floor in group],
                label=f"one launch, N = {group[0].spec.heads}",
                **line(index),
            )
        axes.set(xscale="log", yscale="log", xlabel="flop per byte", ylabel="TFLOP/s")
        axes.legend(loc="lower right")

    return plot(
        draw,
        alt=_roof_alt(groups, ridge),
        caption=f"Roofline, {provenance}; the slope is a measured copy, the flat part the data "
        f"sheet's peak.",
        text=_roof_text(groups),
        size=(6.4, 3.9),
    )


def _roof_text(groups: Sequence[Sequence[Floor]]) -> str:
    head = ("q/cache", "N", "T", "flop/byte", "TFLOP/s")
    return table([head, *(_roof_row(floor) for group in groups for floor in group)], 1)


def _roof_row(floor: Floor) -> tuple[str, ...]:
    spec = floor.spec
    reached = (f"{floor.intensity:.0f}", f"{floor.reached:.1f}")
    return (spec.format, str(spec.heads), str(spec.tokens), *reached)


def _roof_alt(groups: Sequence[Sequence[Floor]], ridge: float) -> str:
    intensities = [floor.intensity for group in groups for floor in group]
    left = sum(x < ridge for x in intensities)
    return (
        f"{left} of {len(intensities)} sizes lie left of the ridge at {ridge:.0f} operations per "
        f"byte, the highest at {max(intensities):.0f}: left of it memory sets the pace, not "
        f"arithmetic."
    )
