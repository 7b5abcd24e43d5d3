"""What a sweep is asked, and what it answers: plain data that travels as JSON."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlalab.bench.cells import CellSpec, Spread
from mlalab.errors import ConfigError

FORMAT = "mlalab-sweep-1"
FUSED = "MLAAiterQkRopeKVCacheFusionPass"
"""The pass that makes the decode preparation one launch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSpec:
    """One setting of a server and a model, and the record that its times are read from.

    Args:
        max_num_seqs, num_speculative_tokens, max_num_batched_tokens: as in `CompileConfig`.
        heads: N, query heads on one rank; format: of query and cache, as the benchmark names them.
        record: a name of `mlalab.bench.records`, a file, or "here" for what was measured here.

    Raises:
        ConfigError: an unknown format, or no heads.
    """

    max_num_seqs: int = 256
    num_speculative_tokens: int = 0
    max_num_batched_tokens: int = 8192
    heads: int = 16
    format: str = "fp8/fp8"
    record: str = "h200"

    def __post_init__(self) -> None:
        self.cell(1)

    def cell(self, tokens: int) -> CellSpec:
        """Return the benchmark's cell for so many tokens of this model."""
        return CellSpec(heads=self.heads, tokens=tokens, format=self.format)


@dataclass(frozen=True, slots=True)
class ServedRange:
    """Token counts `start..end` of one kind of batch, and the graph that serves them.

    Args:
        batch: "uniform decode" or "any other".
        graph: the printed key of the graph that the compiled model picks.
        passes: pass → "applied", or why not; the fusions of MLA layers that were asked for.
    """

    batch: str
    start: int
    end: int
    graph: str
    passes: Mapping[str, str]

    @property
    def one_launch(self) -> bool:
        """Whether the decode preparation is one launch here."""
        return self.passes.get(FUSED) == "applied"


@dataclass(frozen=True, slots=True)
class Point:
    """Measured times at one token count, in µs per layer."""

    tokens: int
    two: Spread
    one: Spread

    @property
    def ratio(self) -> float:
        """Time of one launch as a share of that of two."""
        return self.one.median / self.two.median


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult:
    """The answer to one spec; no other spec is needed to read it.

    Args:
        decode_bound: the most tokens of a uniform decode batch.
        threshold: the most tokens that are fused: that bound, unless one launch stops paying
            before; 0 where it never pays.
        ranges: every compile range, for both kinds of batch.
        decode_sizes, mixed_sizes: token counts that CUDA graphs are captured for, by class.
        bytes_right, bytes_wrong: of `q_prepped` on one rank, with the fusion up to `threshold`,
            and with it up to `max_num_batched_tokens`.
        machine: what the times were measured with, and when.
        points: the times, by tokens; empty where the record has none for this model.
        failures: tokens that have no times because a check or a kernel failed → why.
        crossover: the first token count at which one launch is no faster; None: it always is.
        config: the settings as source to copy.
    """

    spec: SweepSpec
    decode_bound: int
    threshold: int
    ranges: tuple[ServedRange, ...]
    decode_sizes: tuple[int, ...]
    mixed_sizes: tuple[int, ...]
    bytes_right: int
    bytes_wrong: int
    machine: Mapping[str, str]
    points: tuple[Point, ...]
    crossover: int | None
    config: str
    failures: Mapping[int, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the result as dictionaries of numbers and strings."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> SweepResult:
        """Return the result that `to_json` gave, also after a journey through a file.

        Raises:
            ConfigError: it is in another format.
        """
        if record.get("format") != FORMAT:
            raise ConfigError(
                f"This is no sweep: its format is {record.get('format')!r}, and this mlalab reads "
                f"{FORMAT!r}."
            )
        fields = {name: value for name, value in record.items() if name != "format"}
        points = [
            Point(p["tokens"], Spread(**p["two"]), Spread(**p["one"])) for p in record["points"]
        ]
        return cls(
            **{
                **fields,
                "spec": SweepSpec(**record["spec"]),
                "ranges": tuple(ServedRange(**row) for row in record["ranges"]),
                "decode_sizes": tuple(record["decode_sizes"]),
                "mixed_sizes": tuple(record["mixed_sizes"]),
                "points": tuple(points),
                # JSON has no other keys than strings.
                "failures": {int(t): why for t, why in record.get("failures", {}).items()},
            }
        )


def times_at(points: tuple[Point, ...], tokens: float) -> tuple[float, float] | None:
    """Return (two launches, one launch) in µs at `tokens`, or None outside what was measured.

    Between two measured sizes the medians are joined by a straight line.
    """
    for low, high in zip(points, points[1:] or points, strict=False):
        if low.tokens <= tokens <= high.tokens:
            share = (tokens - low.tokens) / max(high.tokens - low.tokens, 1)
            between = functools.partial(_between, share)
            return (
                between(low.two.median, high.two.median),
                between(low.one.median, high.one.median),
            )
    return None


def _between(share: float, low: float, high: float) -> float:
    return low + share * (high - low)
