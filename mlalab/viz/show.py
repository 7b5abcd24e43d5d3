"""Putting a picture where the reader is: in a notebook, or as text in a terminal.

A picture goes out as `<img>` with its text alternative, the one form that JupyterLab still draws
in a notebook that was cloned and never run: inline SVG, styles and scripts are dropped there.
The plain text beside it is deterministic and carries the notebook tests.

What can be handled live has a widget as well. It goes out as an output of its own: JupyterLab
shows an error in place of a widget whose kernel is gone, and hides a picture in the same output.
"""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any, Protocol

from mlalab.errors import TraceError
from mlalab.records import StepRecord
from mlalab.viz.alt import before_after_alt, counts_text, step_alt
from mlalab.viz.folding import Show
from mlalab.viz.svg import before_after_svg, step_svg
from mlalab.viz.text import op_delta, step_table


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture with its text alternative, its caption and its plain-text form."""

    svg: str
    alt: str
    caption: str
    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {
            "text/html": figure_html(self.svg, self.alt, self.caption),
            "text/plain": self.text,
        }


class Traced(Protocol):
    """What a trace has that a picture of it needs."""

    @property
    def title(self) -> str:
        """Which model, at which size."""

    @property
    def steps(self) -> Sequence[StepRecord]:
        """Every step, in order."""


def step_figure(
    step: StepRecord, before: StepRecord | None = None, *, show: Show = "changes"
) -> Figure:
    """One step as a single graph; with `before`, what the step changed is drawn into it."""
    return Figure(
        svg=step_svg(step, before, show=show),
        alt=step_alt(step, before),
        caption=f"{step.name}: {counts_text(step, before)}",
        text=_step_text(step, before),
    )


def before_after_figure(before: StepRecord, after: StepRecord) -> Figure:
    """The part of the graph that a step changed, before and after."""
    return Figure(
        svg=before_after_svg(before, after),
        alt=before_after_alt(before, after),
        caption=f"{after.name}: {counts_text(after, before)}",
        text=_step_text(after, before),
    )


def trace_figure(trace: Traced) -> Figure:
    """What all passes together made of the captured graph; as text, the table of steps.

    Raises:
        TraceError: the trace has no steps.
    """
    if not trace.steps:
        raise TraceError(f"{trace.title} has no steps to show; record it again.")
    text = f"{trace.title}\n{step_table(trace.steps)}"
    last = max(i for i, s in enumerate(trace.steps) if s.kind == "capture" or s.retraced or not i)
    captured = trace.steps[last]
    if last == len(trace.steps) - 1:
        figure = step_figure(captured)
    else:
        figure = before_after_figure(captured, _net(captured, trace.steps[last + 1 :]))
    return replace(figure, caption=f"{trace.title}. {figure.caption}", text=text)


def _net(before: StepRecord, steps: Sequence[StepRecord]) -> StepRecord:
    """The given steps as one. Names are kept from step to step, so they tell what is left."""
    after = steps[-1]
    old = {node.name: node for node in before.nodes}
    new = {node.name: node for node in after.nodes}
    return StepRecord(
        name=after.name if len(steps) == 1 else "all passes",
        kind=after.kind,
        status="applied" if any(step.status == "applied" for step in steps) else after.status,
        nodes=after.nodes,
        created=tuple(name for name in new if name not in old),
        erased=tuple(name for name in old if name not in new),
        rewired=tuple(n for n in new if n in old and new[n].inputs != old[n].inputs),
        check=after.check,
    )


def _step_text(step: StepRecord, before: StepRecord | None) -> str:
    table = step_table([step])
    return table if before is None or step.retraced else f"{table}\n\n{op_delta(before, step)}"


def figure_html(svg: str, alt: str, caption: str) -> str:
    """An SVG as a self-contained `<figure>`."""
    data = base64.b64encode(svg.encode()).decode("ascii")
    return (
        '<figure style="margin:0">'
        f'<img alt="{escape(alt)}" src="data:image/svg+xml;base64,{data}" '
        'style="max-width:100%;height:auto">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


class Pictured:
    """What is drawn when it ends a cell, with its own text beside the picture."""

    __slots__ = ()

    def figure(self) -> Figure:
        """Return the picture."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {**self.figure()._repr_mimebundle_(), "text/plain": repr(self)}


class Live(Protocol):
    """What has a picture and, in a running notebook, a widget."""

    def figure(self) -> Figure:
        """The static form."""

    def widget(self) -> Any:
        """The live form; a call loads ipywidgets."""


def is_live() -> bool:
    """Whether widgets are shown: in a notebook's kernel, unless `MLALAB_LIVE=0` is set."""
    return "ipykernel" in sys.modules and os.environ.get("MLALAB_LIVE", "1") != "0"


def show(obj: object) -> None:
    """Display `obj` in the running notebook, or print its text where there is none.

    What has a picture (`figure()`) is shown as that; its widget (`widget()`), if any, follows where
    `is_live`.
    """
    # Without a running IPython nothing of it is imported: a terminal does not pay for it.
    if "IPython" in sys.modules:
        from IPython.core.getipython import get_ipython
        from IPython.display import display

        if get_ipython() is not None:
            display(obj.figure() if hasattr(obj, "figure") else obj)
            if is_live() and hasattr(obj, "widget"):
                display(obj.widget())
            return
    print(obj)
