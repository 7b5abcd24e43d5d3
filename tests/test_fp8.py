"""The rules of the FP8 formats against torch's own conversions, for every byte of each."""

from __future__ import annotations

import math
import struct
from itertools import pairwise

import pytest
import torch

from mlalab.errors import ConfigError, InputError
from mlalab.fp8 import FORMATS, Format, format_named, format_of
from mlalab_kernels.numerics import FP8_DTYPES, quantize

ONE = torch.ones(())
CACHE_FORMATS = [fmt for fmt in FORMATS.values() if fmt.dtype in FP8_DTYPES]


def bits(value: float) -> bytes:
    """Tell NaN from numbers and −0 from 0."""
    return b"nan" if math.isnan(value) else struct.pack("d", value)


def differing(fmt: Format, dtype: torch.dtype) -> list[int]:
    values = torch.arange(256, dtype=torch.uint8).view(dtype).double().tolist()
    return [byte for byte in range(256) if bits(fmt.decode(byte)) != bits(values[byte])]


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=str)
class TestEveryFormat:
    def test_every_byte_is_read_as_torch_reads_it(self, fmt):
        assert differing(fmt, fmt.dtype) == []

    def test_extremes_are_torchs(self, fmt):
        info = torch.finfo(fmt.dtype)
        least = info.smallest_normal / 2**fmt.mantissa_bits
        assert (fmt.largest, fmt.smallest) == (info.max, least)
        assert fmt.decode(fmt.last) == info.max

    def test_fields_put_together_are_the_byte(self, fmt):
        for byte in range(256):
            sign, exponent, mantissa = fmt.fields(byte)
            exponent_at = exponent << fmt.mantissa_bits
            assert sign << 7 | exponent_at | mantissa == byte
            assert mantissa < 2**fmt.mantissa_bits
            assert exponent < 2**fmt.exponent_bits

    def test_neighbours_walk_through_all_values_once(self, fmt):
        lowest = 0xFC if fmt.infinity_codes else fmt.last | 0x80
        walked = [byte := lowest]
        while (byte := fmt.neighbours(byte).above) is not None:
            walked.append(byte)
        values = [fmt.decode(byte) for byte in walked]
        assert values == sorted(set(values))
        assert len(walked) == 256 - len(fmt.nan_codes) - fmt.has_negative_zero
        for below, above in pairwise(walked):
            assert fmt.neighbours(above).below == below

    def test_kinds(self, fmt):
        kinds = [fmt.kind(byte) for byte in range(256)]
        assert kinds.count("NaN") == len(fmt.nan_codes)
        assert kinds.count("infinity") == len(fmt.infinity_codes)
        assert kinds.count("zero") == 1
        assert kinds[0x80] == ("negative zero" if fmt.has_negative_zero else "NaN")
        assert kinds.count("subnormal") == 2 * (2**fmt.mantissa_bits - 1)

    @pytest.mark.parametrize("byte", [-1, 256])
    def test_no_byte(self, fmt, byte):
        with pytest.raises(InputError, match=r"0\.\.255"):
            fmt.decode(byte)


@pytest.mark.parametrize("fmt", CACHE_FORMATS, ids=str)
def test_encode_saturates_as_the_cache_does(fmt):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    stored = quantize(every, ONE, fmt.dtype).view(torch.uint8)
    kept = ~every.isnan()  # the sign of a NaN means nothing
    values, codes = every[kept].tolist(), stored[kept].tolist()
    wrong = [v for v, code in zip(values, codes, strict=True) if fmt.encode(v) != code]
    assert wrong == []
    assert fmt.encode(math.nan) == quantize(torch.tensor(math.nan), ONE, fmt.dtype).view(
        torch.uint8
    )


def test_encode_without_saturation_is_a_plain_cast():
    every = torch.arange(-(2**15), 2**15, 7, dtype=torch.int16).view(torch.bfloat16)
    values = every[~every.isnan()]
    for fmt in (FORMATS["e4m3fnuz"], FORMATS["e5m2"]):
        cast = values.to(fmt.dtype).view(torch.uint8).tolist()
        assert [fmt.encode(v, saturate=False) for v in values.tolist()] == cast


@pytest.mark.parametrize(
    ("name", "value", "stored"),
    [
        ("e4m3fn", 464.0, 0x7E),  # half a step too large: rounds back to even
        ("e4m3fn", 464.1, 0x7F),
        ("e4m3fnuz", 247.9, 0x7F),
        ("e4m3fnuz", 248.0, 0x80),
        ("e4m3fnuz", -1e9, 0x80),
        ("e5m2", -math.inf, 0xFC),
        ("e4m3fn", -1e-9, 0x80),
        ("e4m3fnuz", -1e-9, 0x00),
    ],
)
def test_edges_without_saturation(name, value, stored):
    assert FORMATS[name].encode(value, saturate=False) == stored


def test_a_wrong_table_is_noticed():
    right = FORMATS["e4m3fn"]
    wrong_bias = Format("e4m3fn", 4, 3, 8, right.nan_codes)
    wrong_nan = Format("e4m3fn", 4, 3, 7, frozenset({0x80}))
    wrong_split = Format("e4m3fn", 5, 2, 7, right.nan_codes)
    for wrong in (wrong_bias, wrong_nan, wrong_split):
        assert differing(wrong, right.dtype)


def test_one_byte_two_formats():
    fn, fnuz = FORMATS["e4m3fn"], FORMATS["e4m3fnuz"]
    numbers = [b for b in range(256) if not (math.isnan(fn.decode(b)) or b == 0x80)]
    assert all(fn.decode(b) == 2 * fnuz.decode(b) for b in numbers)
    assert (fn.kind(0x80), fnuz.kind(0x80)) == ("negative zero", "NaN")
    assert (fn.kind(0x7F), fnuz.decode(0x7F)) == ("NaN", 240.0)


def test_formats_of_tensors():
    for fmt in FORMATS.values():
        assert format_of(torch.zeros(2, dtype=torch.uint8).view(fmt.dtype)) is fmt
    assert format_of(torch.zeros(0, dtype=torch.uint8)).name == "e4m3fn"
    with pytest.raises(InputError, match="got torch"):
        format_of(torch.zeros(2))


def test_names():
    assert format_named("e5m2").has_negative_zero
    with pytest.raises(ConfigError, match="'e3m4'; known: e4m3fn, e4m3fnuz, e5m2"):
        format_named("e3m4")
