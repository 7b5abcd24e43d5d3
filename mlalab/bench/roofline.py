"""What the decode preparation must move and compute, and how long a machine needs for that.

Both follow from shapes. Bytes are `CellSpec.bytes_moved`, split up: everything once, the weight
included, as it comes from memory in a decode step. Flops are those of the product with W_UK, two
for each of its T·N·P·L multiply-adds, and of RoPE, six for each pair of the T·(N+1)·R rotated
numbers; scaling and rounding are not counted. Williams, Waterman and Patterson named the model
"roofline" (CACM 52(4), 2009): no kernel is faster than its bytes at the memory's rate, nor than its
flops at the processor's. A launch has a floor of its own, which is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlalab.bench.cells import BYTES, CellResult, CellSpec
from mlalab.bench.records import Record
from mlalab.bench.report import floor_us
from mlalab.errors import ConfigError

PEAK_FLOPS: Mapping[str, float] = {"NVIDIA H200": 989.4e12}
"""GPU → dense bf16 operations per second, by its maker's data sheet: more than any kernel gets."""


def bytes_by_part(spec: CellSpec) -> dict[str, int]:
    """Return what is read or written once, in bytes; together `spec.bytes_moved`."""
    width, tokens = spec.latent + spec.rope, spec.tokens
    query, cache = (BYTES[f] for f in spec.formats)
    parts = {
        "W_UK": spec.heads * spec.nope * spec.latent * 2,
        "query": tokens * spec.heads * (spec.nope + spec.rope) * 2,
        "latent and key": tokens * width * 2,
        "q_out": tokens * spec.heads * width * query,
        "cache rows": tokens * width * cache,
    }
    return parts | {"table and ids": spec.bytes_moved - sum(parts.values())}


def flops(spec: CellSpec) -> int:
    """Return the floating-point operations of the product and of RoPE."""
    product = 2 * spec.tokens * spec.heads * spec.nope * spec.latent
    return product + 3 * spec.rope * spec.tokens * (spec.heads + 1)


@dataclass(frozen=True, slots=True)
class Floor:
    """How long one cell takes at least, by each limit, in µs; and what was measured there.

    Args:
        memory: its bytes at the rate of a large copy, measured in the same run.
        compute: its flops at the data sheet's peak; None where the GPU's is not known.
        launch: the least that a launch of a Triton kernel costs, measured in the same run.
        one, two, copy: one launch, two, and a copy of as many bytes.
    """

    spec: CellSpec
    memory: float
    compute: float | None
    launch: float
    one: float
    two: float
    copy: float

    @property
    def limits(self) -> dict[str, float]:
        """Name → the floor that it sets."""
        known = {} if self.compute is None else {"compute": self.compute}
        return {"memory": self.memory, **known, "launch": self.launch}

    @property
    def binds(self) -> str:
        """The highest of the floors: what an ideal kernel would wait for."""
        return max(self.limits, key=lambda name: self.limits[name])

    @property
    def share(self) -> float:
        """The highest floor as a share of what one launch took; 1 is as fast as can be."""
        return self.limits[self.binds] / self.one

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return flops(self.spec) / self.spec.bytes_moved

    @property
    def reached(self) -> float:
        """Operations per second of one launch, in units of 10¹²."""
        return flops(self.spec) / self.one * 1e-6


def roof(record: Record) -> tuple[float, float]:
    """Return the bytes per second of a large copy, as measured, and the peak of `PEAK_FLOPS`.

    Raises:
        ConfigError: the GPU's peak is not known.
    """
    device = record.machine["device"]
    if device not in PEAK_FLOPS:
        raise ConfigError(
            f"The peak of {device!r} is not known; add it to PEAK_FLOPS of mlalab.bench.roofline."
        )
    return record.limits.copy_bytes_per_s, PEAK_FLOPS[device]


def floors(record: Record, heads: int, format: str) -> list[Floor]:
    """Return the floors of the cells of one N and format, by tokens.

    Raises:
        ConfigError: the record has no times for them.
    """
    timed = record.timed(heads, format)
    if not timed:
        raise ConfigError(
            f"The record {record.name!r} has no times for N = {heads}, {format}; it has cells for "
            f"N = {', '.join(map(str, record.heads)) or 'none'}."
        )
    return [_floor(record, result) for result in timed]


def _floor(record: Record, result: CellResult) -> Floor:
    peak = PEAK_FLOPS.get(record.machine["device"])
    one, two, copy = (result.times[name].median for name in ("one", "two", "copy"))
    return Floor(
        spec=result.spec,
        memory=floor_us(result, record.limits),
        compute=None if peak is None else flops(result.spec) / peak * 1e6,
        launch=record.limits.launch_us["triton"],
        one=one,
        two=two,
        copy=copy,
    )
