"""`python -m mlalab tune`: which launch configuration is fastest here, cell by cell, into a file.

The file has the form of the table beside the kernel; `MLALAB_TUNING=FILE` puts it before that one.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mlalab.bench import timing
from mlalab.bench.cells import CellSpec, grid
from mlalab.bench.contenders import ABSORB_OP, Layer, make_layers, one_launch
from mlalab.bench.parity import compare
from mlalab.bench.report import machine
from mlalab.bench.run import layers_past
from mlalab.errors import ConfigError
from mlalab.trace_files import require_folder, write_whole

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
HEADS = (16, 64, 128)
FORMATS = ("fp8/fp8", "bf16/bf16")
_REPLAYS = 12
_CHECKED_LAYERS = 2
_HOW = "median of 12 replays of a CUDA graph over layers with weights of their own, checked first"

_POINTED = tuple(
    itertools.product((16, 32, 64), (64, 128, 256), ((1, 1), (2, 1), (2, 2)), (4, 8), (16, 32))
)
_LARGEST_POINTED = 64 * 128
_DESCRIBED = (
    *((32, 64, 1, 1, 4), (32, 64, 2, 1, 4), (32, 128, 1, 1, 4), (32, 128, 2, 1, 4)),
    *(
        (64, 64, 2, 2, 4),
        (64, 64, 2, 3, 4),
        (64, 64, 4, 3, 4),
        (64, 64, 8, 2, 4),
        (64, 64, 8, 3, 4),
    ),
    *((64, 64, 1, 1, 4), (64, 128, 1, 1, 4), (64, 128, 2, 2, 4), (64, 128, 2, 3, 4)),
    *((64, 128, 4, 3, 4), (64, 128, 8, 3, 4), (64, 256, 8, 2, 8)),
    *((64, 256, 4, 3, 8), (64, 256, 8, 3, 8), (64, 256, 16, 3, 8)),
    *((128, 64, 2, 2, 8), (128, 64, 4, 3, 8), (128, 128, 4, 3, 8), (128, 128, 8, 3, 8)),
)

_ROTATIONS = ((64, False), (128, False), (256, False), (512, False), (64, True), (128, True))


def candidates(tokens: int) -> Iterator[Any]:
    """Return the configurations worth trying for so many tokens."""
    from mlalab_kernels.fused_absorb_qk_rope_concat_and_cache_mla.launch_config import Config

    if tokens <= 128:
        for block_t, block_l, run, warps, rows in _POINTED:
            filled = block_t * run[0] <= max(16, tokens)
            if filled and block_t * block_l <= _LARGEST_POINTED:
                yield Config(block_t, block_l, *run, warps, rows, overlap=True)
    if tokens >= 32:
        fitting = [sizes for sizes in _DESCRIBED if sizes[0] <= max(64, tokens)]
        for sizes, (rows, first) in itertools.product(fitting, _ROTATIONS):
            more = {"overlap": True, "rotations_first": first}
            yield Config(*sizes, rows=rows, described=True, **more)


def tune(
    device: torch.device,
    out: Path,
    *,
    tokens: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    formats: Sequence[str] | None = None,
) -> int:
    """Time every candidate in every cell on a GPU and write the best of each to `out`.

    A row says on what device and when; the file's provenance is that of the latest run. Rows are
    told apart by the query's format, not by the cache's.

    Rows of other cells that `out` already holds are kept; Ctrl-C keeps what was finished.

    Raises:
        ConfigError: no GPU, or a file that cannot be read or written.
    """
    if device.type != "cuda":
        raise ConfigError("Tuning times kernels on a GPU, and there is none; run it where one is.")
    require_folder(out)
    specs = grid(tokens or TOKENS, heads or HEADS, formats or FORMATS)
    rows, facts = _read(out), machine(device) | {"how": _HOW}
    try:
        for spec in tqdm(specs, unit="cell", file=sys.stderr, disable=None):
            row = best_of(spec, device) | {"device": facts["device"], "date": facts["date"]}
            rows = [old for old in rows if _cell(old) != _cell(row)] + [row]
            write_whole(out, as_text(facts, sorted(rows, key=_cell)))
            print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    except KeyboardInterrupt:
        print(f"interrupted; {out} holds what was finished", file=sys.stderr)
        return 130
    return 0


def best_of(spec: CellSpec, device: torch.device) -> dict[str, Any]:
    """Return the row of the fastest candidate that computes what the reference does."""
    from mlalab_kernels.launch import arch_of

    with torch.cuda.device(device), torch.no_grad():
        torch.cuda.empty_cache()
        l2 = torch.cuda.get_device_properties(device).L2_cache_size
        layers = make_layers(spec, layers_past(2 * l2, spec), device)
        times = {c: t for c in candidates(spec.tokens) if (t := _time(c, layers, spec))}
    if not times:
        raise ConfigError(
            f"No configuration ran and agreed with the reference for {spec}; see what fails with "
            f"`python -m mlalab bench decode-prep --check-only`."
        )
    config = min(times, key=lambda c: times[c])
    return {
        **{"arch": arch_of(device), "dtype": str(layers[0].q_out.dtype).removeprefix("torch.")},
        **{"heads": spec.heads, "tokens": spec.tokens},
        **dataclasses.asdict(config),
        "us": round(times[config], 2),
    }


def _time(config: Any, layers: Sequence[Layer], spec: CellSpec) -> float | None:
    """Return the microseconds per layer, None where the configuration fails or is wrong."""
    run = one_launch(config=config)
    try:
        if not compare(run, layers[:_CHECKED_LAYERS], spec).ok:
            return None
        work = timing.capture([functools.partial(run, layer) for layer in layers])
    except Exception:
        # A candidate may ask for more shared memory than there is.
        torch.cuda.synchronize()
        return None
    return timing.measure({"one": work}, _REPLAYS)["one"].median


def _cell(row: dict[str, Any]) -> tuple[str, str, int, int]:
    return row["arch"], row["dtype"], row["heads"], row["tokens"]


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        return list(json.loads(path.read_text())[ABSORB_OP]["rows"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no tuning table; name another file, or remove it.") from error


def as_text(facts: dict[str, str], rows: Sequence[dict[str, Any]]) -> str:
    """Return the table as JSON, one line for each row."""
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    return (
        f'{{"{ABSORB_OP}": {{\n "provenance": {json.dumps(facts)},\n "rows": [\n{lines}\n ]}}}}\n'
    )
