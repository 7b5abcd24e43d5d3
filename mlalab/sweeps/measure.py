"""The times of a sweep, measured on this machine's GPU with the benchmark's own code."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

from mlalab.bench.records import Record
from mlalab.bench.report import machine, measure_limits
from mlalab.bench.run import each, run_cell
from mlalab.errors import ConfigError
from mlalab.sweeps.spec import SweepSpec

HERE = "here"
"""The record of what was measured in this process."""
TOKENS = (1, 8, 32, 64, 128, 256, 512)
_REPLAYS = 20


def why_not(device: torch.device) -> str | None:
    """Return why nothing can be measured on `device`, in one sentence, or None."""
    if device.type == "cuda":
        return None
    return (
        "Nothing can be measured without a GPU, as Triton's kernels are interpreted on a CPU; "
        "the recorded data is used instead."
    )


def measured(spec: SweepSpec, device: torch.device) -> Iterator[Record]:
    """Measure every cell of a spec's model; yields the record so far after each one.

    Each record is whole in itself: stop iterating to cancel, and keep the last.

    Raises:
        ConfigError: the device is no GPU.
    """
    if reason := why_not(device):
        raise ConfigError(reason)
    facts, limits = machine(device), measure_limits(device, _REPLAYS)
    cell = functools.partial(run_cell, device=device, replays=_REPLAYS)
    results = []
    for result in each([spec.cell(tokens) for tokens in TOKENS], cell):
        results.append(result)
        yield Record(HERE, facts, limits, tuple(results))
