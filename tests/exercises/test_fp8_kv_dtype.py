"""Notebook 06: right answers pass, and each plausible mistake is refused with a reason."""

from __future__ import annotations

import pytest
import torch

from mlalab.exercises.fp8_kv_dtype import EXERCISES, FN, FNUZ, decode, store_row, to_fnuz, typed
from mlalab.teach import check


def decode_by_rule(stored):
    byte = stored.int()
    sign, exponent, mantissa = byte >> 7, (byte >> 3) & 15, byte & 7
    size = torch.where(
        exponent > 0, (1 + mantissa / 8) * 2.0 ** (exponent - 7), mantissa / 8 * 2.0**-6
    )
    value = torch.where(sign == 1, -size, size)
    return torch.where((byte & 0x7F) == 0x7F, torch.nan, value)


def store_by_hand(out, row, scale, dtype):
    largest = torch.finfo(dtype).max
    scaled = row.float() * (1 / scale)
    out.copy_(scaled.clamp(-largest, largest).to(dtype).view(torch.uint8))


def to_fnuz_by_hand(stored, scale):
    new = stored.clone()
    new[stored == 0x80] = 0
    new[(stored == 0x7F) | (stored == 0xFF)] = 0x80
    return new, scale * 2


@pytest.mark.parametrize(
    ("name", "attempt"),
    [
        ("06.decode", decode),
        ("06.decode", decode_by_rule),
        ("06.decode", lambda stored: stored.view(FN).float()),
        ("06.store", store_row),
        ("06.store", store_by_hand),
        ("06.to_fnuz", to_fnuz),
        ("06.to_fnuz", to_fnuz_by_hand),
        ("06.view", typed),
    ],
)
def test_solutions_pass(name, attempt):
    verdict = check(name, attempt)
    assert verdict, verdict
    assert repr(verdict).startswith(f"{name}: right.")


def without_subnormals(stored):
    byte = stored.int()
    size = (1 + (byte & 7) / 8) * 2.0 ** (((byte >> 3) & 15) - 7)
    return torch.where(byte > 127, -size, size)


def without_nan(stored):
    return decode_by_rule(stored).nan_to_num(480.0)


def in_uint8(stored):
    return decode_by_rule(torch.where(stored > 127, stored - 128, stored))


def divides(out, row, scale, dtype):
    largest = torch.finfo(dtype).max
    out.copy_((row.float() / scale).clamp(-largest, largest).to(dtype).view(torch.uint8))


def multiplies(out, row, scale, dtype):
    store_row(out, row, 1 / scale, dtype)


def does_not_clamp(out, row, scale, dtype):
    out.copy_((row.float() * (1 / scale)).to(dtype).view(torch.uint8))


def loses_nan(out, row, scale, dtype):
    store_row(out, row.nan_to_num(), scale, dtype)


def one_type(out, row, scale, dtype):
    store_row(out, row, scale, FN)


def writes_elsewhere(out, row, scale, dtype):
    out = torch.empty_like(out)
    store_row(out, row, scale, dtype)


def scales_in_bf16(out, row, scale, dtype):
    store_row(out, row * (1 / scale).to(row.dtype), torch.ones(()), dtype)


def keeps_0x80(stored, scale):
    return torch.where((stored & 0x7F) == 0x7F, 0x80, stored), scale * 2


def keeps_nan(stored, scale):
    return torch.where(stored == 0x80, 0, stored), scale * 2


def halves(stored, scale):
    return to_fnuz(stored, scale)[0], scale / 2


def through_values(stored, scale):
    """Right values, but those above 240 saturate."""
    values = stored.view(FN).float().clamp(-240, 240)
    return values.to(FNUZ).view(torch.uint8), scale


def in_place(stored, scale):
    new, scale = to_fnuz(stored, scale)
    return stored.copy_(new), scale


def maybe_itself(stored, scale):
    changes = (stored == 0x80) | ((stored & 0x7F) == 0x7F)
    return (to_fnuz(stored, scale)[0] if changes.any() else stored), scale * 2


@pytest.mark.parametrize(
    ("name", "attempt", "words"),
    [
        ("06.decode", without_subnormals, "differs"),
        ("06.decode", without_nan, "differs in 1 of"),
        ("06.decode", in_uint8, "differs"),
        ("06.decode", lambda stored: stored.float(), "With the byte 0x80"),
        ("06.store", divides, "scale 7"),
        ("06.store", multiplies, "577 values"),
        ("06.store", does_not_clamp, "e4m3fnuz"),
        ("06.store", loses_nan, "NaN, infinities"),
        ("06.store", one_type, "e4m3fnuz"),
        ("06.store", writes_elsewhere, "the argument out_C, afterwards,"),
        ("06.store", scales_in_bf16, "577 values in bf16"),
        ("06.to_fnuz", keeps_0x80, "all 256 bytes"),
        ("06.to_fnuz", keeps_nan, "all 256 bytes"),
        ("06.to_fnuz", halves, "differs"),
        ("06.to_fnuz", through_values, "differs"),
        ("06.to_fnuz", in_place, "the argument stored, afterwards,"),
        ("06.to_fnuz", maybe_itself, "the argument itself"),
        ("06.view", lambda storage, dtype: storage.to(dtype), "differs"),
        ("06.view", lambda storage, dtype: storage.clone().view(dtype), "a copy of the bytes"),
        ("06.view", lambda storage, dtype: storage.contiguous().view(dtype), "a copy"),
        ("06.view", lambda storage, dtype: storage.view(FN), "e4m3fnuz"),
        ("06.view", lambda storage, dtype: storage, "float8_e4m3fn tensor"),
    ],
)
def test_mistakes_are_refused(name, attempt, words):
    verdict = check(name, attempt)
    assert not verdict
    assert words in repr(verdict)
    assert "\n" not in repr(verdict)


@pytest.mark.parametrize("name", EXERCISES)
def test_blanks_are_refused_in_one_sentence(name):
    for blank in (..., lambda *arguments: ..., lambda *arguments: None):
        text = repr(check(name, blank))
        assert text.startswith(f"{name}: not yet. ")
        assert "\n" not in text
