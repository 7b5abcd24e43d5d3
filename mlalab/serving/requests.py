"""Traces of requests: made from a seed, or read from a file.

A trace holds when each request arrives and how long its prompt and output are; what the tokens are
does not matter to a model with random weights, so they are drawn from the seed as well.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlalab.errors import ConfigError, InputError
from mlalab.trace_files import write_whole

# Mean and deviation of the logarithm. Clipped to the bounds, both means are about 200 tokens, as in
# the conversations of ShareGPT that serving benchmarks replay.
_PROMPT, _OUTPUT = (4.77, 1.1), (4.85, 1.0)
_SHORTEST, _LONGEST = 4, 1024


@dataclass(frozen=True, slots=True)
class RequestSpec:
    """One request of a trace.

    Args:
        arrival_s: seconds after the start of the trace.
        prompt_len, output_len: tokens; the output is as long whatever the model says.

    Raises:
        InputError: a time that is negative or not finite, or a length below one.
    """

    arrival_s: float
    prompt_len: int
    output_len: int

    def __post_init__(self) -> None:
        if not _is_number(self.arrival_s) or not 0 <= self.arrival_s < math.inf:
            raise InputError(
                f"arrival_s must be a finite number of seconds, 0 or more, got {self.arrival_s!r}."
            )
        for name in ("prompt_len", "output_len"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InputError(f"{name} must be a whole number, 1 or more, got {value!r}.")

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and output together."""
        return self.prompt_len + self.output_len


_FIELDS = ("arrival_s", "prompt_len", "output_len")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def arrivals(count: int, seed: int, rate: float) -> npt.NDArray[np.float64]:
    """Return when requests arrive at random, `rate` a second on average; `inf`: all at the start.

    Raises:
        ConfigError: a negative count, or a rate that is not positive.
    """
    if type(count) is not int or count < 0:
        raise ConfigError(f"A trace has 0 or more requests, got {count!r}.")
    if not _is_number(rate) or not rate > 0:
        raise ConfigError(f"rate must be requests a second above 0, or inf, got {rate!r}.")
    generator = np.random.default_rng([seed, 0])
    return np.cumsum(generator.exponential(1 / rate, count))


def sharegpt_like(
    count: int, seed: int = 0, rate: float = math.inf, *, scale: float = 1.0
) -> tuple[RequestSpec, ...]:
    """Return requests with log-normal lengths of about 200 tokens each, between 4 and 1024.

    Args:
        scale: what lengths and their bounds are multiplied by, for models that hold fewer tokens.

    Raises:
        ConfigError: a count, rate or scale that cannot be.
    """
    if not _is_number(scale) or not 0 < scale < math.inf:
        raise ConfigError(f"scale must be a finite number above 0, got {scale!r}.")
    times = arrivals(count, seed, rate)
    generator = np.random.default_rng([seed, 1])
    prompts, outputs = (
        np.clip(generator.lognormal(mean, deviation, count), _SHORTEST, _LONGEST) * scale
        for mean, deviation in (_PROMPT, _OUTPUT)
    )
    return tuple(
        RequestSpec(float(time), max(1, round(prompt)), max(1, round(output)))
        for time, prompt, output in zip(times, prompts, outputs, strict=True)
    )


def equal_requests(
    count: int, prompt_len: int, output_len: int, seed: int = 0, rate: float = math.inf
) -> tuple[RequestSpec, ...]:
    """Return requests of one length each.

    Raises:
        ConfigError: a count or rate that cannot be.
        InputError: a length below one.
    """
    times = arrivals(count, seed, rate)
    return tuple(RequestSpec(float(time), prompt_len, output_len) for time in times)


def prompt_tokens(spec: RequestSpec, index: int, vocab_size: int, seed: int = 0) -> list[int]:
    """Return the prompt of the trace's request at `index`: ids from 0 to below `vocab_size`."""
    generator = np.random.default_rng([seed, 2, index])
    tokens: list[int] = generator.integers(0, vocab_size, spec.prompt_len).tolist()
    return tokens


def save_jsonl(path: Path, trace: Sequence[RequestSpec]) -> None:
    """Write a trace, one request a line, the whole of it or nothing.

    Raises:
        TraceError: it cannot be written.
    """
    write_whole(path, "".join(json.dumps(asdict(spec)) + "\n" for spec in trace))


def load_jsonl(path: Path) -> tuple[RequestSpec, ...]:
    """Read a trace: a JSON object with `arrival_s`, `prompt_len` and `output_len` on each line.

    Other fields and blank lines are ignored.

    Raises:
        ConfigError: no such file, a line that is no request, or one that arrives too late.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"Cannot read {path}: it is not text in UTF-8.") from error
    trace: list[RequestSpec] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        spec = _spec_of(line, f"Line {number} of {path}")
        if trace and spec.arrival_s < trace[-1].arrival_s:
            raise ConfigError(
                f"Line {number} of {path} has arrival_s {spec.arrival_s:g}, before the "
                f"{trace[-1].arrival_s:g} above it; sort the lines by arrival_s."
            )
        trace.append(spec)
    return tuple(trace)


def _spec_of(line: str, where: str) -> RequestSpec:
    try:
        record: Any = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where} is not JSON ({error}).") from error
    if not isinstance(record, dict):
        raise ConfigError(f"{where} must be an object such as {{{_EXAMPLE}}}, got {line.strip()}.")
    missing = [name for name in _FIELDS if name not in record]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}.")
    try:
        return RequestSpec(*(record[name] for name in _FIELDS))
    except InputError as error:
        raise ConfigError(f"{where}: {error}") from error


_EXAMPLE = '"arrival_s": 0.0, "prompt_len": 128, "output_len": 64'
