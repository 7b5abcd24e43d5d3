"""From the options of `mlalab bench serve` to what is served: a trace, sizes and limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, get_args

import torch

from mlalab.bench.serve_faces import FACES, ServeSetting
from mlalab.cache import KVCacheDtype
from mlalab.compile.capture import Mode
from mlalab.compile.config import Level
from mlalab.compile.cudagraph_modes import CudaGraphMode
from mlalab.errors import ConfigError
from mlalab.serving.model import decoder_shape
from mlalab.serving.requests import RequestSpec, equal_requests, load_jsonl, sharegpt_like
from mlalab.workbench import BLOCK_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What to serve, and how; None takes the default of the device.

    Args:
        model: a preset; layers: how many of its layers.
        faces: names of `FACES`; levels: of each face that is compiled.
        requests, rate, lengths: of a generated trace, `lengths` (prompt, output) instead of
            ShareGPT's; trace: a JSONL file of one instead.
        seed: of trace, prompts and weights.
        dtype: of weights and activations; float32 on a CPU, bfloat16 elsewhere.
        mode: "inductor" on a GPU; "display" on a CPU, where times mean little.
        cuda_graphs: the mode; whole decode batches and pieces of others on a GPU, none on a CPU.
        num_blocks: of the cache; by default requests wait for nothing but `max_num_seqs`.
        runs: timed runs of each form.
        quick: a few layers and requests.
    """

    model: str | None = None
    layers: int | None = None
    faces: Sequence[str] = ("opaque", "exposed", "exposed+passes")
    levels: Sequence[str] = ("O2",)
    requests: int | None = None
    rate: float = math.inf
    lengths: tuple[int, int] | None = None
    trace: Path | None = None
    seed: int = 0
    dtype: str | None = None
    kv_cache_dtype: KVCacheDtype = "auto"
    mode: Mode | None = None
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    num_blocks: int | None = None
    cuda_graphs: CudaGraphMode | None = None
    runs: int | None = None
    quick: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run: `forms` are pairs of a face and a level."""

    model: str
    setting: ServeSetting
    trace: tuple[RequestSpec, ...]
    forms: tuple[tuple[str, str | None], ...]
    runs: int


@dataclass(frozen=True, slots=True)
class _Size:
    """How much is run when nothing else is asked for."""

    model: str
    layers: int | None
    requests: int
    runs: int
    max_num_batched_tokens: int
    max_num_seqs: int


_FULL = _Size("deepseek-v2-lite", None, 128, 5, 2048, 128)
_QUICK = _Size("deepseek-v2-lite", 4, 16, 2, 512, 16)
_ON_CPU = _Size("tiny", 1, 6, 2, 32, 4)
_DTYPES = ("bfloat16", "float16", "float32")
_SCALES = {"tiny": 0.05}
"""Preset → what ShareGPT's lengths are multiplied by, where not by one."""


_T = TypeVar("_T")


def _or(given: _T | None, default: _T) -> _T:
    return default if given is None else given


def plan(device: torch.device, options: ServeOptions) -> Plan:
    """Return what these options ask for on this device.

    Raises:
        ConfigError: an option that cannot be used, or a trace too long for the model.
        InputError: lengths below one, or a request that the cache is too small for.
    """
    on_gpu = device.type == "cuda"
    size = _ON_CPU if not on_gpu else _QUICK if options.quick else _FULL
    model, runs = _or(options.model, size.model), _or(options.runs, size.runs)
    if runs < 1:
        raise ConfigError(f"runs must be 1 or more, got {runs}.")
    forms = _forms(options.faces, options.levels)
    shape = decoder_shape(model, _or(options.layers, size.layers))
    trace = _trace(model, _or(options.requests, size.requests), options)
    longest = max((spec.num_tokens for spec in trace), default=1)
    if longest > shape.attention.max_position_embeddings:
        raise ConfigError(
            f"The trace has a request of {longest} tokens and {model} has "
            f"{shape.attention.max_position_embeddings} positions; shorten the request."
        )
    seqs = _or(options.max_num_seqs, size.max_num_seqs)
    setting = ServeSetting(
        shape=shape,
        device=device,
        dtype=_dtype(_or(options.dtype, "bfloat16" if on_gpu else "float32")),
        mode=_or(options.mode, "inductor" if on_gpu else "display"),
        max_num_batched_tokens=_or(options.max_num_batched_tokens, size.max_num_batched_tokens),
        max_num_seqs=seqs,
        max_model_len=longest,
        num_blocks=_or(options.num_blocks, _blocks_for(trace, seqs)),
        kv_cache_dtype=options.kv_cache_dtype,
        cuda_graphs=_or(options.cuda_graphs, "FULL_AND_PIECEWISE" if on_gpu else "NONE"),
        seed=options.seed,
    )
    _check(setting, trace)
    return Plan(model, setting, trace, forms, runs)


def _dtype(name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(_DTYPES)}, got {name!r}.")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _check(setting: ServeSetting, trace: Sequence[RequestSpec]) -> None:
    """Refuse what would only be found out after minutes of compiling."""
    known = {
        "kv_cache_dtype": get_args(KVCacheDtype),
        "mode": get_args(Mode),
        "cuda_graphs": get_args(CudaGraphMode),
    }
    for name, values in known.items():
        value = getattr(setting, name)
        if value not in values:
            raise ConfigError(f"{name} must be one of {', '.join(values)}, got {value!r}.")
    scheduler = setting.scheduler()
    for spec in trace:
        scheduler.check(spec.prompt_len, spec.output_len)


def _trace(model: str, count: int, options: ServeOptions) -> tuple[RequestSpec, ...]:
    if options.trace is not None:
        return load_jsonl(options.trace)
    if options.lengths is not None:
        return equal_requests(count, *options.lengths, seed=options.seed, rate=options.rate)
    return sharegpt_like(count, options.seed, options.rate, scale=_SCALES.get(model, 1.0))


def _forms(faces: Sequence[str], levels: Sequence[str]) -> tuple[tuple[str, str | None], ...]:
    """Return each face with each level, and without one where it is not compiled."""
    if not faces or not {*faces} <= {*FACES}:
        raise ConfigError(f"Faces are {', '.join(FACES)}, got {', '.join(faces)!r}.")
    if not levels or not {*levels} <= {*get_args(Level)}:
        raise ConfigError(f"Levels are {', '.join(get_args(Level))}, got {', '.join(levels)!r}.")
    pairs = [(face, level if FACES[face].passes else None) for face in faces for level in levels]
    return tuple(dict.fromkeys(pairs))


def _blocks_for(trace: Sequence[RequestSpec], max_num_seqs: int) -> int:
    """Return the blocks of the largest requests that can run at a time."""
    blocks = sorted((-(-spec.num_tokens // BLOCK_SIZE) for spec in trace), reverse=True)
    return max(1, sum(blocks[: max(max_num_seqs, 0)]))
