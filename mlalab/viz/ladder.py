"""What one decode step starts, rung by rung: eager mode, then what a compiler and passes leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from typing import TYPE_CHECKING

from mlalab.records import NodeRecord, StepRecord
from mlalab.viz.plots import SERIES, plot
from mlalab.viz.show import Figure, Pictured, before_after_figure
from mlalab.viz.text import op_delta, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas


@dataclass(frozen=True, slots=True)
class Calls:
    """How many calls of each kind a step makes that compute or move data.

    Args:
        plain: ops of torch, each on its own; also those that an opaque op hides.
        generated: kernels that Inductor wrote, of one op or of many.
        library: matrix products.
        ours: ops of mlalab, attention among them.
    """

    plain: int = 0
    generated: int = 0
    library: int = 0
    ours: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return sum(astuple(self))

    def __add__(self, other: Calls) -> Calls:
        return Calls(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: Calls) -> Calls:
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Calls(*(mine - theirs for mine, theirs in pairs))


_LABELS = ("plain torch ops", "kernels that Inductor wrote", "matrix products", "ops of mlalab")
_HATCHES = ("", "/", "\\", "-")


class Ladder(Pictured):
    """The rungs, in order; printing it gives the table, a notebook shows bars.

    Args:
        title: which model and batch.
        rungs: name of each and its calls; at least one.
    """

    __slots__ = ("rungs", "title")

    def __init__(self, title: str, rungs: Sequence[tuple[str, Calls]]) -> None:
        self.title, self.rungs = title, dict(rungs)

    def __getitem__(self, name: str) -> Calls:
        return self.rungs[name]

    def __repr__(self) -> str:
        names = [field.name for field in fields(Calls)]
        rows = [
            (rung, *(str(getattr(calls, name)) for name in names), str(calls.total))
            for rung, calls in self.rungs.items()
        ]
        return f"{self.title}\n{table([('rung', *names, 'total'), *rows], 1)}"

    def figure(self) -> Figure:
        """Return the bars."""
        totals = ", ".join(f"{name} {calls.total}" for name, calls in self.rungs.items())
        return plot(
            self._draw,
            alt=f"Bars of the calls in one decode step, by kind; all together: {totals}.",
            caption=f"{self.title}: calls that compute or move data, counted. Nothing was timed.",
            text=repr(self),
            size=(7.2, 1.3 + 0.4 * len(self.rungs)),
        )

    def _draw(self, canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        names = list(self.rungs)
        left = [0 for _ in names]
        for index, field in enumerate(fields(Calls)):
            widths = [getattr(calls, field.name) for calls in self.rungs.values()]
            axes.barh(
                *(names, widths),
                left=left,
                height=0.62,
                color=SERIES[index],
                edgecolor="white",
                hatch=_HATCHES[index],
                label=_LABELS[index],
            )
            left = [start + width for start, width in zip(left, widths, strict=True)]
        for row, total in enumerate(left):
            axes.text(total + 0.3, row, f"{total}", va="center")
        axes.invert_yaxis()
        axes.set_axisbelow(True)
        axes.grid(visible=False, axis="y")
        axes.set_xlim(0, 1.08 * max(left))
        axes.set_xlabel("calls in one decode step")
        canvas.legend(loc="outside lower center", ncols=2)


def graphs_figure(name: str, before: StepRecord, after: StepRecord) -> Figure:
    """Draw two graphs of different traces as one change, told by what their nodes are called.

    Args:
        name: what makes the difference; titles read "before …" and "after …".
    """
    old, new = ({node.name: node for node in step.nodes} for step in (before, after))
    kept = {x for x in old if x in new and old[x].target == new[x].target}
    change = replace(
        after,
        name=name,
        status="applied",  # of a graph that was captured no change is told
        created=tuple(x for x in new if x not in kept and _works(new[x])),
        erased=tuple(x for x in old if x not in kept and _works(old[x])),
        rewired=tuple(x for x in new if x in kept and new[x].inputs != old[x].inputs),
        check=None,
    )
    figure = before_after_figure(before, change)
    counts = f"{name}: {len(before.nodes)} -> {len(after.nodes)} nodes"
    return replace(figure, caption=counts, text=f"{counts}\n\n{op_delta(before, after)}")


def _works(node: NodeRecord) -> bool:
    """Return whether a node is news: views are folded into lines, and inputs are only numbered."""
    return node.op != "placeholder" and not node.plumbing
