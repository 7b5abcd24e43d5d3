"""The commands that run on a GPU: `python -m mlalab bench decode-prep | bench serve | tune`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _names(text: str) -> list[str]:
    return text.split(",")


def _decode_prep(arguments: argparse.Namespace) -> int:
    from mlalab.bench.command import decode_prep
    from mlalab.env import device_named

    return decode_prep(
        device_named(arguments.device),
        tokens=arguments.tokens,
        heads=arguments.heads,
        formats=arguments.formats,
        quick=arguments.quick,
        check_only=arguments.check_only,
        replays=arguments.replays,
        out=arguments.out,
    )


def _serve(arguments: argparse.Namespace) -> int:
    import dataclasses

    from mlalab.bench.serve import serve
    from mlalab.bench.serve_options import ServeOptions
    from mlalab.env import device_named

    names = (field.name for field in dataclasses.fields(ServeOptions))
    # What was not asked for is not among the arguments, and has its default there.
    given = {name: getattr(arguments, name) for name in names if name in arguments}
    return serve(device_named(arguments.device), ServeOptions(**given), arguments.out)


def _tune(arguments: argparse.Namespace) -> int:
    from mlalab.bench.tune import tune
    from mlalab.env import device_named

    cells = {name: getattr(arguments, name) for name in ("tokens", "heads", "formats")}
    return tune(device_named(arguments.device), arguments.out, **cells)


def add_bench(commands: Any) -> None:
    """Add `bench` and `tune` to the commands."""
    bench = commands.add_parser("bench", help="check and time the fused kernels, or serve requests")
    benches = bench.add_subparsers(required=True, metavar="WHAT")
    prep = benches.add_parser("decode-prep", help="query and cache write of decode, on a GPU")
    prep.set_defaults(run=_decode_prep)
    _add_cells(prep)
    prep.add_argument("--quick", action="store_true", help="6 cells instead of 63")
    prep.add_argument("--replays", type=int, default=20, help="samples of each time (20)")
    prep.add_argument("--check-only", action="store_true", help="check the kernels, time nothing")
    prep.add_argument("--out", type=Path, metavar="FILE", help="write the results as JSON")
    _add_serve(benches)

    tune = commands.add_parser("tune", help="find the fused kernel's best configurations on a GPU")
    tune.set_defaults(run=_tune)
    _add_cells(tune)
    tune.add_argument("--out", type=Path, metavar="FILE", required=True, help="table to extend")


def _add_cells(command: Any) -> None:
    command.add_argument("--device", help="cuda or cpu (the accelerator when there is one)")
    command.add_argument("--tokens", type=_numbers, metavar="T,T,...", help="tokens in the batch")
    command.add_argument("--heads", type=_numbers, metavar="N,N,...", help="query heads")
    command.add_argument(
        "--formats",
        type=_names,
        metavar="Q/C,...",
        help="of query and cache: fp8/fp8, bf16/fp8, bf16/bf16",
    )


def _lengths(text: str) -> tuple[int, int]:
    prompt, output = _numbers(text)
    return prompt, output


_SERVE: dict[str, tuple[Any, str, str]] = {
    "--model": (str, "PRESET", "sizes of the decoder (deepseek-v2-lite; tiny on a CPU)"),
    "--layers": (int, "N", "decoder layers (all; 1 on a CPU)"),
    "--faces": (_names, "NAME,...", "eager, opaque, opaque+passes, exposed, exposed+passes"),
    "--levels": (_names, "LEVEL,...", "optimisation levels of every face (O2)"),
    "--requests": (int, "N", "requests of the trace (128; 6 on a CPU)"),
    "--rate": (float, "R", "requests a second on average (inf: all there at the start)"),
    "--lengths": (_lengths, "P,O", "prompt and output tokens (as in ShareGPT's conversations)"),
    "--trace": (Path, "FILE", "JSONL of arrival_s, prompt_len and output_len, instead"),
    "--seed": (int, "N", "of trace, prompts and weights (0)"),
    "--dtype": (str, "DTYPE", "bfloat16, float16 or float32 (bfloat16; float32 on a CPU)"),
    "--kv-cache-dtype": (str, "DTYPE", "auto or fp8 (auto)"),
    "--mode": (str, "MODE", "inductor, or display to interpret the graphs (display on a CPU)"),
    "--max-num-batched-tokens": (int, "N", "most tokens of a step (2048; 32 on a CPU)"),
    "--max-num-seqs": (int, "N", "most requests at a time (128; 4 on a CPU)"),
    "--num-blocks": (int, "N", "cache blocks (as many as max-num-seqs requests need)"),
    "--cuda-graphs": (str, "MODE", "NONE, PIECEWISE, FULL or FULL_AND_PIECEWISE (NONE on a CPU)"),
    "--runs": (int, "N", "timed runs of each face (5; 2 on a CPU)"),
}
"""Option → type, what stands for its value, help."""


def _add_serve(benches: Any) -> None:
    serve = benches.add_parser(
        "serve",
        help="requests through a decoder, in every form of its attention",
        argument_default=argparse.SUPPRESS,
    )
    serve.set_defaults(run=_serve, device=None, out=None)
    serve.add_argument("--device", help="cuda or cpu (the accelerator when there is one)")
    for option, (kind, value, text) in _SERVE.items():
        serve.add_argument(option, type=kind, metavar=value, help=text)
    serve.add_argument("--quick", action="store_true", help="4 layers, 16 requests, 2 runs")
    serve.add_argument("--out", type=Path, metavar="FILE", help="write the results as JSON")
