"""Exercises of notebook 06: bytes of an FP8 cache, read, written, converted and viewed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mlalab.fp8 import FORMATS
from mlalab.teach import Case, Exercise, Judge, same_as
from mlalab_kernels.numerics import quantize

FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
_POISON = 0xFF


def decode(stored_S: Tensor) -> Tensor:
    """Return the value of each e4m3fn byte, fp32, of the shape of the bytes."""
    values = [FORMATS["e4m3fn"].decode(byte) for byte in range(256)]
    return torch.tensor(values)[stored_S.long()]


def store_row(out_C: Tensor, row_C: Tensor, scale: Tensor, dtype: torch.dtype) -> None:
    """Quantise `row_C` to the FP8 `dtype` and write its bytes into `out_C`.

    Args:
        out_C: `[C]` uint8, any stride; written.
        row_C: `[C]`, any float dtype and stride.
        scale: fp32, one element, the dequantisation scale.
    """
    out_C.copy_(quantize(row_C, scale, dtype).view(torch.uint8))


def to_fnuz(stored: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return e4m3fnuz bytes and their scale that mean what e4m3fn bytes and `scale` meant.

    Args:
        stored: uint8, any shape and strides; not written.
        scale: fp32, one element.
    """
    new = torch.where(stored == 0x80, 0x00, stored)
    return torch.where((stored & 0x7F) == 0x7F, 0x80, new), scale * 2


def typed(storage: Tensor, dtype: torch.dtype) -> Tensor:
    """Return uint8 `storage` seen in the FP8 `dtype`: the same memory, shape and strides."""
    return storage.view(dtype)


def _every_byte() -> Tensor:
    return torch.arange(256, dtype=torch.uint8)


def _row_case(
    label: str, values: Callable[[], Tensor], scale: float, dtype: torch.dtype, step: int = 1
) -> Callable[[], Case]:
    def make() -> Case:
        row_C = values()
        out = torch.full((len(row_C) * step,), _POISON, dtype=torch.uint8)
        return Case(label, (out[::step], row_C, torch.tensor(scale), dtype))

    return make


def _special() -> Tensor:
    inf = torch.inf
    return torch.tensor([inf, -inf, torch.nan, 0.0, -0.0, 1e6, -1e6, 300.0, 1e-9, -1e-9, 1.0])


def _ties() -> Tensor:
    """Values whose bytes tell a product with 1/7 from a division by 7."""
    return torch.tensor([0.0888671875, 0.1708984375, 0.1982421875, 0.341796875, 0.68359375])


_STORE_CASES = [
    _row_case("an empty row", lambda: torch.zeros(0), 1.0, FN),
    _row_case("1 value", lambda: torch.ones(1), 1.0, FN),
    _row_case("577 values in bf16", lambda: torch.randn(577).bfloat16(), 0.37, FN),
    _row_case("scale 1.7, a strided row", lambda: torch.randn(130)[::2], 1.7, FN),
    _row_case("bytes that lie 3 apart", lambda: torch.randn(41), 0.37, FN, step=3),
    _row_case("NaN, infinities and huge values in e4m3fn", _special, 1.0, FN),
    _row_case("NaN, infinities and huge values in e4m3fnuz", _special, 0.37, FNUZ),
    _row_case("scale 7, values near the middle of two bytes", _ties, 7.0, FN),
]
_DECODE_CASES = [
    lambda: Case("0 bytes", (_every_byte()[:0],)),
    lambda: Case("the byte 0x80", (_every_byte()[0x80:0x81],)),
    lambda: Case("the subnormals 0x00 to 0x08", (_every_byte()[:9],)),
    lambda: Case("every third byte", (_every_byte()[::3],)),
    lambda: Case("all 256 bytes", (_every_byte(),)),
]
_CONVERT_CASES = [
    lambda: Case("0 bytes", (_every_byte()[:0], torch.tensor(0.37))),
    lambda: Case("the byte 0x38", (_every_byte()[0x38:0x39], torch.tensor(1.0))),
    lambda: Case("all 256 bytes", (_every_byte(), torch.tensor(0.37))),
    lambda: Case("a strided block", (_every_byte().view(4, 64)[1::2, ::3], torch.tensor(1.7))),
]
_VIEW_CASES = [
    lambda: Case("a block of no rows", (_every_byte()[:0].view(0, 8), FN)),
    lambda: Case("every byte as e4m3fn", (_every_byte().view(2, 8, 16), FN)),
    lambda: Case("every byte as e4m3fnuz", (_every_byte().view(2, 8, 16), FNUZ)),
    lambda: Case("every other block", (_every_byte().view(4, 8, 8)[1::2], FN)),
]


def _judge_view(attempt: Any) -> str | None:
    """Same values, and the same memory: what is written through the view is in the storage."""
    complaint = same_as(typed, _VIEW_CASES)(attempt)
    if complaint:
        return complaint
    for make in _VIEW_CASES:
        case = make()
        storage, dtype = case.args
        seen = attempt(storage, dtype)
        if seen.numel() and seen.data_ptr() != storage.data_ptr():
            return f"With {case.label}: the values are right, and they are a copy of the bytes."
        if seen.stride() != storage.stride():
            return f"With {case.label}: the strides differ from those of the bytes."
    return None


def _bytes_kept(judge: Judge) -> Judge:
    """Refuse an attempt that returns its argument's memory: the bytes may be in use."""

    def both(attempt: Any) -> str | None:
        complaint = judge(attempt)
        if complaint:
            return complaint
        stored = torch.tensor([0x38], dtype=torch.uint8)
        if attempt(stored, torch.tensor(1.0))[0].data_ptr() == stored.data_ptr():
            return "With the byte 0x38: the result is the argument itself; return new bytes."
        return None

    return both


EXERCISES = {
    "06.decode": Exercise(
        same_as(decode, _DECODE_CASES), "Field 0 drops the leading one and keeps the exponent of 1."
    ),
    "06.store": Exercise(
        same_as(store_row, _STORE_CASES), "Bit for bit what the cache write does."
    ),
    "06.to_fnuz": Exercise(
        _bytes_kept(same_as(to_fnuz, _CONVERT_CASES)),
        "Same bits, twice the scale, and three codes that change.",
    ),
    "06.view": Exercise(_judge_view, "No byte was moved."),
}
