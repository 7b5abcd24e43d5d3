"""Floors from shapes: against counts by hand, and never above what was measured."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from mlalab.bench.cells import FORMATS, CellSpec
from mlalab.bench.records import Record, load
from mlalab.bench.roofline import bytes_by_part, floors, flops, roof
from mlalab.errors import ConfigError
from mlalab_kernels.numerics import absorb
from tests.bench.stand_ins import LIMITS, TINY, result_of

MACHINE = {"device": "NVIDIA H200", "date": "2026-01-02T03:04:05+00:00", "torch": "2.13.0"}


@given(
    st.integers(1, 200),
    st.integers(1, 600),
    st.sampled_from(FORMATS),
    st.sampled_from([{}, {"nope": 8, "rope": 4, "latent": 16}]),
)
def test_parts_are_the_whole(heads, tokens, format, sizes):
    spec = CellSpec(heads=heads, tokens=tokens, format=format, **sizes)
    parts = bytes_by_part(spec)
    assert sum(parts.values()) == spec.bytes_moved
    assert parts["table and ids"] == tokens * 272
    assert min(parts.values()) > 0


def test_bytes_of_one_token_by_hand():
    parts = bytes_by_part(CellSpec(heads=16, tokens=1, format="bf16/fp8"))
    assert parts == {
        "W_UK": 16 * 128 * 512 * 2,
        "query": 16 * 192 * 2,
        "latent and key": 576 * 2,
        "q_out": 16 * 576 * 2,
        "cache rows": 576,
        "table and ids": 64 * 4 + 8 + 8,
    }


@pytest.mark.parametrize("tokens", [1, 3, 8])
def test_flops_are_those_that_torch_counts_and_those_of_rope(tokens):
    spec = CellSpec(tokens=tokens, **TINY)
    q_TNP = torch.ones(tokens, spec.heads, spec.nope)
    w_NPL = torch.ones(spec.heads, spec.nope, spec.latent)
    with FlopCounterMode(display=False) as counter:
        absorb(q_TNP, w_NPL)
    # x·cos − y·sin and x·sin + y·cos for every pair of every head and of the key.
    rope = 6 * tokens * (spec.heads + 1) * spec.rope // 2
    assert flops(spec) == counter.get_total_flops() + rope


def record(*results, device="NVIDIA H200"):
    return Record("played", MACHINE | {"device": device}, LIMITS, results)


def test_the_highest_floor_binds():
    small = floors(record(result_of(1)), 16, "fp8/fp8")[0]
    # 2.1 MB at 4 TB/s are half a microsecond; a launch of Triton's takes two.
    assert (small.binds, small.share) == ("launch", 2.0 / 3.0)
    assert small.memory == pytest.approx(small.spec.bytes_moved / 4e6)
    large = dataclasses.replace(small, memory=2.5)
    assert (large.binds, large.share) == ("memory", 2.5 / 3.0)
    busy = dataclasses.replace(small, compute=2.7)
    assert busy.binds == "compute"


def test_a_gpu_whose_peak_is_unknown_has_the_other_floors():
    unknown = record(result_of(1), device="Played GPU")
    assert list(floors(unknown, 16, "fp8/fp8")[0].limits) == ["memory", "launch"]
    with pytest.raises(ConfigError, match="The peak of 'Played GPU' is not known"):
        roof(unknown)


@pytest.mark.parametrize(("heads", "format"), [(7, "fp8/fp8"), (16, "bf16/fp8")])
def test_without_times_there_are_no_floors(heads, format):
    with pytest.raises(ConfigError, match=f"no times for N = {heads}, {format}; it has .* 16"):
        floors(record(result_of(1)), heads, format)


def test_no_floor_of_the_record_lies_above_what_was_measured():
    found = load("h200")
    assert roof(found) == (found.limits.copy_bytes_per_s, 989.4e12)
    cells = [floor for n in found.heads for f in FORMATS for floor in floors(found, n, f)]
    assert len(cells) > 40
    assert all(0 < floor.share <= 1 for floor in cells)
    assert all(floor.compute < floor.memory for floor in cells)
