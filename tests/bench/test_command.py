"""`python -m mlalab bench`: exit codes, files, and what Ctrl-C leaves behind."""

from __future__ import annotations

import json
import re

import pytest
import torch

from mlalab.bench import command, contenders
from mlalab.bench.cells import CellResult, CellSpec
from mlalab.bench.run import run_all
from mlalab.cli import main
from tests.bench.stand_ins import LIMITS, RIGHT, broken_for, reference_for, result_of

FEW = ("--tokens", "1,3", "--formats", "fp8/fp8")


@pytest.fixture
def kernels(monkeypatch):
    """Return how to put kernels in place of Triton's."""

    def put(load):
        monkeypatch.setattr(contenders, "load", load)
        monkeypatch.setattr(command, "load", load)

    return put


@pytest.fixture
def gpu(monkeypatch, kernels):
    """A GPU on which every cell takes no time; returns the cells that were run."""
    ran = []

    def run_cell(spec, device, replays):
        ran.append((spec, device, replays))
        return CellResult(spec, 32, {"one": RIGHT, "two": RIGHT}, result_of().times)

    kernels(reference_for)
    monkeypatch.setattr(command, "run_cell", run_cell)
    monkeypatch.setattr(command, "measure_limits", lambda device, replays: LIMITS)
    monkeypatch.setattr(command, "machine", lambda device: {"device": "played"})
    monkeypatch.setattr("mlalab.env.device_named", lambda name: torch.device("cuda"))
    return ran


def bench(capsys, *options):
    code = main(["bench", "decode-prep", *map(str, options)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_cpu_is_not_timed_and_says_why_in_a_sentence(capsys):
    code, out, err = bench(capsys, "--device", "cpu")
    assert (code, out) == (2, "")
    assert err.startswith("mlalab: On a CPU Triton's kernels are interpreted, and times of an int")
    assert "--check-only" in err
    assert err.count("\n") == 1


def test_checks_alone_run_on_a_cpu(capsys, kernels, tmp_path):
    kernels(reference_for)
    path = tmp_path / "checks.json"
    code, out, _ = bench(capsys, "--device", "cpu", "--check-only", *FEW, "--out", path)
    assert code == 0
    for kernel in ("two", "one"):
        assert len(re.findall(rf"{kernel} +passed +0\.0000 % +0 +0 +0$", out, re.M)) == 2
    told = json.loads(path.read_text())
    assert (told["limits"], told["interrupted"]) == (None, False)
    assert [cell["spec"]["tokens"] for cell in told["cells"]] == [1, 3]


def test_a_broken_kernel_is_refused_with_the_figure(capsys, kernels):
    kernels(broken_for)
    code, out, _ = bench(capsys, "--device", "cpu", "--check-only", *FEW)
    assert code == 1
    for kernel in ("two", "one"):
        found = re.findall(rf"{kernel} +FAILED +0\.0000 % +0 +(\d+) +(\d+)$", out, re.M)
        assert len(found) == 2
        assert all(int(rotated) and int(cache) for rotated, cache in found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--formats", "fp8/bf16"), "one of fp8/fp8"),
        (("--tokens", "0"), "tokens must be a positive integer"),
        (("--replays", "3"), "at least 20 replays"),
        (("--out", "/nonexistent/b.json"), "does not exist"),
        (("--device", "nope"), "Cannot use device"),
    ],
)
def test_mistakes_are_one_sentence(capsys, options, message):
    code, out, err = bench(capsys, *("--check-only", "--device", "cpu"), *options)
    assert (code, out) == (2, "")
    assert message in err


def test_a_missing_kernel_is_one_sentence(capsys, monkeypatch):
    table = {contenders.ABSORB_OP: {"reference": ""}}
    monkeypatch.setattr("mlalab.kernels._TABLE", table)
    code, _, err = bench(capsys, "--device", "cpu", "--check-only")
    assert code == 2
    assert f"Cannot use triton for {contenders.ABSORB_OP}: mlalab has no triton kernel" in err


@pytest.mark.parametrize(
    ("options", "cells"),
    [
        ((), 63),
        (("--quick",), 6),
        (("--quick", "--tokens", "7"), 2),
        (("--heads", "64", "--tokens", "1,2", "--formats", "bf16/fp8,bf16/bf16"), 4),
    ],
)
def test_the_cells_that_are_asked_for(capsys, gpu, options, cells):
    code, out, _ = bench(capsys, *options, "--replays", 25)
    assert code == 0
    assert len(gpu) == cells
    assert {(s.nope, s.rope, s.latent) for s, _, _ in gpu} == {(128, 64, 512)}
    assert {replays for _, _, replays in gpu} == {25}
    assert len(out.splitlines()) == cells + 4


def test_an_interruption_keeps_what_was_finished(capsys, gpu, monkeypatch, tmp_path):
    whole, path = command.run_cell, tmp_path / "b.json"

    def interrupted(spec, device, replays):
        if len(gpu) == 2:
            raise KeyboardInterrupt
        return whole(spec, device, replays)

    monkeypatch.setattr(command, "run_cell", interrupted)
    code, out, err = bench(capsys, "--quick", "--out", path)
    assert code == 130
    assert "interrupted after 2 of 6 cells" in err
    assert len(out.splitlines()) == 2 + 4
    told = json.loads(path.read_text())
    assert told["interrupted"] is True
    assert len(told["cells"]) == 2


def test_results_are_kept_after_every_cell():
    specs = [CellSpec(heads=1, tokens=t) for t in (1, 2)]
    kept = []
    results, interrupted = run_all(
        specs, lambda s: result_of(s.tokens), lambda r: kept.append([*r])
    )
    assert not interrupted
    assert kept == [results[:1], results]


def test_a_baseline_that_failed_is_told_and_fails_the_run(capsys, gpu, monkeypatch):
    failed = result_of(failures={"inductor": "CompileError: no"})
    monkeypatch.setattr(command, "run_cell", lambda spec, device, replays: failed)
    code, _, err = bench(capsys, "--quick")
    assert code == 1
    assert err.count("inductor failed: CompileError: no") == 1
