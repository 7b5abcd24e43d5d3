"""A trace: every graph of one compilation, what each step did, and the proof that it was right.

A trace made here is live: it can be checked again. One loaded from a file is the same record,
without the graphs to run. Nothing in this module needs a notebook; `show` lives in `mlalab.viz`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mlalab import __version__
from mlalab.errors import TraceError
from mlalab.records import CheckRecord, StepRecord, StepStatus
from mlalab.trace_files import FORMAT, read_trace, write_whole

if TYPE_CHECKING:
    import torch
    from torch import fx

    from mlalab.viz.cost import Measured
    from mlalab.viz.show import Figure
    from mlalab.viz.stepper import Stepper

_LOADED = "A trace loaded from a file cannot be run; record it again to {}."
_NOT_RUN = {
    "disabled": "was switched off by the configuration",
    "out of range": "does not apply to this range of token counts",
    "not decode only": "applies only to graphs that serve nothing but uniform decode batches",
}


class Checker(Protocol):
    """What can run a live trace's graphs again (`mlalab.checking.Replay`)."""

    @property
    def device(self) -> torch.device:
        """Where the graphs run."""

    def check(self, steps: Sequence[StepRecord], seed: int) -> list[CheckRecord]:
        """Return how each step's outcome differs from the one before; the first, from eager."""

    def rerun(self, index: int, run: Callable[[fx.GraphModule, list[Any]], None]) -> None:
        """Have `run` run the graph of a step, given copies, and leave everything as it was."""


class Trace:
    """The steps of one compilation, in order.

    Index it by position or by step name. Printing it gives the deterministic text form; in a
    notebook it shows the before/after picture.
    """

    def __init__(
        self,
        title: str,
        steps: Sequence[StepRecord],
        meta: Mapping[str, str],
        checker: Checker | None = None,
        skipped: Mapping[str, StepStatus] | None = None,
    ) -> None:
        self.title, self.steps, self.meta = title, tuple(steps), dict(meta)
        self.skipped = dict(skipped or {})
        """Passes that did not run, and why not."""
        self._checker = checker
        self.compiled: CheckRecord | None = None
        """What really runs (the generated code, in inductor mode) against the last step's graph."""

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[StepRecord]:
        return iter(self.steps)

    def __getitem__(self, key: int | str) -> StepRecord:
        if isinstance(key, int):
            return self.steps[key]
        return self.steps[self._index(key)]

    def _index(self, name: str) -> int:
        names = [step.name for step in self.steps]
        if name in self.skipped:
            raise TraceError(f"{name} {_NOT_RUN[self.skipped[name]]}, so it has no step here.")
        if name not in names:
            raise TraceError(f"This trace has no step {name!r}; its steps are {', '.join(names)}.")
        return names.index(name)

    def status_of(self, name: str) -> StepStatus:
        """Return what became of the pass called `name`, also when it did not run."""
        return self.skipped[name] if name in self.skipped else self[name].status

    def before(self, name: str) -> StepRecord:
        """Return the step before the one called `name`."""
        index = self._index(name)
        if index == 0:
            raise TraceError(f"{name!r} is the first step; there is no graph before it.")
        return self.steps[index - 1]

    def __repr__(self) -> str:
        from mlalab.viz.text import step_table

        lines = [self.title, step_table(self.steps)]
        if any(step.verdict == "differs" for step in self.steps):
            lines.append("differs: a step of torch's own rounds otherwise than the step before it")
        if self.compiled is not None and self.meta.get("mode") == "inductor":
            worst = max(diff.max_abs for diff in self.compiled.diffs)
            lines.append(f"generated code against the last graph: at most {worst:.1e} apart")
        return "\n".join(lines)

    def delta(self, name: str) -> str:
        """Return the op-count table of the step called `name` against the one before."""
        from mlalab.viz.text import op_delta

        return op_delta(self.before(name), self[name])

    def cost(self, measured: Measured | None = None) -> str:
        """Return modelled launches and bytes of every step; see `mlalab.viz.cost` for the model.

        `measured` adds the sum of each step's times, in microseconds.
        """
        from mlalab.viz.cost import cost_table

        return cost_table(self.steps, measured)

    def widget(self, measured: Measured | None = None) -> Stepper:
        """Return the widget that steps; `measured` holds times of nodes to shade them by."""
        from mlalab.viz.stepper import Stepper

        return Stepper(self, measured)

    def figure(self, name: str | None = None) -> Figure:
        """Return the picture of the step called `name`, before and after; of all steps together."""
        from mlalab.viz.show import before_after_figure, trace_figure

        if name is None:
            return trace_figure(self)
        return before_after_figure(self.before(name), self[name])

    def why_figure(self, name: str) -> Figure:
        """Return the nearest pattern of the pass called `name`, with the node that did not match.

        Raises:
            TraceError: it did not run, or it refused no pattern.
        """
        from mlalab.viz.why import why_figure

        return why_figure(self[name])

    def check(self, seed: int = 1) -> Trace:
        """Run the eager model and every step's graph on one random input and compare them.

        Each step is compared with the step before it, the first with the eager model: outputs,
        every byte of every cache, and every input a graph might have written, bit for bit. The
        result is kept in each step and printed with the trace. Returns this trace.

        Raises:
            TraceError: the trace was loaded from a file and has no graphs to run.
        """
        if self._checker is None:
            raise TraceError(_LOADED.format("check"))
        *records, self.compiled = self._checker.check(self.steps, seed)
        self.steps = tuple(
            dataclasses.replace(step, check=record)
            for step, record in zip(self.steps, records, strict=True)
        )
        return self

    def measure(self, step: str | None = None, *, runs: int = 10) -> Measured:
        """Run a step's graph node by node, or every step's, and return how long each node takes.

        The median of `runs` in µs, after one run to warm up, of each node that does work. Hand the
        result to `cost`, `widget` or `to_html`. Times differ from run to run: never print them
        where outputs are compared. On a CPU they are wall times, the calls included.

        Raises:
            TraceError: no such step, or the trace was loaded and has no graphs to run.
            ConfigError: `runs` is no positive integer.
        """
        if self._checker is None:
            raise TraceError(_LOADED.format("measure"))
        from mlalab.measuring import measured

        chosen = range(len(self.steps)) if step is None else [self._index(step)]
        return measured(self._checker, {i: self.steps[i] for i in chosen}, runs=runs)

    @property
    def ok(self) -> bool:
        """True when every step was checked and no pass of ours changed a bit.

        Torch's own steps may round differently (a norm decomposed for a GPU, an add folded into a
        matmul); the table says so, but it is not held against the trace.
        """
        runs = self.compiled is None or all(diff.close for diff in self.compiled.diffs)
        return runs and all(step.verdict in ("ok", "differs") for step in self.steps)

    def why(self, name: str) -> str:
        """Explain, layer by layer, what the pass called `name` did not do and why."""
        from mlalab.viz.text import why_text

        if name in self.skipped:
            return f"{name} {_NOT_RUN[self.skipped[name]]}."
        step = self[name]
        if step.refusals:
            return why_text(step.refusals)
        if step.matches:
            return f"{name} left nothing out: it matched {len(step.matches)} place(s)."
        return f"{name} found nothing to match: the graph calls none of the ops it starts from."

    def to_html(self, path: str | Path | None = None, measured: Measured | None = None) -> str:
        """Return the trace as one self-contained page that steps; write it to `path` if given.

        `measured` holds times of nodes to shade them by.
        """
        from mlalab.viz.export import trace_html

        page = trace_html(self.title, self.steps, self.meta, measured)
        if path is not None:
            write_whole(Path(path), page)
        return page

    def save(self, path: str | Path) -> None:
        """Write the trace as JSON; `Trace.load` reads it back, without torch."""
        document = {
            "format": FORMAT,
            "version": __version__,
            "title": self.title,
            "meta": self.meta,
            "skipped": self.skipped,
            "steps": [dataclasses.asdict(step) for step in self.steps],
        }
        write_whole(Path(path), json.dumps(document, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a trace that `save` wrote.

        Raises:
            TraceError: no such file, or not a trace.
        """
        title, steps, meta, skipped = read_trace(Path(path))
        return cls(title, steps, meta, None, skipped)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return self.figure()._repr_mimebundle_()
