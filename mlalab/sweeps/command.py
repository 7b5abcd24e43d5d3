"""`python -m mlalab sweep`: the same without sliders, as text and as files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlalab.sweeps.spec import SweepResult
from mlalab.sweeps.sweep import Sweep, sweep
from mlalab.trace_files import require_files, write_whole

_COLUMNS = ("tokens", "launches", "median_us", "low_us", "high_us", "samples")


def write(settings: Mapping[str, Any], files: Mapping[str, Path | None]) -> Sweep:
    """Answer one setting and write it, as JSON, CSV or a figure; each file whole or not at all.

    Args:
        settings: fields of a `SweepSpec`.
        files: "json", "csv" or "figure" → where to, or None.

    Raises:
        ConfigError: a setting that cannot be used, no such folder, or two outputs for one file.
        TraceError: a file that cannot be written.
    """
    paths = {kind: path for kind, path in files.items() if path is not None}
    require_files(*paths.values())
    answer = sweep(**settings)
    # Everything is made before anything is written.
    texts = {kind: _KINDS[kind](answer) for kind in paths}
    for kind, path in paths.items():
        write_whole(path, texts[kind])
    return answer


def _json(answer: Sweep) -> str:
    return json.dumps(answer.result.to_json(), indent=1) + "\n"


def times_csv(result: SweepResult) -> str:
    """Return the times as CSV: a row for each way and token count, with where they come from."""
    spec, machine = result.spec, result.machine
    facts = {"heads": spec.heads, "format": spec.format} | {
        name: machine[name] for name in ("device", "date", "torch")
    }
    target = io.StringIO()
    rows = csv.writer(target, lineterminator="\n")
    rows.writerow((*_COLUMNS, *facts))
    for point in result.points:
        for launches, taken in ((2, point.two), (1, point.one)):
            times = (taken.median, taken.low, taken.high, taken.samples)
            rows.writerow((point.tokens, launches, *times, *facts.values()))
    return target.getvalue()


_KINDS: Mapping[str, Callable[[Sweep], str]] = {
    "json": _json,
    "csv": lambda answer: times_csv(answer.result),
    "figure": lambda answer: answer.figure().svg,
}
