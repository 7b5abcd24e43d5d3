"""`python -m mlalab sweep`: the options are the sliders, and files are written whole."""

from __future__ import annotations

import csv
import json

import pytest

import mlalab
from mlalab.cli import main
from mlalab.sweeps.spec import SweepResult


def sweep(capsys, *options):
    code = main(["sweep", *map(str, options)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_it_prints_what_the_object_prints(capsys):
    assert sweep(capsys) == (0, f"{mlalab.sweep()!r}\n", "")
    options = ("--max-num-seqs", 64, "--num-speculative-tokens", 1, "--heads", 128)
    more = ("--max-num-batched-tokens", 4096, "--format", "bf16/fp8", "--record", "h200")
    expected = mlalab.sweep(
        max_num_seqs=64,
        num_speculative_tokens=1,
        max_num_batched_tokens=4096,
        heads=128,
        format="bf16/fp8",
    )
    assert sweep(capsys, *options, *more) == (0, f"{expected!r}\n", "")


def test_every_file_holds_the_result(capsys, tmp_path):
    paths = {kind: tmp_path / f"sweep.{kind}" for kind in ("json", "csv", "figure")}
    options = [part for kind, path in paths.items() for part in (f"--{kind}", path)]
    code, _, err = sweep(capsys, "--max-num-seqs", 8, *options)
    expected = mlalab.sweep(max_num_seqs=8)
    assert code == 0
    assert err == "".join(f"wrote {path}\n" for path in paths.values())
    assert SweepResult.from_json(json.loads(paths["json"].read_text())) == expected.result
    assert paths["figure"].read_text() == expected.figure().svg
    rows = list(csv.DictReader(paths["csv"].read_text().splitlines()))
    assert len(rows) == 2 * len(expected.result.points)
    first = expected.result.points[0]
    assert [float(row["median_us"]) for row in rows[:2]] == [first.two.median, first.one.median]
    assert {row["device"] for row in rows} == {expected.result.machine["device"]}
    assert sorted(tmp_path.iterdir()) == sorted(paths.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--max-num-seqs", 0), "max_num_seqs must be an integer of at least 1"),
        (("--num-speculative-tokens", -1), "num_speculative_tokens must be"),
        (("--heads", 0), "heads must be a positive integer"),
        (("--format", "fp4"), "A format is one of fp8/fp8"),
        (("--record", "nope"), "neither a record that comes along (h200)"),
        (("--json", "/nonexistent/s.json"), "the folder /nonexistent does not exist"),
    ],
)
def test_mistakes_are_one_sentence_and_write_nothing(capsys, tmp_path, options, message):
    code, out, err = sweep(capsys, "--csv", tmp_path / "s.csv", *options)
    assert (code, out) == (2, "")
    assert err.startswith("mlalab: ")
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_two_outputs_do_not_go_to_one_file(capsys, tmp_path):
    both = ("--json", tmp_path / "s", "--csv", tmp_path / "x" / ".." / "s")
    (tmp_path / "x").mkdir()
    code, _, err = sweep(capsys, *both)
    assert code == 2
    assert "give each a name of its own" in err


def test_a_file_that_cannot_be_written_leaves_no_half_behind(capsys, tmp_path):
    (tmp_path / "s.json").mkdir()
    code, out, err = sweep(capsys, "--json", tmp_path / "s.json")
    assert (code, out) == (2, "")
    assert "Cannot write" in err
    assert [path.name for path in tmp_path.iterdir()] == ["s.json"]
