"""What is measured, and what came of it: plain data that travels as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from mlalab.errors import ConfigError

FORMATS = ("fp8/fp8", "bf16/fp8", "bf16/bf16")
"""Query/cache; an FP8 query over a wider cache is nothing that attention reads."""
BYTES = {"fp8": 1, "bf16": 2}
_PER_TOKEN = 272
"""A row of the fp32 table of 64 columns, a position and a slot."""

DIFFERING_LIMIT = 1e-4
"""Share of absorbed values that a GPU's order of summation may round the other way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellSpec:
    """One size and format of the decode preparation.

    Args:
        heads, tokens: N and T; format: of query and cache, one of `FORMATS`.
        nope, rope, latent: P, R and L.
        seed: of the inputs.
    """

    heads: int
    tokens: int
    format: str = "fp8/fp8"
    nope: int = 128
    rope: int = 64
    latent: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ConfigError(f"A format is one of {', '.join(FORMATS)}, got {self.format!r}.")
        for name in ("heads", "tokens", "nope", "rope", "latent"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be a positive integer, got {value!r}.")

    @property
    def formats(self) -> tuple[str, str]:
        """The format of the query, and that of the cache."""
        query, cache = self.format.split("/")
        return query, cache

    @property
    def bytes_moved(self) -> int:
        """Bytes that any implementation must read or write once: the weight, inputs, outputs."""
        width = self.latent + self.rope
        query, cache = (BYTES[f] for f in self.formats)
        weight = self.heads * self.nope * self.latent * 2
        inputs = self.heads * (self.nope + self.rope) * 2 + width * 2 + _PER_TOKEN
        outputs = self.heads * width * query + width * cache
        return weight + self.tokens * (inputs + outputs)


@dataclass(frozen=True, slots=True)
class Spread:
    """Microseconds per layer: the median of the samples, and the quartiles around it."""

    median: float
    low: float
    high: float
    samples: int


@dataclass(frozen=True, slots=True)
class Parity:
    """How one launch or two differ from the staged reference, over all layers of a cell.

    Args:
        rotated, cache: values that differ in the query's rotated part, and in the whole cache.
        absorbed: values of the absorbed part that differ, of `absorbed_of`.
        steps: how many representable values apart the worst of these are.
    """

    rotated: int
    cache: int
    absorbed: int
    absorbed_of: int
    steps: int

    @property
    def ok(self) -> bool:
        """Equal, but for a last rounding of the absorbed part here and there."""
        share_ok = self.absorbed <= DIFFERING_LIMIT * self.absorbed_of
        return self.rotated == self.cache == 0 and share_ok and self.steps <= 1

    @property
    def absorbed_percent(self) -> float:
        """Share of the absorbed values that differ."""
        return 100 * self.absorbed / max(self.absorbed_of, 1)

    def __str__(self) -> str:
        return (
            f"absorbed {self.absorbed_percent:.4f} % off by up to {self.steps} step(s), "
            f"rotated {self.rotated}, cache {self.cache} values off"
        )


@dataclass(frozen=True, slots=True)
class CellResult:
    """What a cell gave: without `times` when a check failed.

    Args:
        parity: contender → how it compares with the reference.
        times: contender → its time per layer.
        failures: contender → why it could not run; "cell" → what ended all of it.
    """

    spec: CellSpec
    layers: int
    parity: Mapping[str, Parity]
    times: Mapping[str, Spread] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Every check passed and every contender ran."""
        return not self.failures and all(p.ok for p in self.parity.values())

    @property
    def troubles(self) -> list[str]:
        """What is wrong and what could not run, each in a line."""
        wrong = {name: str(p) for name, p in self.parity.items() if not p.ok}
        told = {**wrong, **self.failures}
        return [why if name == "cell" else f"{name}: {why}" for name, why in told.items()]

    def to_json(self) -> dict[str, Any]:
        """Return the result as dictionaries of numbers and strings."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> CellResult:
        """Return the result that `to_json` gave."""
        return cls(
            CellSpec(**record["spec"]),
            record["layers"],
            {name: Parity(**p) for name, p in record["parity"].items()},
            {name: Spread(**s) for name, s in record["times"].items()},
            dict(record["failures"]),
        )


def grid(
    tokens: Iterable[int], heads: Iterable[int], formats: Iterable[str], **sizes: int
) -> list[CellSpec]:
    """Return a cell for every combination, format by format.

    Raises:
        ConfigError: an unknown format, or a size below 1.
    """
    return [
        CellSpec(heads=n, tokens=t, format=f, **sizes)
        for f, n, t in product(formats, heads, tokens)
    ]


def provenance(machine: Mapping[str, str]) -> str:
    """Return GPU, date and torch of a run, as one phrase to stand beside its numbers."""
    return f"{machine['device']}, {machine['date'][:10]}, torch {machine['torch']}"
