"""One cell on a played GPU: check first, then every contender, each failing alone."""

from __future__ import annotations

import contextlib
import types

import pytest
import torch

from mlalab.bench import contenders, timing
from mlalab.bench.cells import CellSpec, Spread
from mlalab.bench.report import document, table
from mlalab.bench.run import run_all, run_cell
from mlalab.bench.timing import Captured
from mlalab.errors import ConfigError, first_line
from tests.bench.stand_ins import CPU, LIMITS, TINY, broken_for, reference_for, result_of

SPEC = CellSpec(tokens=3, **TINY)
CONTENDERS = ["plain", "inductor", "two", "one", "direct"]


@pytest.fixture
def gpu(monkeypatch):
    """Let cells run on the CPU; returns how many steps each capture got."""
    steps = []

    def capture(work):
        kept = [step() for step in work]
        steps.append(len(kept))
        return Captured(None, kept, len(work))

    properties = types.SimpleNamespace(L2_cache_size=1000)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(timing, "capture", capture)
    monkeypatch.setattr(timing, "measure", lambda work, n: {w: Spread(1, 1, 1, n) for w in work})
    monkeypatch.setattr(contenders, "load", reference_for)
    return steps


def test_every_contender_runs_every_layer_and_so_does_the_copy(gpu):
    result = run_cell(SPEC, CPU, replays=21)
    assert result.ok
    assert list(result.times) == [*CONTENDERS, "copy"]
    assert result.layers == 32
    assert gpu == [32] * (len(CONTENDERS) + 2)
    assert {s.samples for s in result.times.values()} == {21}


def test_a_cell_whose_check_failed_is_never_timed(gpu, monkeypatch):
    monkeypatch.setattr(contenders, "load", broken_for)
    result = run_cell(SPEC, CPU)
    assert not result.ok
    assert not result.times
    assert gpu == []


def test_a_baseline_that_fails_costs_only_itself(gpu, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("no such backend\nand much more")

    monkeypatch.setattr(torch, "compile", refuse)
    result = run_cell(SPEC, CPU)
    assert result.failures == {"inductor": "ValueError: no such backend"}
    assert list(result.times) == ["plain", "two", "one", "direct", "copy"]


def test_a_kernel_that_cannot_be_got_costs_only_itself(gpu, monkeypatch):
    def load(op, provider):
        if op == contenders.CONCAT_OP and provider != "reference":
            raise ConfigError("there is none.")
        return reference_for(op, provider)

    monkeypatch.setattr(contenders, "load", load)
    result = run_cell(SPEC, CPU)
    assert result.failures == {"two": "ConfigError: there is none"}
    assert (list(result.parity), dict(result.times)) == (["one"], {})


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("20 GiB"), RuntimeError("20 GiB\nat 0x1"), KeyError("20 GiB")]
)
def test_a_cell_that_raises_says_why_and_does_not_end_the_run(error):
    def cell(spec):
        if spec.tokens == 1:
            raise error
        return result_of(spec.tokens)

    specs = [CellSpec(heads=16, tokens=t) for t in (1, 2)]
    results, interrupted = run_all(specs, cell, lambda results: None)
    assert not interrupted
    said = first_line(error)
    assert results[0].failures == {"cell": said}
    assert [r.ok for r in results] == [False, True]
    (line,) = [x for x in table(results, LIMITS).splitlines() if "20 GiB" in x]
    assert line.split(maxsplit=3) == ["fp8/fp8", "16", "1", f"not timed: {said}"]
    assert document({}, LIMITS, results)["cells"][0]["failures"] == {"cell": said}
