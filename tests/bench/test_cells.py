"""Specs and results: plain data, and the byte counts that floors are made of."""

import json

import pytest

from mlalab.bench.cells import FORMATS, CellResult, CellSpec, Parity, grid
from mlalab.bench.run import layers_past
from mlalab.errors import ConfigError
from tests.bench.stand_ins import result_of

# Megabytes per layer, worked out by hand for the sizes of DeepSeek-V2-Lite and V3.
MEGABYTES = {
    (16, 1): (2.115, 2.124, 2.124),
    (16, 8): (2.236, 2.310, 2.314),
    (16, 128): (4.319, 5.499, 5.573),
    (16, 512): (10.985, 15.704, 15.999),
    (128, 1): (16.902, 16.976, 16.976),
    (128, 32): (20.773, 23.133, 23.151),
    (128, 512): (80.716, 118.465, 118.759),
}


@pytest.mark.parametrize(("heads", "tokens"), MEGABYTES)
def test_bytes_moved(heads, tokens):
    for format_, wanted in zip(FORMATS, MEGABYTES[heads, tokens], strict=True):
        spec = CellSpec(heads=heads, tokens=tokens, format=format_)
        assert round(spec.bytes_moved / 1e6, 3) == wanted


@pytest.mark.parametrize("result", [result_of(), result_of(times=False, failures={"one": "no"})])
def test_a_result_survives_json(result):
    assert CellResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_a_grid_has_every_combination():
    specs = grid((1, 8), (16,), FORMATS, latent=64)
    assert len(specs) == len(set(specs)) == 6
    assert {s.latent for s in specs} == {64}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"format": "fp8/bf16"}, "one of fp8/fp8, bf16/fp8, bf16/bf16, got 'fp8/bf16'"),
        ({"tokens": 0}, "tokens must be a positive integer, got 0"),
        ({"heads": -1}, "heads must be a positive integer, got -1"),
    ],
)
def test_impossible_cells_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        CellSpec(**{"heads": 16, "tokens": 1, **given})


@pytest.mark.parametrize(
    ("parity", "ok"),
    [
        (Parity(0, 0, 0, 0, 0), True),
        (Parity(0, 0, 10, 100_000, 1), True),
        (Parity(0, 0, 11, 100_000, 1), False),
        (Parity(0, 0, 1, 100_000, 2), False),
        (Parity(1, 0, 0, 100_000, 0), False),
        (Parity(0, 1, 0, 100_000, 0), False),
    ],
)
def test_what_passes_as_equal(parity, ok):
    assert parity.ok is ok


def test_enough_layers_to_pass_the_cache_twice():
    small, large = CellSpec(heads=16, tokens=1), CellSpec(heads=128, tokens=512)
    assert (layers_past(100_000_000, small) - 1) * small.bytes_moved < 100_000_000
    assert layers_past(100_000_000, small) * small.bytes_moved >= 100_000_000
    assert layers_past(100_000_000, large) == 32
