"""Cells, one after the other: check, then time; what was finished survives an interruption."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from tqdm import tqdm

from mlalab.bench import timing
from mlalab.bench.cells import CellResult, CellSpec
from mlalab.bench.contenders import CHECKED, CONTENDERS, Layer, Run, make_layers
from mlalab.bench.parity import compare
from mlalab.errors import first_line

_MIN_LAYERS = 32
"""A replay of so many layers hides what the events around it cost."""
_CHECK_LAYERS = 8


def check_cell(spec: CellSpec, device: torch.device, layers: int = _CHECK_LAYERS) -> CellResult:
    """Compare our kernels with the staged reference, on any device, and time nothing."""
    return _checked(spec, make_layers(spec, layers, device))


def run_cell(spec: CellSpec, device: torch.device, replays: int = 20) -> CellResult:
    """Check one cell on a GPU and, when every check passed, time it.

    Each layer has weights, inputs, outputs and cache of its own, so many that a replay passes twice
    the L2 cache: what a layer reads has left it since the replay before.

    Args:
        replays: samples of each contender.
    """
    with torch.cuda.device(device), torch.no_grad():
        # Graphs of the cell before kept memory of their own.
        torch.cuda.empty_cache()
        l2 = torch.cuda.get_device_properties(device).L2_cache_size
        layers = make_layers(spec, layers_past(2 * l2, spec), device)
        checked = _checked(spec, layers)
        if not checked.ok:
            return checked
        work, failures = {}, {}
        for name, ready in CONTENDERS.items():
            try:
                work[name] = _captured(ready, layers)
            except Exception as error:
                # A baseline that the installed compiler cannot build must not cost the others.
                failures[name] = first_line(error)
        copies = [timing.copies_of(spec.bytes_moved, device) for _ in layers]
        ways = {way: timing.capture([copy[way] for copy in copies]) for way in copies[0]}
        times = timing.measure({**work, **ways}, replays)
        times["copy"] = min((times.pop(way) for way in ways), key=lambda taken: taken.median)
    return CellResult(spec, len(layers), checked.parity, times, failures)


def layers_past(num_bytes: int, spec: CellSpec) -> int:
    """Return how many layers of this cell move at least `num_bytes`."""
    return max(_MIN_LAYERS, math.ceil(num_bytes / spec.bytes_moved))


def _captured(ready: Callable[[], Run], layers: Sequence[Layer]) -> timing.Captured:
    run = ready()
    return timing.capture([functools.partial(run, layer) for layer in layers])


def _checked(spec: CellSpec, layers: Sequence[Layer]) -> CellResult:
    parity, failures = {}, {}
    for name in CHECKED:
        try:
            parity[name] = compare(CONTENDERS[name](), layers, spec)
        except Exception as error:
            # A kernel that this size breaks is this cell's result, not the end of the run.
            failures[name] = first_line(error)
    return CellResult(spec, len(layers), parity, failures=failures)


def each(specs: Iterable[CellSpec], cell: Callable[[CellSpec], CellResult]) -> Iterator[CellResult]:
    """Yield the result of every cell; what it raises, memory it lacks included, is its result."""
    for spec in specs:
        try:
            result = cell(spec)
        except Exception as error:
            result = CellResult(spec, 0, {}, failures={"cell": first_line(error)})
        yield result


def run_all(
    specs: Iterable[CellSpec],
    cell: Callable[[CellSpec], CellResult],
    keep: Callable[[list[CellResult]], None],
) -> tuple[list[CellResult], bool]:
    """Run every cell; returns the finished ones and whether Ctrl-C stopped it.

    Args:
        cell: one cell; independent of all others.
        keep: called with all results so far whenever a cell is finished.
    """
    results: list[CellResult] = []
    try:
        # Quiet where stderr is not a terminal.
        for result in each(tqdm(list(specs), unit="cell", file=sys.stderr, disable=None), cell):
            results.append(result)
            keep(results)
    except KeyboardInterrupt:
        return results, True
    return results, False
