"""The curve of relative errors: what it shows is what the formats do."""

from __future__ import annotations

import re

import pytest

from mlalab.errors import ConfigError, InputError
from mlalab.viz.fp8_curve import error_curve


def test_two_formats():
    figure = error_curve()
    assert figure.svg.startswith("<svg")
    assert "from 0.015625 to 448 in e4m3fn and from 0.0078125 to 240 in e4m3fnuz" in figure.alt
    head, fn, fnuz = figure.text.splitlines()
    assert (fn.split()[0], fnuz.split()[0]) == ("e4m3fn", "e4m3fnuz")
    saturated, lost = (head.split().index(name) + 1 for name in ("saturated", "lost"))
    # e4m3fnuz reaches half as far up, and half as far down to 0.
    assert int(fnuz.split()[saturated]) > int(fn.split()[saturated])
    assert int(fnuz.split()[lost]) < int(fn.split()[lost])


def test_the_flat_part_is_half_a_step():
    worst = float(re.search(r"at most ([\d.]+)%", error_curve().alt)[1])
    assert 5 < worst < 100 / 17 + 0.05


def test_a_scale_moves_the_range():
    assert "from 0.0625 to 1792 in e4m3fn;" in error_curve(["e4m3fn"], scale=4.0).alt


def test_refusals():
    with pytest.raises(ConfigError, match="e3m4"):
        error_curve(["e3m4"])
    with pytest.raises(InputError, match="No cache is in e5m2"):
        error_curve(["e5m2"])
    with pytest.raises(InputError, match=r"^No format is named; .* e4m3fn\.$"):
        error_curve(())


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_is_positive(scale):
    with pytest.raises(InputError, match=r"^A scale is a positive number, got .*\.$"):
        error_curve(["e4m3fn"], scale)
