"""A sweep's result as a picture and as text: what fires where, over what it buys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log2
from typing import TYPE_CHECKING

from mlalab.bench.cells import provenance
from mlalab.sweeps.spec import Point, ServedRange, SweepResult, times_at
from mlalab.viz import theme
from mlalab.viz.plots import line, plot, tokens_axis
from mlalab.viz.show import Figure
from mlalab.viz.text import table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_WAYS = {"two": "two launches", "one": "one launch"}
_NARROW = 0.2
"""Share of the axis under which a bar has no room for its label."""
_LEFT = 0.7


def sweep_figure(result: SweepResult) -> Figure:
    """Return ranges and captured sizes for both kinds of batch, above the times of both ways."""

    def draw(canvas: Canvas) -> None:
        # Places that are known beforehand: finding them takes a third of the time of a redraw.
        canvas.set_layout_engine(None)
        canvas.subplots_adjust(left=0.17, right=0.98, bottom=0.1, top=0.92, hspace=0.06)
        above, below = canvas.subplots(2, 1, sharex=True, height_ratios=(1, 1.25))
        right = 1.15 * max(result.spec.max_num_batched_tokens, *_tokens(result), result.threshold)
        _draw_ranges(above, result, right)
        _draw_times(below, result)
        if result.threshold:
            _draw_threshold((above, below), result.threshold, right)
        tokens_axis(below, [1 << i for i in range(0, int(log2(right)) + 1, 1 + (right > 2**12))])
        below.set_xlim(_LEFT, right)

    return plot(
        draw,
        alt=alt(result),
        caption=f"Above: which graph serves a batch (line: the threshold, {result.threshold} "
        f"tokens; ticks: captured CUDA graphs). Below: {_measured_by(result)}{_failed(result)}.",
        text=sweep_text(result),
        size=(8.0, 5.4),
    )


def _tokens(result: SweepResult) -> list[int]:
    return [point.tokens for point in result.points]


def _draw_ranges(axes: Axes, result: SweepResult, right: float) -> None:
    rows = list(dict.fromkeys(row.batch for row in result.ranges))
    named = set()
    for row in result.ranges:
        label, colour, hatch = _look(row)
        y, left = -rows.index(row.batch), row.start - 0.5
        axes.barh(
            *(y, row.end + 0.5 - left, 0.5, left),
            color=theme.FILL[colour],
            edgecolor=theme.STROKE[colour],
            hatch=hatch,
            label=None if label in named else label,
        )
        named.add(label)
        low, high = (log2(max(x, _LEFT)) for x in (left, row.end + 0.5))
        if high - low > _NARROW * (log2(right) - log2(_LEFT)):
            box = {"facecolor": theme.CARD, "edgecolor": "none", "pad": 1.5}
            text = f"{row.start}..{row.end}"
            axes.text(2 ** ((low + high) / 2), y, text, ha="center", va="center", bbox=box)
    for batch, sizes in zip(rows, (result.decode_sizes, result.mixed_sizes), strict=True):
        below = [-rows.index(batch) - 0.38] * len(sizes)
        axes.plot(sizes, below, "|", color=theme.INK, markersize=7)
    axes.set_yticks([-i for i in range(len(rows))], rows)
    axes.grid(False)
    axes.tick_params(axis="x", length=0, labelbottom=False)
    axes.legend(ncols=2, loc="lower left", bbox_to_anchor=(0, 1))


def _draw_threshold(panels: Sequence[Axes], threshold: int, right: float) -> None:
    for axes in panels:
        axes.axvline(threshold + 0.5, color=theme.INK, linewidth=1.4)
    on_the_right = log2(threshold) > log2(right) / 2
    panels[0].annotate(
        f"threshold {threshold}",
        (threshold + 0.5, -0.6),
        xytext=(-4 if on_the_right else 4, 0),
        textcoords="offset points",
        ha="right" if on_the_right else "left",
        va="center",
    )


def _look(row: ServedRange) -> tuple[str, theme.State, str | None]:
    """Return what a range does, its colours and its hatch."""
    if row.one_launch:
        return "all of the decode preparation: one launch", "created", "///"
    return "RoPE and cache write only", "rewired", None


def _draw_times(axes: Axes, result: SweepResult) -> None:
    for index, (way, label) in enumerate(_WAYS.items()):
        spreads = [getattr(point, way) for point in result.points]
        errors = [[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]]
        axes.errorbar(
            *(_tokens(result), [s.median for s in spreads], errors),
            label=label,
            capsize=2,
            **line(index),
        )
    axes.set_ylabel("µs per layer")
    axes.set_ylim(bottom=0)
    if result.points:
        legend = axes.legend(loc="upper left", title=provenance(result.machine), alignment="left")
        legend.set_frame_on(True)
        legend.get_frame().set(edgecolor="none", alpha=1)
        last = result.points[-1].tokens
        axes.axvspan(last, 1e9, color=theme.FILL["same"], zorder=0)
        note = "not measured "
    else:
        axes.set_yticks([])
        note = f"no times for N = {result.spec.heads}, {result.spec.format}"
    axes.text(0.99, 0.05, note, transform=axes.transAxes, ha="right", color=theme.FAINT)


def alt(result: SweepResult) -> str:
    """Return what a sweep shows, in one sentence."""
    fused = (
        "No batch is"
        if not result.threshold
        else (f"Uniform decode batches of up to {result.threshold} tokens are")
    )
    return (
        f"{fused} prepared by one launch and every other batch gets the general graph; "
        f"{finding(result)}"
    )


def finding(result: SweepResult) -> str:
    """Return what the times say, in one sentence."""
    spec, points = result.spec, result.points
    if not points:
        return f"the record has no times for N = {spec.heads}, {spec.format}."
    ratios = [point.ratio for point in points]
    span = f"{points[0].tokens}..{points[-1].tokens}"
    if result.crossover is None:
        return (
            f"at every measured size ({span} tokens) one launch is faster, with "
            f"{min(ratios):.2f} to {max(ratios):.2f} of the time of two: there is no crossover."
        )
    return f"one launch stops being faster at {result.crossover} tokens (measured: {span})."


def sweep_text(result: SweepResult) -> str:
    """Return everything a sweep found as text, deterministic."""
    spec = result.spec
    head = (
        f"decode threshold: {result.threshold} tokens; uniform decode batches go up to "
        f"{result.decode_bound} = {spec.max_num_seqs} x (1 + {spec.num_speculative_tokens})"
    )
    wrong, right = (f"{x / 2**20:.2f} MiB" for x in (result.bytes_wrong, result.bytes_right))
    facts = (
        f"CUDA graphs, uniform decode: {_sizes(result.decode_sizes)}",
        f"CUDA graphs, mixed batches:  {_sizes(result.mixed_sizes)}",
        f"q_prepped on this rank: {right}; {wrong} if fused up to {spec.max_num_batched_tokens}",
    )
    parts = (head, _ranges_table(result.ranges), "\n".join(facts), _times_text(result))
    return "\n\n".join((*parts, result.config))


def _ranges_table(ranges: Sequence[ServedRange]) -> str:
    names = list(ranges[0].passes)
    short = [name.removesuffix("Pass").removesuffix("Fusion") for name in names]
    rows = [
        (r.batch, f"{r.start}..{r.end}", r.graph, *(r.passes[name] for name in names))
        for r in ranges
    ]
    return table([("batch", "tokens", "served by graph", *short), *rows], 3 + len(names))


def _sizes(sizes: tuple[int, ...]) -> str:
    shown = [str(size) for size in sizes]
    if len(shown) > 8:
        shown = [*shown[:6], "...", shown[-1]]
    return f"{', '.join(shown) or 'none'} ({len(sizes)} in all)"


def _times_text(result: SweepResult) -> str:
    rows = [
        (str(p.tokens), f"{p.two.median:.2f}", f"{p.one.median:.2f}", f"{p.ratio:.2f}")
        for p in result.points
    ]
    lines = [f"{_measured_by(result)}{_failed(result)}:"]
    if rows:
        lines.append(table([("tokens", *_WAYS.values(), "one/two"), *rows], 0))
    lines += [_at_threshold(result), finding(result)]
    return "\n".join(line for line in lines if line)


def _measured_by(result: SweepResult) -> str:
    spec, by = result.spec, provenance(result.machine)
    return f"microseconds per layer, N = {spec.heads}, {spec.format}, measured on {by}"


def cells_text(done: int, total: int, failures: Mapping[int, str]) -> str:
    """Return how many cells have times and why others failed: `6 of 7 cells; T=64 failed: …`.

    Args:
        done: cells that are finished, those that failed included.
        failures: tokens → why.
    """
    failed = (f"T={tokens} failed: {why}" for tokens, why in failures.items())
    return "; ".join((f"{done - len(failures)} of {total} cells", *failed))


def _failed(result: SweepResult) -> str:
    if not result.failures:
        return ""
    total = len(result.points) + len(result.failures)
    return f"; {cells_text(total, total, result.failures)}"


def _at_threshold(result: SweepResult) -> str:
    points: tuple[Point, ...] = result.points
    if not points or not result.threshold:
        return ""
    times = times_at(points, result.threshold)
    if times is None:
        return f"the threshold, {result.threshold} tokens, lies outside what was measured"
    measured = result.threshold in _tokens(result)
    how = "measured" if measured else "interpolated between its neighbours"
    return f"at the threshold, {how}: {times[0]:.2f} and {times[1]:.2f}"
