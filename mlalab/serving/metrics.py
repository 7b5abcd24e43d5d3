"""What a client of a server feels: waiting for the first token, then for each further one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True, slots=True)
class RequestTimes:
    """When a request arrived and when each of its tokens did, in seconds of one clock."""

    arrival_s: float
    token_s: tuple[float, ...]

    @property
    def ttft_s(self) -> float | None:
        """Time to first token: queueing and prefill; None without a token."""
        return self.token_s[0] - self.arrival_s if self.token_s else None

    @property
    def itl_s(self) -> tuple[float, ...]:
        """Inter-token latencies: one fewer than there are tokens."""
        return tuple(later - earlier for earlier, later in pairwise(self.token_s))

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None with fewer than two."""
        gaps = len(self.token_s) - 1
        return (self.token_s[-1] - self.token_s[0]) / gaps if gaps > 0 else None

    @property
    def end_s(self) -> float | None:
        """From arrival to the last token; None without a token."""
        return self.token_s[-1] - self.arrival_s if self.token_s else None


@dataclass(frozen=True, slots=True)
class Latency:
    """Samples of one latency, in seconds; the percentile interpolates between samples."""

    mean: float
    median: float
    p99: float


@dataclass(frozen=True, slots=True)
class Summary:
    """One run of a trace.

    Args:
        duration_s: from the start of the trace to its last token.
        ttft, tpot, end: over requests; itl: over all gaps between tokens. None without a sample.
    """

    requests: int
    output_tokens: int
    duration_s: float
    requests_per_s: float
    output_tokens_per_s: float
    ttft: Latency | None
    tpot: Latency | None
    itl: Latency | None
    end: Latency | None


def latency(samples: Sequence[float]) -> Latency | None:
    """Return mean, median and 99th percentile; None without a sample."""
    if not samples:
        return None
    median, p99 = np.percentile(samples, (50, 99))
    return Latency(float(np.mean(samples)), float(median), float(p99))


def summarise(times: Sequence[RequestTimes]) -> Summary:
    """Return the figures of a run whose clock started at 0."""
    tokens = sum(len(t.token_s) for t in times)
    duration = max((t.token_s[-1] for t in times if t.token_s), default=0.0)
    return Summary(
        requests=len(times),
        output_tokens=tokens,
        duration_s=duration,
        requests_per_s=len(times) / duration if duration else 0.0,
        output_tokens_per_s=tokens / duration if duration else 0.0,
        ttft=latency([t.ttft_s for t in times if t.ttft_s is not None]),
        tpot=latency([t.tpot_s for t in times if t.tpot_s is not None]),
        itl=latency([gap for t in times for gap in t.itl_s]),
        end=latency([t.end_s for t in times if t.end_s is not None]),
    )
