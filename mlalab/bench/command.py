"""`python -m mlalab bench`: from options to a table and a file."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from mlalab.bench.cells import FORMATS, CellResult, CellSpec, grid
from mlalab.bench.contenders import ABSORB_OP, CONCAT_OP
from mlalab.bench.report import Limits, document, machine, measure_limits, save, table
from mlalab.bench.run import check_cell, run_all, run_cell
from mlalab.errors import ConfigError
from mlalab.kernels import load
from mlalab.trace_files import require_folder

_FULL = {"tokens": (1, 8, 32, 64, 128, 256, 512), "heads": (16, 64, 128), "formats": FORMATS}
_QUICK = {"tokens": (1, 32, 512), "heads": (16, 128), "formats": ("fp8/fp8",)}
_TINY = {"tokens": (1, 3, 17), "heads": (2,), "formats": FORMATS}
_TINY_SIZES = {"nope": 16, "rope": 8, "latent": 64}
_MIN_REPLAYS = 20


def decode_prep(
    device: torch.device,
    *,
    tokens: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    formats: Sequence[str] | None = None,
    quick: bool = False,
    check_only: bool = False,
    replays: int = _MIN_REPLAYS,
    out: Path | None = None,
) -> int:
    """Bench the decode preparation and print a table; returns the exit code.

    0 when every check passed and everything ran, 1 when not, 130 when interrupted: what was
    finished is then printed and saved all the same.

    Args:
        tokens, heads, formats: the cells; by default a grid of 63, or of 6 if `quick`.
        check_only: compare with the reference and time nothing; tiny sizes on a CPU.
        out: where to save the results as JSON.

    Raises:
        ConfigError: an option that cannot be used, a CPU that is to be timed, a missing kernel.
    """
    on_gpu = device.type == "cuda"
    if not (on_gpu or check_only):
        raise ConfigError(
            "On a CPU Triton's kernels are interpreted, and times of an interpreter mean nothing; "
            "pass --check-only to compare the kernels with the reference on tiny sizes."
        )
    if replays < _MIN_REPLAYS:
        raise ConfigError(f"A median takes at least {_MIN_REPLAYS} replays, got {replays}.")
    if out is not None:
        require_folder(out)
    sizes = {} if on_gpu else _TINY_SIZES
    cells = _QUICK if quick else _FULL
    given = {"tokens": tokens, "heads": heads, "formats": formats}
    chosen = (cells if on_gpu else _TINY) | {k: v for k, v in given.items() if v is not None}
    specs = grid(**chosen, **sizes)  # type: ignore[arg-type]
    for op in (ABSORB_OP, CONCAT_OP):
        load(op, "triton")
    return _run(specs, device, check_only, replays, out)


def _run(
    specs: Sequence[CellSpec],
    device: torch.device,
    check_only: bool,
    replays: int,
    out: Path | None,
) -> int:
    facts = machine(device)
    print(", ".join(f"{name} {fact}" for name, fact in facts.items()), file=sys.stderr)
    limits: Limits | None = None if check_only else measure_limits(device, replays)
    cell = functools.partial(check_cell, device=device)
    if not check_only:
        cell = functools.partial(run_cell, device=device, replays=replays)

    def keep(results: Sequence[CellResult], interrupted: bool = False) -> None:
        if out is not None:
            save(out, document(facts, limits, results, interrupted))

    results, interrupted = run_all(specs, cell, keep)
    keep(results, interrupted)
    print(table(results, limits))
    failures = {(n, why) for r in results if r.times for n, why in r.failures.items()}
    for name, why in sorted(failures):
        print(f"{name} failed: {why}", file=sys.stderr)
    if interrupted:
        print(f"interrupted after {len(results)} of {len(specs)} cells", file=sys.stderr)
        return 130
    return 0 if all(result.ok for result in results) else 1
