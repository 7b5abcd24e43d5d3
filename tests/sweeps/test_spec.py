"""Specs and results: refused when wrong, the same after a journey through JSON."""

from __future__ import annotations

import json

import pytest

from mlalab.bench.records import load
from mlalab.errors import ConfigError
from mlalab.sweeps.engine import points_of, run
from mlalab.sweeps.spec import ServedRange, SweepResult, SweepSpec, times_at
from tests.sweeps.played import FASTER, SLOWER_LATE, record


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 0}, "heads must be a positive integer"),
        ({"heads": "8"}, "heads must be a positive integer, got '8'"),
        ({"format": "fp4"}, "A format is one of"),
    ],
)
def test_a_spec_that_cannot_be_used_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        SweepSpec(**changes)


@pytest.mark.parametrize("source", [FASTER, SLOWER_LATE, record(), load("h200")])
def test_results_survive_a_file(source):
    result = run(SweepSpec(max_num_seqs=5, num_speculative_tokens=2), source)
    assert SweepResult.from_json(json.loads(json.dumps(result.to_json()))) == result


@pytest.mark.parametrize("format", [None, "mlalab-bench-1"])
def test_another_document_is_refused(format):
    with pytest.raises(ConfigError, match=f"its format is {format!r}"):
        SweepResult.from_json({"format": format})


def test_times_between_measured_sizes_are_on_a_line_and_there_are_none_outside():
    points = points_of(FASTER, 16, "fp8/fp8")
    assert [points[i].ratio for i in (0, 2)] == [0.5, 8 / 9]
    assert times_at(points, 1) == (4.0, 2.0)
    assert times_at(points, 36) == (7.0, 5.5)
    assert times_at(points, 64) == (9.0, 8.0)
    assert times_at(points, 0) is times_at(points, 65) is times_at((), 1) is None
    assert times_at(points[:1], 1) == (4.0, 2.0)
    assert times_at(points[:1], 2) is None


def test_one_launch_takes_the_last_of_the_passes():
    statuses = {"MLADecodeQPrepLiftPass": "applied"}
    assert not ServedRange("any other", 1, 2, "general 1..2", statuses).one_launch
    statuses |= {"MLAAiterQkRopeKVCacheFusionPass": "applied"}
    assert ServedRange("any other", 1, 2, "general 1..2", statuses).one_launch
