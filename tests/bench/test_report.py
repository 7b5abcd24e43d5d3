"""Tables and documents: what is told of a cell, and what is never told of a wrong one."""

import json

import pytest

from mlalab.bench import report
from mlalab.bench.cells import CellResult, CellSpec, Parity
from mlalab.bench.report import document, ratios, table
from mlalab.errors import TraceError
from tests.bench.stand_ins import CPU, LIMITS, result_of

WRONG = Parity(3, 0, 70, 100_000, 5)
FACTS = {"device": "stand-in", "commit": "abc"}


def test_ratios_are_of_medians():
    found = ratios(result_of(), LIMITS)
    assert found["one/two"] == 0.5
    assert found["one/copy"] == 1.5
    assert found["floor/one"] == pytest.approx(2.236e6 / 4e12 * 1e6 / 3, rel=1e-3)


@pytest.mark.parametrize(
    "result",
    [result_of(parity=WRONG), result_of(times=False), result_of(parity=WRONG, times=False)],
)
def test_no_speed_up_is_told_without_a_passed_check(result):
    assert ratios(result, LIMITS) == {}


def test_the_table(golden):
    spare = result_of(128, failures={"inductor": "RuntimeError: no"})
    spare = CellResult(
        *(spare.spec, spare.layers, spare.parity),
        {name: s for name, s in spare.times.items() if name != "inductor"},
        spare.failures,
    )
    rows = (result_of(), spare, result_of(32, parity=WRONG, times=False))
    golden("bench_table", table(rows, LIMITS))


def test_a_table_of_checks_alone(golden):
    broken = CellResult(CellSpec(heads=16, tokens=9), 0, {}, failures={"cell": "OSError: no"})
    rows = (result_of(1, times=False), result_of(8, parity=WRONG, times=False), broken)
    golden("bench_checks", table(rows, None))


def test_a_table_of_nothing_is_its_head():
    assert table([], LIMITS).splitlines()[-1].split() == list(report._HEAD)
    assert table([], None).splitlines()[-1].split("  ") == list(report._CHECK_HEAD)


def test_a_wrong_cell_has_no_figures_in_the_table():
    said = table([result_of(parity=WRONG)], LIMITS).splitlines()[-1]
    assert (
        "CHECK FAILED, not timed: one: absorbed 0.0700 % off by up to 5 step(s), rotated 3" in said
    )
    assert "±" not in said


def test_the_document_has_one_schema(tmp_path):
    results = [result_of(), result_of(32, parity=WRONG, times=False)]
    path = tmp_path / "bench.json"
    report.save(path, document(FACTS, LIMITS, results, interrupted=True))
    told = json.loads(path.read_text())
    assert set(told) == {
        *("format", "bench", "unit", "machine", "limits", "interrupted", "cells"),
    }
    assert (told["format"], told["interrupted"]) == ("mlalab-bench-1", True)
    assert told["limits"]["l2_bytes"] == 50 << 20
    good, bad = told["cells"]
    assert set(good) == set(bad)
    assert set(good["times"]["one"]) == {"median", "low", "high", "samples"}
    assert good["ratios"]["one/two"] == 0.5
    assert (bad["ok"], bad["ratios"], bad["parity"]["one"]["steps"]) == (False, {}, 5)
    assert [CellResult.from_json(cell) for cell in told["cells"]] == results


def test_a_document_of_checks_has_no_limits():
    told = document(FACTS, None, [result_of(times=False)])
    assert told["limits"] is told["cells"][0]["floor_us"] is None


def test_the_machine_is_described_in_strings():
    facts = report.machine(CPU)
    assert {"device", "torch", "triton", "cuda", "commit", "date"} <= set(facts)
    assert all(isinstance(fact, str) and fact for fact in facts.values())


def test_without_a_repository_the_commit_is_unknown(monkeypatch):
    monkeypatch.setattr(report, "__file__", "/report.py")
    assert report._commit() == "unknown"


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path):
    with pytest.raises(TraceError, match="Cannot write"):
        report.save(tmp_path / "none" / "x.json", {})
