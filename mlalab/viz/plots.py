"""Curves and bars: one style for every matplotlib figure, drawn without a window or a display.

A plot leaves as the same `Figure` as a graph does: SVG in an `<img>` with its text alternative, and
a text form that notebook tests compare.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mlalab.viz import theme
from mlalab.viz.show import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

SERIES = ("#0757ba", "#a63c06", "#00704f", "#8a2f86", "#59636e")
"""Colours of lines and bars, in order; lines take them by `line`."""
_MARKERS = ("o", "s", "^", "D", "x")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)))
_STYLE = {
    "axes.edgecolor": theme.LINE,
    "axes.grid": True,
    "axes.labelcolor": theme.INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": theme.CARD,
    "font.family": "sans-serif",
    "font.size": 10,
    "grid.color": theme.FRAME,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "mlalab",
    "text.color": theme.INK,
    "xtick.color": theme.FAINT,
    "ytick.color": theme.FAINT,
}


def plot(
    draw: Callable[[Canvas], None],
    *,
    alt: str,
    caption: str,
    text: str,
    size: tuple[float, float] = (7.2, 3.6),
) -> Figure:
    """Call `draw` with an empty matplotlib figure of `size` inches, and return the picture.

    Args:
        draw: adds axes and fills them; colours, fonts and grid are set already.
        alt: one sentence that states the finding.
        caption: what is shown, on which device, measured or modelled.
        text: the same numbers as text, deterministic.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        canvas = Canvas(figsize=size, layout="constrained")
        FigureCanvasSVG(canvas)
        draw(canvas)
        target = io.StringIO()
        canvas.savefig(target, format="svg", metadata={"Date": None})
    svg = target.getvalue()
    return Figure(svg=svg[svg.index("<svg") :], alt=alt, caption=caption, text=text)


def line(index: int, *, marked: bool = True) -> dict[str, Any]:
    """Return how line number `index` looks: colour alone tells nothing apart."""
    index %= len(SERIES)
    look = {"color": SERIES[index], "linestyle": _LINES[index]}
    return look | ({"marker": _MARKERS[index]} if marked else {})


def tokens_axis(axes: Axes, values: list[int]) -> None:
    """Make x a logarithmic axis of token counts with the given ticks."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(values, [f"{value}" for value in values])
    axes.minorticks_off()
    axes.set_xlabel("tokens in the batch")
