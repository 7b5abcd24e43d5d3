"""Finished runs: what comes along is whole, and anything else is refused in a sentence."""

from __future__ import annotations

import dataclasses
import json

import pytest

from mlalab.bench import records
from mlalab.bench.cells import CellResult, CellSpec
from mlalab.bench.report import document
from mlalab.errors import ConfigError
from tests.bench.stand_ins import LIMITS, RIGHT, result_of

MACHINE = {"device": "Played GPU", "date": "2026-11-21T12:31:10+00:00", "torch": "2.13.0"}


def saved(tmp_path, *results, **changes):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(document(MACHINE, LIMITS, results) | changes))
    return str(path)


def test_every_record_that_comes_along_has_times_for_every_model():
    assert "h200" in records.names()
    for name in records.names():
        record = records.load(name)
        assert record.machine["device"] in record.provenance
        assert record.limits.copy_bytes_per_s > 1e12
        assert record.heads == (16, 64, 128)
        for heads in record.heads:
            tokens = [r.spec.tokens for r in record.timed(heads, "fp8/fp8")]
            assert tokens == sorted(tokens)
            assert len(tokens) > 5


def test_a_file_of_the_bench_is_a_record_too(tmp_path):
    results = [result_of(32), result_of(8)]
    record = records.load(saved(tmp_path, *results))
    assert record.results == tuple(results)
    assert record.limits == LIMITS
    assert record.provenance == "Played GPU, 2026-11-21, torch 2.13.0"
    assert [r.spec.tokens for r in record.timed(16, "fp8/fp8")] == [8, 32]
    assert record.timed(17, "fp8/fp8") == record.timed(16, "bf16/fp8") == []


def test_a_cell_that_failed_is_not_among_the_timed(tmp_path):
    wrong = result_of(8, parity=dataclasses.replace(result_of().parity["one"], cache=1))
    record = records.load(saved(tmp_path, wrong, result_of(32, times=False), result_of(64)))
    assert [r.spec.tokens for r in record.timed(16, "fp8/fp8")] == [64]


def test_a_cell_counts_whose_baseline_could_not_be_built(tmp_path):
    record = records.load(saved(tmp_path, result_of(8, failures={"inductor": "no compiler"})))
    assert record.failed(16, "fp8/fp8") == {}
    assert [r.spec.tokens for r in record.timed(16, "fp8/fp8")] == [8]


def test_a_newer_run_goes_over_an_older_one():
    old = records.Record("a", MACHINE, LIMITS, (result_of(1), result_of(8)))
    new = records.Record("b", MACHINE, LIMITS, (result_of(8, failures={"plain": "x"}),))
    assert new.over(None) == new
    both = new.over(old)
    assert both.name == "b"
    assert [(r.spec.tokens, bool(r.failures)) for r in both.results] == [(1, False), (8, True)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "mlalab-bench-0"}, "has format 'mlalab-bench-0'"),
        ({"limits": None}, "holds checks and no times"),
        ({"cells": [{}]}, "is not a benchmark that mlalab saved"),
        ({"machine": {"device": "Played GPU"}}, "is not a benchmark that mlalab saved .'date'"),
        (
            {"cells": [result_of().to_json() | {"parity": []}]},
            "is not a benchmark that mlalab saved",
        ),
    ],
)
def test_other_files_are_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        records.load(saved(tmp_path, result_of(), **changes))


def test_what_is_no_file_and_no_json_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"neither a record that comes along .*h200"):
        records.load("h2000")
    (tmp_path / "x.json").write_text("not json")
    with pytest.raises(ConfigError, match="is not a benchmark"):
        records.load(str(tmp_path / "x.json"))


def test_why_a_cell_has_no_times():
    wrong = dataclasses.replace(RIGHT, rotated=3)
    results = (
        result_of(64, parity=wrong, times=False, failures={"two": "RuntimeError: no kernel"}),
        result_of(8, times=False),
        result_of(1),
        CellResult(CellSpec(heads=16, tokens=2), 0, {}, failures={"cell": "OutOfMemoryError: x"}),
    )
    record = records.Record("b", MACHINE, LIMITS, results)
    assert list(record.failed(16, "fp8/fp8").items()) == [
        (2, "OutOfMemoryError: x"),
        (8, "it was not timed"),
        (64, f"one: {wrong}; two: RuntimeError: no kernel"),
    ]
    assert record.failed(128, "fp8/fp8") == {}
