"""What the serving benchmark says: a column for each form of the model, and a document."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlalab.bench.serve_faces import ServeSetting, SetUp
from mlalab.bench.serve_options import Plan
from mlalab.context import BatchKind
from mlalab.serving.agreement import Agreement
from mlalab.serving.engine import StepsTaken
from mlalab.serving.metrics import Latency, Summary
from mlalab.serving.requests import RequestSpec

FORMAT = "mlalab-serve-1"
_LEGEND = (
    "median over the runs (lowest..highest), and its ratio to the first column's; TTFT: time to "
    "first token, TPOT: time per output token after it, of a request; ITL: between two tokens; "
    "decode tokens/s: of the steps in which every request decodes"
)
_LATENCIES = ("ttft", "tpot", "itl")
_STATISTICS = ("mean", "median", "p99")


@dataclass(frozen=True, slots=True)
class Run:
    """One timed run of a trace.

    Args:
        steps: what was run of each kind of step.
    """

    summary: Summary
    steps: Mapping[str, StepsTaken]


@dataclass(slots=True)
class FaceResult:
    """All that was found of one form.

    Args:
        differing: requests with tokens that are others than the first form's, by more than
            rounding, or others in one run than in another of the same batches.
        first_difference: the first such request and the first such token of it; None without.
        peak_bytes: the most that were in use in any run.
        compiled_later: graphs that were compiled after everything was to be ready.
        agreement: with the tokens of the first form, served in the same batches.
    """

    name: str
    set_up: SetUp
    runs: list[Run] = field(default_factory=list)
    differing: int = 0
    first_difference: tuple[int, int] | None = None
    peak_bytes: int = 0
    compiled_later: int = 0
    agreement: Agreement = field(default_factory=Agreement)


def _latency(latency: str, statistic: str) -> Callable[[Run], float | None]:
    def of(run: Run) -> float | None:
        found: Latency | None = getattr(run.summary, latency)
        return None if found is None else 1000 * getattr(found, statistic)

    return of


def _decode_rate(run: Run) -> float | None:
    taken = run.steps.get("decode")
    return taken.tokens / taken.seconds if taken and taken.seconds else None


_FIGURES: Mapping[str, Callable[[Run], float | None]] = {
    "requests/s": lambda run: run.summary.requests_per_s,
    "output tokens/s": lambda run: run.summary.output_tokens_per_s,
    "decode tokens/s": _decode_rate,
    **{
        f"{latency.upper()} {statistic}, ms": _latency(latency, statistic)
        for latency in _LATENCIES
        for statistic in _STATISTICS
    },
}


def figures(result: FaceResult) -> dict[str, tuple[float, float, float]]:
    """Return median, lowest and highest of each figure over the runs that have it."""
    told = {}
    for title, of in _FIGURES.items():
        values = [value for value in map(of, result.runs) if value is not None]
        if values:
            told[title] = (statistics.median(values), min(values), max(values))
    return told


def ratios(result: FaceResult, first: FaceResult) -> dict[str, float]:
    """Return each median over that of the first form.

    Empty when either said other tokens than it should: the time of a wrong model is no speed-up.
    """
    if result.differing or first.differing:
        return {}
    own, other = figures(result), figures(first)
    return {t: own[t][0] / other[t][0] for t in own if t in other and other[t][0]}


def table(results: Sequence[FaceResult]) -> str:
    """Return the results as text, a column for each form."""
    rows = [["", *(result.name for result in results)]]
    rows += [[title, *(_figure(r, results[0], title) for r in results)] for title in _FIGURES]
    rows += [[title, *(tell(r) for r in results)] for title, tell in _FACTS.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for title, *cells in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join((title.ljust(widths[0]), *padded)).rstrip())
    return "\n".join((_LEGEND, *lines))


def _figure(result: FaceResult, first: FaceResult, title: str) -> str:
    found = figures(result).get(title)
    if found is None:
        return "-"
    median, low, high = (f"{value:.2f}" for value in found)
    spread = f" ({low}..{high})" if len(result.runs) > 1 else ""
    ratio = ratios(result, first).get(title) if result is not first else None
    return f"{median}{spread}" + (f" {ratio:.2f}×" if ratio is not None else "")


def _steps(result: FaceResult) -> str:
    steps = result.runs[-1].steps if result.runs else {}
    taken = (steps.get(kind, StepsTaken()) for kind in ("prefill", "mixed", "decode"))
    return "/".join(str(of_kind.count) for of_kind in taken)


def _tokens(result: FaceResult) -> str:
    found = result.agreement
    if result.differing:
        return f"{result.differing} requests differ"
    if not found.tipped:
        return "same"
    return f"{found.tipped} of {found.choices} tipped by rounding (at most {found.widest:.1g} sd)"


def _by_kind(counts: Mapping[BatchKind, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in counts.items()) or "-"


_FACTS: Mapping[str, Callable[[FaceResult], str]] = {
    "steps: prefill/mixed/decode": _steps,
    "tokens": _tokens,
    "compile, s": lambda result: f"{result.set_up.compile_s:.2f}",
    "capture, s": lambda result: f"{result.set_up.capture_s:.2f}",
    "graphs (of them cached)": lambda r: f"{r.set_up.graphs} ({r.set_up.cached})",
    "partitions of a graph": lambda result: _by_kind(result.set_up.partitions),
    "CUDA graphs captured": lambda result: _by_kind(result.set_up.captured),
    "graphs after warm-up": lambda result: str(result.compiled_later),
    "peak memory, MiB": lambda result: str(result.peak_bytes >> 20),
}


_ON_CPU = "\na rehearsal: on a CPU references serve every op, and times say nothing of a GPU"


def described(name: str, setting: ServeSetting, trace: Sequence[RequestSpec]) -> str:
    """Return in a few lines what is served."""
    shape, dtype = setting.shape, str(setting.dtype).removeprefix("torch.")
    prompts, outputs = (
        sum(getattr(spec, field) for spec in trace) for field in ("prompt_len", "output_len")
    )
    last = trace[-1].arrival_s if trace else 0.0
    when = f"arriving within {last:.2f} s" if last else "all there at the start"
    return (
        f"{name}: {shape.num_layers} layer(s) of width {shape.attention.hidden_size}, dense MLPs "
        f"of {shape.intermediate_size} in place of experts, {shape.vocab_size} words, {dtype}, "
        f"cache {setting.kv_cache_dtype}; random weights\n"
        f"{len(trace)} requests, {prompts} prompt and {outputs} output tokens, {when}; at most "
        f"{setting.max_num_seqs} requests and {setting.max_num_batched_tokens} tokens a step, "
        f"{setting.num_blocks} cache blocks" + _ON_CPU * (setting.device.type == "cpu")
    )


def document(
    facts: Mapping[str, str],
    planned: Plan,
    results: Sequence[FaceResult],
    interrupted: bool = False,
) -> dict[str, Any]:
    """Return everything that was measured, as dictionaries of numbers and strings."""
    setting = planned.setting
    faces = [
        {
            **dataclasses.asdict(result),
            "figures": figures(result),
            "ratios": ratios(result, results[0]),
        }
        for result in results
    ]
    return {
        "format": FORMAT,
        "bench": "serve",
        "unit": "seconds in runs, milliseconds in figures",
        "machine": dict(facts),
        "model": planned.model,
        "mlp": "dense, in place of experts",
        "setting": {
            **dataclasses.asdict(setting),
            "device": str(setting.device),
            "dtype": str(setting.dtype),
        },
        "trace": [dataclasses.asdict(spec) for spec in planned.trace],
        "interrupted": interrupted,
        "faces": faces,
    }
