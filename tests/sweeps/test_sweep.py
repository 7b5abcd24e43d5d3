"""The public face: settings that hold or nothing changes, measuring that keeps what it has."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
import types

import pytest
import torch

import mlalab
from mlalab.bench.records import Record
from mlalab.errors import ConfigError
from mlalab.sweeps import measure
from mlalab.sweeps.spec import SweepResult, SweepSpec
from mlalab.sweeps.sweep import Sweep
from tests.bench.stand_ins import LIMITS
from tests.sweeps.played import MACHINE, cell

CUDA = torch.device("cuda")


@pytest.fixture
def gpu(monkeypatch):
    """Let cells take no time; `tokens` are those measured, `stop_at` the cell Ctrl-C comes in."""
    played = types.SimpleNamespace(tokens=[], stop_at=None)

    def run_cell(spec, device, replays):
        assert (device, replays) == (CUDA, 20)
        played.tokens.append(spec.tokens)
        if played.stop_at == len(played.tokens):
            raise KeyboardInterrupt
        return cell(spec.tokens, 4.0, 2.0, spec.heads)

    monkeypatch.setattr(measure, "run_cell", run_cell)
    monkeypatch.setattr(measure, "measure_limits", lambda device, replays: LIMITS)
    monkeypatch.setattr(measure, "machine", lambda device: MACHINE)
    return played


def test_it_is_part_of_the_public_face():
    sweep = mlalab.sweep(max_num_seqs=8, heads=64)
    assert sweep.spec == SweepSpec(max_num_seqs=8, heads=64)
    assert repr(sweep) == repr(mlalab.sweep(max_num_seqs=8, heads=64))


def test_set_changes_what_it_names_and_tells_who_watches():
    sweep, told = mlalab.sweep(), []
    sweep.watchers.append(lambda: told.append(sweep.result.threshold))
    assert sweep.set(max_num_seqs=8, num_speculative_tokens=1) is sweep
    assert sweep.spec == SweepSpec(max_num_seqs=8, num_speculative_tokens=1)
    assert told == [16]


def test_changes_of_two_threads_come_one_after_the_other():
    sweep, inside = mlalab.sweep(), []

    def draw():
        inside.append(len(inside))
        overlaps.append(len(inside) > 1)
        time.sleep(0.05)
        inside.pop()

    overlaps = []
    sweep.watchers.append(draw)
    changes = ({"max_num_seqs": 8}, {"heads": 64})
    threads = [threading.Thread(target=sweep.set, kwargs=change) for change in changes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == [False, False]
    assert (sweep.spec.max_num_seqs, sweep.spec.heads) == (8, 64)


@pytest.mark.parametrize("changes", [{"max_num_seqs": 0}, {"format": "x"}, {"record": "nope"}])
def test_after_an_error_nothing_has_changed(changes):
    sweep = mlalab.sweep()
    before = sweep.result
    with pytest.raises(ConfigError):
        sweep.set(**changes)
    assert sweep.result is before


def test_choices_hold_what_is_set():
    sweep = mlalab.sweep(heads=7)
    assert sweep.choices["heads"] == (7, 16, 64, 128)
    assert sweep.choices["record"] == ("h200",)
    assert sweep.spec.format in sweep.choices["format"]


def test_a_cpu_is_refused_in_one_sentence():
    sweep = Sweep(SweepSpec(), torch.device("cpu"))
    assert "recorded data is used instead." in sweep.why_not_measure
    with pytest.raises(ConfigError, match="without a GPU"):
        sweep.measure()
    assert sweep.spec.record == "h200"


def test_what_was_measured_here_is_used_from_then_on(gpu):
    sweep = Sweep(SweepSpec(heads=64), CUDA)
    assert sweep.why_not_measure is None
    assert sweep.measure().spec == SweepSpec(heads=64, record="here")
    assert tuple(gpu.tokens) == measure.TOKENS == tuple(p.tokens for p in sweep.result.points)
    assert sweep.result.machine["device"] == "Played GPU"
    assert sweep.choices["record"] == ("h200", "here")
    assert sweep.set(record="h200").result.machine["device"] != "Played GPU"


def test_a_second_model_is_added_to_what_was_measured(gpu):
    sweep = Sweep(SweepSpec(heads=64), CUDA).measure().set(heads=16).measure()
    assert sweep.choices["heads"] == (16, 64)
    assert sweep.set(heads=64).result.points


def test_an_interruption_keeps_what_was_finished(gpu):
    sweep = Sweep(SweepSpec(), CUDA)
    gpu.stop_at = 3
    sweep.measure()
    assert [p.tokens for p in sweep.result.points] == list(measure.TOKENS[:2])
    assert sweep.spec.record == "here"


def test_stopping_to_listen_cancels(gpu):
    sweep = Sweep(SweepSpec(), CUDA)
    steps = sweep.measuring()
    assert [next(steps), next(steps)] == [(1, 7), (2, 7)]
    assert sweep.spec.record == "h200"
    steps.close()
    assert gpu.tokens == [1, 8]
    assert [p.tokens for p in sweep.result.points] == [1, 8]


def test_nothing_measured_changes_nothing(gpu):
    gpu.stop_at = 1
    sweep = Sweep(SweepSpec(), CUDA).measure()
    assert sweep.spec.record == "h200"
    assert "here" not in sweep.choices["record"]


def break_at(monkeypatch, *tokens):
    """Let the cells of so many tokens fail as `run_cell` does when a kernel cannot run."""
    whole = measure.run_cell

    def run_cell(spec, device, replays):
        result = whole(spec, device, replays)
        if spec.tokens not in tokens:
            return result
        times = {"two": result.times["two"]}
        return dataclasses.replace(result, times=times, failures={"one": "RuntimeError: no kernel"})

    monkeypatch.setattr(measure, "run_cell", run_cell)


def test_a_cell_that_failed_is_told_with_its_reason(gpu, monkeypatch):
    break_at(monkeypatch, 64)
    sweep = Sweep(SweepSpec(), CUDA).measure()
    assert [p.tokens for p in sweep.result.points] == [t for t in measure.TOKENS if t != 64]
    assert sweep.failed == sweep.result.failures == {64: "one: RuntimeError: no kernel"}
    told = "6 of 7 cells; T=64 failed: one: RuntimeError: no kernel"
    assert told in repr(sweep)
    assert told in sweep.figure().caption
    again = SweepResult.from_json(json.loads(json.dumps(sweep.result.to_json())))
    assert again == sweep.result
    # The record that comes along has every cell, and a whole second run forgets the failure.
    assert "failed" not in repr(sweep.set(record="h200"))
    monkeypatch.setattr(measure, "run_cell", lambda s, *_, **__: cell(s.tokens, 4.0, 2.0, s.heads))
    assert not sweep.measure().failed
    assert not sweep.result.failures


def test_cells_that_all_failed_are_told(gpu, monkeypatch):
    break_at(monkeypatch, *measure.TOKENS)
    sweep = Sweep(SweepSpec(), CUDA).measure()
    assert not sweep.result.points
    assert "0 of 7 cells; T=1 failed: one: " in repr(sweep)
    assert "T=512 failed" in sweep.figure().caption


def test_failures_are_of_the_model_that_was_measured(gpu, monkeypatch):
    break_at(monkeypatch, 64)
    sweep = Sweep(SweepSpec(heads=64), CUDA).measure().set(heads=16)
    assert not sweep.result.failures
    assert set(sweep.failed) == {64}


def test_records_of_every_step_are_whole(gpu):
    records = list(measure.measured(SweepSpec(), CUDA))
    assert [len(r.results) for r in records] == list(range(1, 8))
    assert all(isinstance(r, Record) and r.limits == LIMITS for r in records)
