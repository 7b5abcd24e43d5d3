"""The stepper as a notebook widget: the exported page's script and style in a cell.

Loading this module loads ipywidgets, so nothing else imports it before a widget is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import anywidget
import traitlets

from mlalab.errors import TraceError
from mlalab.viz import page_data
from mlalab.viz.cost import Measured
from mlalab.viz.show import Traced


class Described(Traced, Protocol):
    """What a trace has that the stepper needs."""

    @property
    def meta(self) -> Mapping[str, str]:
        """Device, shapes and versions, shown under the title."""


class Stepper(anywidget.AnyWidget):
    """Steps through a trace in a notebook.

    `index` is the step shown, from 0, and `chosen` the name of the node chosen, or "". Both follow
    the reader and may be set: `stepper.index = 2` shows the third step, and a later cell reads
    `trace.steps[stepper.index]` or `stepper.chosen`.
    """

    _esm = page_data.script() + "\n" + page_data.static_text("widget.js")
    _css = page_data.style()
    data = traitlets.Bytes(help="the trace as the page carries it").tag(sync=True)
    index = traitlets.Int(help="the step shown, from 0").tag(sync=True)
    chosen = traitlets.Unicode(help="the node chosen, or an empty string").tag(sync=True)

    def __init__(self, trace: Described, measured: Measured | None = None) -> None:
        """Pack `trace`; `measured` holds times to shade nodes by, where there are any.

        Raises:
            TraceError: the trace has no steps.
        """
        if not trace.steps:
            raise TraceError(f"{trace.title} has no steps to show; record it again.")
        self.trace = trace
        self._steps = [step.name for step in trace.steps]
        self._names = {node.name for step in trace.steps for node in step.nodes}
        drawn = page_data.trace_data(trace.title, trace.steps, trace.meta, measured)
        super().__init__(data=page_data.packed(drawn))

    @traitlets.validate("index")
    def _valid_index(self, proposal: Mapping[str, int]) -> int:
        index = proposal["value"]
        if not 0 <= index < len(self._steps):
            raise TraceError(f"There is no step {index}; the last is {len(self._steps) - 1}.")
        return index

    @traitlets.validate("chosen")
    def _valid_chosen(self, proposal: Mapping[str, str]) -> str:
        name = proposal["value"]
        if name and name not in self._names:
            raise TraceError(f"No graph of this trace has a node {name!r}; see trace[STEP].nodes.")
        return name

    def __repr__(self) -> str:
        """The trace and the step shown; the same in every run."""
        place = f"step {self.index + 1} of {len(self._steps)}, {self._steps[self.index]}"
        return f"<Stepper of {self.trace.title}: {place}>"
