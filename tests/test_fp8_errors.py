"""Errors of quantised tensors, and bytes read in the wrong format."""

from __future__ import annotations

import pytest
import torch

from mlalab.errors import InputError
from mlalab.fp8 import FORMATS
from mlalab.fp8_errors import error_table, errors, read, relative_errors, reread_table, store

FN, FNUZ = FORMATS["e4m3fn"], FORMATS["e4m3fnuz"]


@pytest.mark.parametrize("fmt", [FN, FNUZ], ids=str)
@pytest.mark.parametrize("scale", [0.37, 1.0, 1.7])
def test_normal_values_are_off_by_half_a_step_at_most(fmt, scale):
    source = torch.randn(4097).bfloat16()
    found = errors(store(source, scale, fmt), source, scale, fmt)
    assert found.count == 4097
    assert found.normal > 3500
    assert 0.05 < found.worst <= 2**-4 + 1e-6
    assert 0.01 < found.mean < 0.03


def test_each_kind_of_loss_is_counted():
    source = torch.tensor([1.0, 448.0, 449.0, 500.0, -1e6, 1e-4, -0.0, 0.0, torch.nan, 0.01])
    found = errors(store(source, 1.0, FN), source, 1.0, FN)
    # 1, 448, both zeros and NaN come back as they were; 0.01 is subnormal
    assert (found.exact, found.normal) == (5, 2)
    assert (found.saturated, found.lost, found.nan) == (3, 1, 1)
    assert found.worst == 0.0


def test_a_wrong_scale_shows():
    source = torch.randn(100).bfloat16()
    stored = store(source, 0.37, FN)
    assert errors(stored, source, 0.37, FN).worst < 0.07
    assert errors(stored, source, 1.0, FN).mean > 1.0


@pytest.mark.parametrize("count", [0, 1])
def test_small_tensors(count):
    source = torch.ones(count)
    found = errors(store(source, 1.0, FN), source)
    assert (found.count, found.exact, found.worst) == (count, count, 0.0)


def test_shapes_must_agree():
    with pytest.raises(InputError, match=r"\[3\] and their source is \[2\]"):
        relative_errors(torch.zeros(3, dtype=torch.uint8), torch.zeros(2))


def test_no_cache_is_e5m2():
    with pytest.raises(InputError, match="No cache is in e5m2"):
        store(torch.ones(1), 1.0, FORMATS["e5m2"])


def test_an_fp8_tensor_and_its_bytes_read_alike():
    stored = store(torch.randn(3, 5), 1.0, FNUZ)
    assert torch.equal(read(stored.view(FNUZ.dtype)), read(stored, FNUZ))
    assert not torch.equal(read(stored, FN), read(stored, FNUZ))


def test_error_table_has_a_line_each():
    source = torch.tensor([1.0, 1000.0])
    rows = {str(f): errors(store(source, 1.0, f), source, 1.0, f) for f in (FN, FNUZ)}
    head, fn, fnuz = error_table(rows).splitlines()
    assert head.split() == ["exact", "normal", "saturated", "lost", "nan", "worst", "mean"]
    assert fn.split() == ["e4m3fn", "1", "1", "1", "0", "0", "0.00%", "0.00%"]
    assert len({len(line) for line in (head, fn, fnuz)}) == 1


def test_every_byte_read_in_the_other_format():
    every = torch.arange(256, dtype=torch.uint8)
    lines = [line.rsplit(maxsplit=1) for line in reread_table(every, FN, FNUZ).splitlines()]
    assert dict(lines) == {
        "NaN read as a number": "2",
        "a number read as NaN": "1",
        "as it was": "1",
        "× 0.5": "252",
    }
    assert "× 2" in reread_table(every, FNUZ, FN)
    assert reread_table(every, FN, FN).split() == ["as", "it", "was", "256"]
