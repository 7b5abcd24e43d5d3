"""The decode threshold at one's fingertips: change a setting, see what it compiles and buys."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Generator, Mapping
from typing import Any

import torch

from mlalab.bench import records
from mlalab.bench.cells import FORMATS
from mlalab.bench.records import Record
from mlalab.env import default_device
from mlalab.sweeps import measure
from mlalab.sweeps.engine import run
from mlalab.sweeps.measure import HERE
from mlalab.sweeps.spec import SweepResult, SweepSpec
from mlalab.viz.show import Figure, Pictured


class Sweep(Pictured):
    """A setting and what follows from it. Prints as text, shows as a picture and as sliders.

    Args:
        spec: the setting to begin with.
        device: to measure on; by default the accelerator, when there is one.

    Raises:
        ConfigError: a setting that cannot be used, or no such record.
    """

    def __init__(self, spec: SweepSpec, device: torch.device | None = None) -> None:
        self.device = device or default_device()
        self.watchers: list[Callable[[], None]] = []
        """Called whenever the result has changed."""
        self.failed: Mapping[int, str] = {}
        """Of what `measuring` measured last: tokens of cells that failed → why."""
        self._changing = threading.RLock()
        self._measured: Record | None = None
        self._widget: Any = None
        self.result: SweepResult = self._run(spec)
        """The answer to the setting as it is now."""

    @property
    def spec(self) -> SweepSpec:
        """The setting as it is now."""
        return self.result.spec

    def set(self, **changes: Any) -> Sweep:
        """Change fields of the spec; returns this sweep. After an error nothing has changed.

        One change after the other: the widget measures on a thread of its own, and matplotlib,
        which draws what follows, must not run twice at once.

        Raises:
            ConfigError: a setting that cannot be used, or no such record.
        """
        with self._changing:
            self.result = self._run(dataclasses.replace(self.spec, **changes))
            for watcher in self.watchers:
                watcher()
        return self

    def _run(self, spec: SweepSpec) -> SweepResult:
        return run(spec, self._record(spec.record))

    @property
    def choices(self) -> dict[str, tuple[Any, ...]]:
        """What there is to choose from, by field: records, and what the present one measured."""
        here = (HERE,) if self._measured else ()
        return {
            "heads": tuple(sorted({*self._record(self.spec.record).heads, self.spec.heads})),
            "format": FORMATS,
            "record": tuple(dict.fromkeys((*records.names(), *here, self.spec.record))),
        }

    def _record(self, name: str) -> Record:
        return self._measured if name == HERE and self._measured else records.load(name)

    @property
    def why_not_measure(self) -> str | None:
        """Why nothing can be measured on this machine, or None where it can."""
        return measure.why_not(self.device)

    def measuring(self) -> Generator[tuple[int, int], None, None]:
        """Measure this model here; yields (finished, all) cells. Stop iterating to cancel.

        However it ends, what was finished becomes the record "here", and is shown.

        Raises:
            ConfigError: there is no GPU.
        """
        spec, before = self.spec, self._measured
        cells, self.failed = measure.measured(spec, self.device), {}
        try:
            for done, record in enumerate(cells, start=1):
                self._measured = record.over(before)
                self.failed = record.failed(spec.heads, spec.format)
                yield done, len(measure.TOKENS)
        finally:
            if self._measured is not before:
                self.set(record=HERE)

    def measure(self) -> Sweep:
        """Measure this model here, with a progress bar; Ctrl-C keeps what was finished.

        Raises:
            ConfigError: there is no GPU.
        """
        from tqdm.auto import tqdm

        steps = self.measuring()
        with tqdm(total=len(measure.TOKENS), unit="cell") as bar:
            try:
                for _ in steps:
                    bar.update()
            except KeyboardInterrupt:
                steps.close()
        return self

    def figure(self) -> Figure:
        """Return the picture: ranges and what fires in them, over the times of both ways."""
        from mlalab.viz.sweep import sweep_figure

        return sweep_figure(self.result)

    def widget(self) -> Any:
        """Return the sliders, the picture they change, and the configuration to copy."""
        from mlalab.viz.sweep_widget import sweep_widget

        self._widget = self._widget or sweep_widget(self)
        return self._widget

    def __repr__(self) -> str:
        from mlalab.viz.sweep import sweep_text

        return sweep_text(self.result)


def sweep(
    *,
    max_num_seqs: int = 256,
    num_speculative_tokens: int = 0,
    max_num_batched_tokens: int = 8192,
    heads: int = 16,
    format: str = "fp8/fp8",
    record: str = "h200",
) -> Sweep:
    """Return the decode threshold of a setting with all that follows from it; see `SweepSpec`.

    Raises:
        ConfigError: a setting that cannot be used, or no such record.
    """
    return Sweep(
        SweepSpec(
            max_num_seqs=max_num_seqs,
            num_speculative_tokens=num_speculative_tokens,
            max_num_batched_tokens=max_num_batched_tokens,
            heads=heads,
            format=format,
            record=record,
        )
    )
