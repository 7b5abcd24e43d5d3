"""The clock, on a GPU that is played: whose turn it is, what a sample is divided by."""

from __future__ import annotations

import contextlib
import types

import pytest
import torch

from mlalab.bench import timing
from mlalab.bench.timing import Captured, measure, spread


class PlayedGPU:
    """Time passes only when something is replayed; everything that happens is written down."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def graph(self, name, milliseconds):
        return PlayedGraph(self, name, milliseconds)

    def event(self, enable_timing):
        assert enable_timing
        return PlayedEvent(self)


class PlayedGraph:
    def __init__(self, gpu, name, milliseconds):
        self.gpu, self.name, self.milliseconds = gpu, name, milliseconds

    def replay(self):
        self.gpu.now += self.milliseconds
        self.gpu.log.append(self.name)


class PlayedEvent:
    def __init__(self, gpu):
        self.gpu, self.at = gpu, None

    def record(self):
        self.at = self.gpu.now
        self.gpu.log.append("event")

    def elapsed_time(self, other):
        return other.at - self.at


@pytest.fixture
def gpu(monkeypatch):
    gpu = PlayedGPU()
    monkeypatch.setattr(torch.cuda, "Event", gpu.event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: gpu.log.append("wait"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: gpu.log.append("sleep"))
    return gpu


def test_contenders_take_turns_and_times_are_per_unit(gpu):
    work = {
        "a": Captured(gpu.graph("a", 1.0), None, 10),
        "b": Captured(gpu.graph("b", 3.0), None, 30),
    }
    times = measure(work, 3)
    assert {name: s.median for name, s in times.items()} == pytest.approx({"a": 100, "b": 100})
    assert times["a"].samples == 3
    ran = [name for name in gpu.log if name in work]
    assert ran == ["a", "b", "a", "b", "b", "a", "a", "b"]


def test_nothing_waits_between_the_events_of_a_sample(gpu):
    measure({"a": Captured(gpu.graph("a", 1.0), None, 1)}, 1)
    assert gpu.log == ["a", "wait", "sleep", "event", "a", "event", "wait"]


def test_warm_up_comes_before_capture_and_on_a_stream_of_its_own(gpu, monkeypatch):
    @contextlib.contextmanager
    def within(name):
        gpu.log.append(f"enter {name}")
        yield
        gpu.log.append(f"leave {name}")

    default = types.SimpleNamespace(wait_stream=lambda other: gpu.log.append("join"))
    side = types.SimpleNamespace(wait_stream=lambda other: gpu.log.append("fork"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: default)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: side)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: within("side"))
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: within("graph"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: gpu.graph("work", 1.0))
    steps = [lambda: gpu.log.append("a"), lambda: gpu.log.append("b")]
    captured = timing.capture(steps)
    warm_up = ["fork", "enter side", *("a", "b") * 3, "leave side", "join", "wait"]
    assert gpu.log == [*warm_up, "enter graph", "a", "b", "leave graph"]
    assert captured.units == 2
    assert [step for step, _ in captured.kept] == steps


def test_spread_is_median_and_quartiles():
    found = spread([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (found.low, found.median, found.high, found.samples) == (2.0, 3.0, 4.0, 5)
    assert spread([7.0]).low == spread([7.0]).high == 7.0


@pytest.mark.parametrize(("num_bytes", "copied"), [(1024, 512), (1000, 512), (1, 128)])
def test_copies_read_and_write_what_they_were_asked_to_in_whole_lines(num_bytes, copied):
    copies = timing.copies_of(num_bytes, torch.device("cpu"))
    assert {name: copy().nbytes for name, copy in copies.items()} == {
        **{"node": copied, "kernel": copied}
    }
