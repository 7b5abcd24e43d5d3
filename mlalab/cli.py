"""The command line: `python -m mlalab trace | sweep | bench | tune | doctor | clean`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlalab import __version__
from mlalab.cli_bench import add_bench
from mlalab.errors import MlalabError


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _trace(arguments: argparse.Namespace) -> int:
    # Torch and Inductor take seconds to import: `--help` and `clean` must not wait for them.
    import torch

    from mlalab.compile.config import flags_from
    from mlalab.env import device_named
    from mlalab.lab import trace
    from mlalab.layers.mla import MLAOptions
    from mlalab.trace_files import require_files

    options = MLAOptions(
        kv_cache_dtype=arguments.kv_cache_dtype,
        rope_custom_op=arguments.rope_custom_op,
        dtype=getattr(torch, arguments.dtype),
        device=device_named(arguments.device),
    )
    require_files(arguments.html, arguments.json)
    result = trace(
        arguments.model,
        tokens=arguments.tokens,
        num_layers=arguments.layers,
        level=arguments.level,
        config=flags_from(arguments.flags or ()),
        options=options,
        mode=arguments.mode,
        dynamic=arguments.dynamic,
    )
    if arguments.check:
        _say("running every step's graph on the same random input ...")
        result.check()
    print(result)
    _explain(result)
    for path, write in ((arguments.html, result.to_html), (arguments.json, result.save)):
        if path is not None:
            write(path)
            _say(f"wrote {path}")
    return 0 if result.ok or not arguments.check else 1


def _explain(result: Any) -> None:
    fusions = [step.name for step in result.steps if step.kind == "fusion"]
    off = [name for name, status in result.skipped.items() if status == "disabled"]
    for name in (*fusions, *(name for name in result.skipped if name not in off)):
        print(f"\n{result.why(name)}")
    if off:
        print(f"\nswitched off (see --enable): {', '.join(off)}")


def _doctor(arguments: argparse.Namespace) -> int:
    from mlalab.env import default_device, report
    from mlalab.kernels import choices

    served = {op: f"{by}, {why}" for op, (by, why) in choices(default_device()).items()}
    for facts in (report(), served):
        width = max(map(len, facts))
        for subject, fact in facts.items():
            print(f"{subject:<{width}}  {fact}")
    return 0


def _sweep(arguments: argparse.Namespace) -> int:
    from mlalab.sweeps.command import write

    given = {name: getattr(arguments, name) for name in _SWEEP}
    files = {name: getattr(arguments, name) for name in ("json", "csv", "figure")}
    print(write({k: v for k, v in given.items() if v is not None}, files))
    for path in filter(None, files.values()):
        _say(f"wrote {path}")
    return 0


def _clean(arguments: argparse.Namespace) -> int:
    from mlalab.notebook_clean import clean_paths

    changed = clean_paths(arguments.files, check=arguments.check)
    for path in changed:
        print(f"{'would change' if arguments.check else 'cleaned'} {path}")
    return 1 if arguments.check and changed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mlalab",
        description="A lab bench for fusing the decode path of multi-head latent attention.",
    )
    parser.add_argument("--version", action="version", version=f"mlalab {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_trace(commands)
    _add_sweep(commands)
    add_bench(commands)

    doctor = commands.add_parser("doctor", help="what this machine is and what it can run")
    doctor.set_defaults(run=_doctor)

    clean = commands.add_parser("clean", help="normalise committed notebooks")
    clean.set_defaults(run=_clean)
    clean.add_argument("files", nargs="+", type=Path, metavar="FILE")
    clean.add_argument("--check", action="store_true", help="change nothing, fail if it would")
    return parser


def _add_trace(commands: Any) -> None:
    trace = commands.add_parser("trace", help="compile a layer and show what every pass did")
    trace.set_defaults(run=_trace)
    trace.add_argument("--model", required=True, help="a preset, or a Hugging Face directory")
    trace.add_argument("--tokens", type=int, default=8, help="decode tokens in the batch (8)")
    trace.add_argument("--layers", type=int, default=1, help="how many layers in a row (1)")
    trace.add_argument("--kv-cache-dtype", default="auto", help="auto or fp8 (auto)")
    trace.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    trace.add_argument("--level", default="O2", help="O0, O1, O2 or O3 (O2)")
    for option, value in (("--enable", True), ("--disable", False)):
        trace.add_argument(
            option,
            dest="flags",
            action="append",
            type=lambda name, value=value: (name, value),
            metavar="FLAG",
            help=f"set a flag of the passes to {value}, whatever the level says; may be repeated",
        )
    trace.add_argument("--mode", default="display", help="display or inductor (display)")
    trace.add_argument("--device", help="cpu or cuda (the accelerator when there is one)")
    trace.add_argument("--dynamic", action="store_true", help="one graph for any token count")
    trace.add_argument("--rope-custom-op", action="store_true", help="RoPE as the in-place op")
    trace.add_argument("--no-check", dest="check", action="store_false", help="skip the proof")
    trace.add_argument("--html", type=Path, metavar="FILE", help="write a page that steps")
    trace.add_argument("--json", type=Path, metavar="FILE", help="write the trace")


_SWEEP = {
    "max_num_seqs": (int, "most requests of a batch (256)"),
    "num_speculative_tokens": (int, "tokens that a decode request has beside its own (0)"),
    "max_num_batched_tokens": (int, "the largest batch (8192)"),
    "heads": (int, "query heads on one rank (16)"),
    "format": (str, "of query and cache: fp8/fp8, bf16/fp8 or bf16/bf16 (fp8/fp8)"),
    "record": (str, "whose times: a name, or a file of `bench --out` (h200)"),
}
"""Field of a sweep → its type and what it is."""


def _add_sweep(commands: Any) -> None:
    sweep = commands.add_parser("sweep", help="what a decode threshold compiles and buys")
    sweep.set_defaults(run=_sweep)
    for name, (kind, what) in _SWEEP.items():
        sweep.add_argument(f"--{name.replace('_', '-')}", type=kind, help=what)
    sweep.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found")
    sweep.add_argument("--csv", type=Path, metavar="FILE", help="write the times")
    sweep.add_argument("--figure", type=Path, metavar="FILE", help="write the picture, as SVG")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; an error that mlalab raises on purpose is one sentence on stderr."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except MlalabError as error:
        print(f"mlalab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mlalab: interrupted", file=sys.stderr)
        return 130
