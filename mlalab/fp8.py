"""FP8 formats as rules: what each byte means, which values are next to it, what rounding costs.

A byte is a sign, an exponent field and a mantissa field. How wide the fields are, the bias, and the
few codes that are no number are all that tells one format from another, so a format is a table row
and the rest follows from it. Tensors are converted by `mlalab_kernels.numerics`, the code that the
cache itself uses; the rules here explain its bytes and are tested against torch's conversions.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mlalab.env import fp8_dtype
from mlalab.errors import ConfigError, InputError

Kind = Literal["normal", "subnormal", "zero", "negative zero", "infinity", "NaN"]
NEGATIVE_ZERO = 0x80
"""The byte that is −0 in a format that has it, and NaN in a format without."""


class Fields(NamedTuple):
    """A byte taken apart."""

    sign: int
    exponent: int
    mantissa: int


class Neighbours(NamedTuple):
    """Bytes of the next value below and above, None where there is none."""

    below: int | None
    above: int | None


@dataclass(frozen=True, slots=True)
class Format:
    """One way to read a byte as a number.

    Args:
        bias: what is subtracted from the exponent field.
        nan_codes, infinity_codes: bytes that are no finite number.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    nan_codes: frozenset[int]
    infinity_codes: frozenset[int] = field(default=frozenset())

    @property
    def dtype(self) -> torch.dtype:
        """Torch's name for it."""
        dtype: torch.dtype = getattr(torch, f"float8_{self.name}")
        return dtype

    @property
    def has_negative_zero(self) -> bool:
        """Whether −0 exists."""
        return NEGATIVE_ZERO not in self.nan_codes

    @property
    def last(self) -> int:
        """The byte of the largest finite value."""
        return min({*self.nan_codes, *self.infinity_codes}) - 1

    @property
    def largest(self) -> float:
        """The largest finite value: where a saturating conversion stops."""
        return self.decode(self.last)

    @property
    def smallest(self) -> float:
        """The smallest positive value."""
        return math.ldexp(1.0, 1 - self.bias - self.mantissa_bits)

    def fields(self, byte: int) -> Fields:
        """Take a byte apart.

        Raises:
            InputError: not in 0..255.
        """
        if not hasattr(byte, "__index__") or not 0 <= byte <= 0xFF:
            raise InputError(f"A byte is an integer in 0..255, got {byte!r}; pass one of those.")
        exponent = (byte >> self.mantissa_bits) & ((1 << self.exponent_bits) - 1)
        return Fields(byte >> 7, exponent, byte & ((1 << self.mantissa_bits) - 1))

    def kind(self, byte: int) -> Kind:
        """Say what sort of number a byte is."""
        sign, exponent, mantissa = self.fields(byte)
        if byte in self.nan_codes:
            return "NaN"
        if byte in self.infinity_codes:
            return "infinity"
        if exponent:
            return "normal"
        if mantissa:
            return "subnormal"
        return "negative zero" if sign else "zero"

    def decode(self, byte: int) -> float:
        """Return the value of a byte, from its fields alone."""
        sign, exponent, mantissa = self.fields(byte)
        signed = -1.0 if sign else 1.0
        kind = self.kind(byte)
        if kind == "NaN":
            return math.nan
        if kind == "infinity":
            return signed * math.inf
        fraction = mantissa / (1 << self.mantissa_bits)
        # The exponent field 0 drops the leading one and keeps the exponent of field 1.
        leading, power = (1, exponent) if exponent else (0, 1)
        return signed * math.ldexp(leading + fraction, power - self.bias)

    def encode(self, value: float, *, saturate: bool = True) -> int:
        """Round to the nearest byte, ties to even.

        Args:
            saturate: stop at the largest finite value, as the cache does. Otherwise a value beyond
                it becomes infinity, or NaN in a format without.
        """
        nan = max(code for code in self.nan_codes if code <= NEGATIVE_ZERO)
        if math.isnan(value):
            return nan
        code = self._nearest(abs(value))
        if self.kind(code) in ("NaN", "infinity"):
            code = code - 1 if saturate else min(self.infinity_codes, default=nan)
        is_signed = math.copysign(1.0, value) < 0 and (code or self.has_negative_zero)
        return code | NEGATIVE_ZERO if is_signed else code

    def _nearest(self, magnitude: float) -> int:
        """Return the code nearest to `magnitude`; one past the last number stands for overflow."""
        values = _magnitudes(self.name)
        above = min(bisect_left(values, magnitude), len(values) - 1)
        below = max(above - 1, 0)
        middle = (values[below] + values[above]) / 2
        if magnitude == middle:
            return below if below % 2 == 0 else above
        return below if magnitude < middle else above

    def neighbours(self, byte: int) -> Neighbours:
        """Return the bytes of the next values; −0 and 0 are one value, NaN has no neighbours."""
        value = self.decode(byte)
        if math.isnan(value):
            return Neighbours(None, None)
        values, codes = _ordered(self.name)
        at = bisect_left(values, value)
        below = codes[at - 1] if at else None
        return Neighbours(below, codes[at + 1] if at + 1 < len(codes) else None)

    def __str__(self) -> str:
        return self.name


_NAN_E5M2 = (*range(0x7D, 0x80), *range(0xFD, 0x100))
FORMATS: Mapping[str, Format] = {
    f.name: f
    for f in (
        Format("e4m3fn", 4, 3, 7, frozenset({0x7F, 0xFF})),
        Format("e4m3fnuz", 4, 3, 8, frozenset({0x80})),
        Format("e5m2", 5, 2, 15, frozenset(_NAN_E5M2), frozenset({0x7C, 0xFC})),
    )
}
"""The formats: two that a cache may be in, and e5m2 to compare them with."""


@functools.cache
def _magnitudes(name: str) -> list[float]:
    """Values of the codes from 0 to the largest number, and what the next one would be."""
    fmt = FORMATS[name]
    values = [fmt.decode(code) for code in range(fmt.last + 1)]
    return [*values, 2 * values[-1] - values[-2]]


@functools.cache
def _ordered(name: str) -> tuple[list[float], list[int]]:
    """Every value once, in order (−0 left out), and the byte of each."""
    fmt = FORMATS[name]
    pairs = sorted(
        (fmt.decode(byte), byte)
        for byte in range(256)
        if fmt.kind(byte) not in ("NaN", "negative zero")
    )
    return [value for value, _ in pairs], [byte for _, byte in pairs]


def format_named(name: str) -> Format:
    """Return the format called `name`.

    Raises:
        ConfigError: none is called so.
    """
    if name not in FORMATS:
        raise ConfigError(f"No FP8 format is called {name!r}; known: {', '.join(FORMATS)}.")
    return FORMATS[name]


def format_of(stored: Tensor) -> Format:
    """Return the format of an FP8 tensor, or, for raw bytes, that of their device.

    Raises:
        InputError: a tensor of neither.
    """
    dtype = fp8_dtype(stored.device) if stored.dtype == torch.uint8 else stored.dtype
    for fmt in FORMATS.values():
        if fmt.dtype == dtype:
            return fmt
    raise InputError(f"FP8 comes as uint8 or as an FP8 dtype, got {dtype}; pass `cache.storage`.")
