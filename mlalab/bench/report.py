"""What a run says: a table for people, a document for everything else."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mlalab import __version__
from mlalab.bench import timing
from mlalab.bench.cells import DIFFERING_LIMIT, CellResult
from mlalab.bench.contenders import CONTENDERS
from mlalab.trace_files import write_whole

FORMAT = "mlalab-bench-1"
_TIMED = (*CONTENDERS, "copy")
_RATIOS = ("one/two", "one/copy", "floor/one")
_HEAD = ("q/cache", "N", "T", *_TIMED, "floor", *_RATIOS)
_OURS = "two: torch.bmm and a kernel; one: the fused kernel"
_LEGEND = (
    "µs per layer, median ± half the interquartile range",
    f"plain: the chain op by op; inductor: compiled; {_OURS}; direct: it, rounding once; copy: of "
    "as many bytes; floor: these bytes at the rate of a large copy",
)
_CHECK_HEAD = (
    *("q/cache", "N", "T", "kernel", "check"),
    *("absorbed off", "by steps", "rotated off", "cache off"),
)
_ALLOWED = f"allowed: absorbed {100 * DIFFERING_LIMIT:g} % off by 1 step, all else equal"


@dataclass(frozen=True, slots=True)
class Limits:
    """What the machine itself can do, measured in the same run.

    Args:
        copy_bytes_per_s: of a large copy, reads and writes both counted.
        launch_us: whose kernel → what launching a small one costs in a graph.
        l2_bytes: size of the L2 cache.
    """

    copy_bytes_per_s: float
    launch_us: Mapping[str, float]
    l2_bytes: int


def measure_limits(device: torch.device, replays: int) -> Limits:
    """Return the limits of a GPU."""
    with torch.cuda.device(device):
        return Limits(
            timing.copy_rate(device, replays),
            timing.launch_floor(device, replays),
            torch.cuda.get_device_properties(device).L2_cache_size,
        )


def machine(device: torch.device) -> dict[str, str]:
    """Return what the numbers were measured with, and when."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "torch": torch.__version__,
        "triton": importlib.metadata.version("triton"),
        "cuda": torch.version.cuda or torch.version.hip or "none",
        "mlalab": __version__,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return told.stdout.strip()


def ratios(result: CellResult, limits: Limits) -> dict[str, float]:
    """Return one launch against two, against the copy, and the floor's share of its time.

    Empty when a check failed: the time of a wrong kernel is no speed-up.
    """
    times = result.times
    if not all(p.ok for p in result.parity.values()) or not {"one", "two", "copy"} <= set(times):
        return {}
    one = times["one"].median
    return {
        "one/two": one / times["two"].median,
        "one/copy": one / times["copy"].median,
        "floor/one": floor_us(result, limits) / one,
    }


def floor_us(result: CellResult, limits: Limits) -> float:
    """Return the microseconds that the cell's bytes take at the rate of a large copy."""
    return result.spec.bytes_moved / limits.copy_bytes_per_s * 1e6


def document(
    facts: Mapping[str, str],
    limits: Limits | None,
    results: Sequence[CellResult],
    interrupted: bool = False,
) -> dict[str, Any]:
    """Return everything that was measured, as dictionaries of numbers and strings."""
    cells = [
        {
            **result.to_json(),
            "bytes": result.spec.bytes_moved,
            "ok": result.ok,
            "floor_us": floor_us(result, limits) if limits else None,
            "ratios": ratios(result, limits) if limits else {},
        }
        for result in results
    ]
    return {
        "format": FORMAT,
        "bench": "decode-prep",
        "unit": "microseconds per layer",
        "machine": dict(facts),
        "limits": dataclasses.asdict(limits) if limits else None,
        "interrupted": interrupted,
        "cells": cells,
    }


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write a document, the whole of it or nothing.

    Raises:
        TraceError: it cannot be written.
    """
    write_whole(path, json.dumps(content, indent=1) + "\n")


def table(results: Sequence[CellResult], limits: Limits | None) -> str:
    """Return the results as text: median and half the interquartile range, in µs per layer.

    Without `limits` nothing was timed: then it is how each of our kernels compares with the
    reference.
    """
    if limits is None:
        rows = [row for result in results for row in _check_rows(result)]
        said = (_OURS, f"off: values that differ from the staged reference; {_ALLOWED}")
        return "\n".join((*said, *_lines(_CHECK_HEAD, rows)))
    lines = _lines(_HEAD, [_row(result, limits) for result in results])
    return "\n".join((*_limits_lines(limits), *lines))


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    whole = [row for row in rows if len(row) == len(head)]
    widths = [max(map(len, column)) for column in zip(head, *whole, strict=True)]
    return [_line(row, widths) for row in (head, *rows)]


def _limits_lines(limits: Limits) -> list[str]:
    launches = ", ".join(f"{kind} {us:.2f} µs" for kind, us in limits.launch_us.items())
    rate = limits.copy_bytes_per_s / 1e12
    return [
        f"copy {rate:.2f} TB/s; a launch in a graph: {launches}; L2 {limits.l2_bytes >> 20} MiB",
        *_LEGEND,
    ]


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    # A message in place of numbers takes the room it needs.
    padded = [cell.rjust(width) for cell, width in zip(row, widths, strict=False)]
    return "  ".join(padded).rstrip()


def _check_rows(result: CellResult) -> list[list[str]]:
    where = _where(result)
    checked = [
        [
            *(*where, name, "passed" if p.ok else "FAILED", f"{p.absorbed_percent:.4f} %"),
            *map(str, (p.steps, p.rotated, p.cache)),
        ]
        for name, p in result.parity.items()
    ]
    return checked + [[*where, name, f"did not run: {x}"] for name, x in result.failures.items()]


def _row(result: CellResult, limits: Limits) -> list[str]:
    where, said = _where(result), "; ".join(result.troubles)
    if not all(p.ok for p in result.parity.values()):
        return [*where, f"CHECK FAILED, not timed: {said}; {_ALLOWED}"]
    if not result.times:
        return [*where, f"not timed: {said}"]
    times = [_time(result, name) for name in _TIMED]
    found = ratios(result, limits)
    shares = [f"{found[name]:.2f}" if name in found else "-" for name in _RATIOS]
    return [*where, *times, f"{floor_us(result, limits):.2f}", *shares]


def _where(result: CellResult) -> list[str]:
    return [result.spec.format, str(result.spec.heads), str(result.spec.tokens)]


def _time(result: CellResult, name: str) -> str:
    if name not in result.times:
        return "failed"
    taken = result.times[name]
    return f"{taken.median:.2f} ±{(taken.high - taken.low) / 2:.2f}"
