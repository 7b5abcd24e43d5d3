"""From a spec to its result: ranges and gates by the compiled model's own code, times by a record.

Gates look at kinds of batches and token counts and at no size of a model, so a model of the
smallest preset is asked.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping

from torch import nn

from mlalab.bench.cells import BYTES
from mlalab.bench.records import Record
from mlalab.compile.config import PassConfig
from mlalab.compile.cudagraph_sizes import capture_sizes
from mlalab.compile.dispatch import CompiledModel, GraphKey
from mlalab.compile.ranges import decode_bound
from mlalab.compile.settings import CompileConfig
from mlalab.context import BatchKind
from mlalab.layers.options import LayerOptions
from mlalab.sweeps.spec import Point, ServedRange, SweepResult, SweepSpec
from mlalab.workbench import build

_BATCHES: Mapping[str, BatchKind] = {"uniform decode": "decode", "any other": "general"}


def run(spec: SweepSpec, record: Record) -> SweepResult:
    """Answer one spec; needs nothing of any other.

    Raises:
        ConfigError: a limit that cannot be used.
    """
    _limits_of(spec)  # refused before anything is computed from them
    points = points_of(record, spec.heads, spec.format)
    crossover = crossover_of(points)
    bound = decode_bound(spec.max_num_seqs, spec.num_speculative_tokens)
    threshold = bound if crossover is None else min(bound, crossover - 1)
    config = settings_for(spec, threshold)
    limits = (spec.max_num_seqs, spec.num_speculative_tokens, spec.max_num_batched_tokens)
    decode_sizes, mixed_sizes = capture_sizes(*limits)
    return SweepResult(
        spec=spec,
        decode_bound=bound,
        threshold=threshold,
        ranges=served_ranges(config),
        decode_sizes=decode_sizes,
        mixed_sizes=mixed_sizes,
        bytes_right=q_prepped_bytes(spec, min(threshold, spec.max_num_batched_tokens)),
        bytes_wrong=q_prepped_bytes(spec, spec.max_num_batched_tokens),
        machine=record.machine,
        points=points,
        crossover=crossover,
        config=source_of(config),
        failures=record.failed(spec.heads, spec.format),
    )


def served_ranges(config: CompileConfig) -> tuple[ServedRange, ...]:
    """Return, for both kinds of batch and every range, which graph serves it and what it fuses."""
    model = CompiledModel(_module(), config)
    asked = [p.name for p in model.passes if p.serves == "mla" and model.decided.enabled(p.flags)]
    rows = []
    for batch, kind in _BATCHES.items():
        for served in model.ranges:
            gates = model.gates(GraphKey(kind, served))
            graph = str(model.key_for(served.end, kind))
            passes = {name: gates[name] for name in asked}
            rows.append(ServedRange(batch, served.start, served.end, graph, passes))
    return tuple(rows)


@functools.cache
def _module() -> nn.Module:
    return build("tiny", tokens=1, options=LayerOptions(device="cpu")).module


def settings_for(spec: SweepSpec, threshold: int) -> CompileConfig:
    """Return the settings for a spec, with the fusion on up to `threshold` tokens; 0 is off."""
    # The bound itself is left to the library, which derives it afresh whenever a limit changes.
    derived = threshold >= decode_bound(spec.max_num_seqs, spec.num_speculative_tokens)
    return dataclasses.replace(
        _limits_of(spec),
        pass_config=PassConfig(
            fuse_aiter_qk_rope_kvcache_mla=threshold > 0,
            aiter_qk_rope_kvcache_fusion_max_token_num=(
                None if derived or not threshold else threshold
            ),
        ),
    )


def _limits_of(spec: SweepSpec) -> CompileConfig:
    return CompileConfig(
        max_num_batched_tokens=spec.max_num_batched_tokens,
        max_num_seqs=spec.max_num_seqs,
        num_speculative_tokens=spec.num_speculative_tokens,
    )


def source_of(config: CompileConfig) -> str:
    """Return source that makes this configuration, as far as a sweep decides it."""
    passes = ["fuse_aiter_qk_rope_kvcache_mla"]
    if config.pass_config.aiter_qk_rope_kvcache_fusion_max_token_num is not None:
        passes.append("aiter_qk_rope_kvcache_fusion_max_token_num")
    limits = ("max_num_seqs", "num_speculative_tokens", "max_num_batched_tokens")
    return "\n".join(
        (
            "CompileConfig(",
            *(f"    {name}={getattr(config, name)}," for name in limits),
            "    pass_config=PassConfig(",
            *(f"        {name}={getattr(config.pass_config, name)}," for name in passes),
            "    ),",
            ")",
        )
    )


def q_prepped_bytes(spec: SweepSpec, tokens: int) -> int:
    """Return the bytes of one layer's prepared query, `[T, N, L + R]`, on one rank."""
    cell = spec.cell(1)
    return tokens * cell.heads * (cell.latent + cell.rope) * BYTES[cell.formats[0]]


def points_of(record: Record, heads: int, format: str) -> tuple[Point, ...]:
    """Return the record's times of two launches and of one, by tokens."""
    return tuple(
        Point(result.spec.tokens, result.times["two"], result.times["one"])
        for result in record.timed(heads, format)
    )


def crossover_of(points: tuple[Point, ...]) -> int | None:
    """Return the first token count at which one launch is no faster than two; None: nowhere.

    Looked for inside the measured range only, on straight lines between measured sizes.
    """
    slower = [index for index, point in enumerate(points) if point.ratio >= 1]
    if not slower:
        return None
    point = points[slower[0]]
    if slower[0] == 0:
        return point.tokens
    before = points[slower[0] - 1]
    gain, loss = (p.two.median - p.one.median for p in (before, point))
    share = gain / (gain - loss)
    return math.ceil(before.tokens + share * (point.tokens - before.tokens))
