"""Times of nodes: of those that work and no others, and nothing is different afterwards."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import time
from types import SimpleNamespace

import pytest
import torch

from mlalab import kernels
from mlalab.bench import timing
from mlalab.compile.config import PassConfig
from mlalab.errors import ConfigError, TraceError
from mlalab.lab import record
from mlalab.layers.options import LayerOptions
from mlalab.measuring import _gpu_clock, measured
from mlalab.passes.fusion import CleanUp, PassResult
from mlalab.passes.pipeline import PIPELINE
from mlalab.programs import trace_program
from mlalab.traces import Trace
from mlalab.viz.cost import node_bytes
from mlalab.workbench import build

LAST = "FixFunctionalizationPass"
FUSED = "MLARoPEKVCacheCatFusionPass"


@pytest.fixture(scope="module")
def trace():
    return record(build("tiny", tokens=5))


def caches(bench):
    return [layer.kv_cache.storage.clone() for layer in bench.layers]


def test_every_node_that_works_has_a_time_and_no_other(trace):
    us = trace.measure(runs=1).us
    assert list(us) == [step.name for step in trace]
    for step in trace:
        assert us[step.name].keys() == node_bytes(step.nodes).keys()
        free = {n.name for n in step.nodes if n.plumbing or n.op in ("placeholder", "output")}
        assert free
        assert not free & us[step.name].keys()


def test_the_sum_is_part_of_the_time_it_took(trace):
    start = time.perf_counter()
    us = trace.measure(LAST, runs=3).us
    took = 1e6 * (time.perf_counter() - start)
    assert list(us) == [LAST]
    assert min(us[LAST].values()) > 0
    # The warm-up and three runs; each median is at most as long as two of them.
    assert 2 * sum(us[LAST].values()) < took


@pytest.mark.parametrize(("runs", "median"), [(1, 2.0), (2, 2.5), (3, 3.0)])
def test_a_time_is_the_median_without_the_warm_up(trace, runs, median):
    calls = {}

    def clock(work):
        count = calls.setdefault(work.args[0], itertools.count(1))
        return work(), float(next(count))

    step = trace[LAST]
    us = measured(trace._checker, {len(trace) - 1: step}, runs=runs, clock=clock).us[LAST]
    assert us["unified_mla_attention_with_output_default"] == median


def test_the_label_says_where_whose_and_when(trace):
    times = trace.measure(FUSED, runs=1)
    today = datetime.datetime.now(datetime.UTC).date()
    assert times.device == "cpu, reference kernels, each node alone"
    assert (today - datetime.date.fromisoformat(times.date)).days in (0, 1)
    assert times.label == f"measured on {times.device}, {times.date}"
    with kernels.force("triton"):
        label = trace.measure("dynamo", runs=1).device
    assert label == "cpu, interpreted triton and reference kernels, each node alone"


def test_times_are_taken_up_by_table_page_and_stepper(trace):
    times = trace.measure(FUSED, runs=1)
    assert trace.cost(times).endswith(times.label)
    assert trace.to_html(measured=times) != trace.to_html()
    assert trace.widget(times).data != trace.widget().data


@pytest.mark.parametrize("runs", [0, -1, 1.5, None])
def test_runs_are_a_positive_integer(trace, runs):
    with pytest.raises(ConfigError, match="runs must be a positive integer"):
        trace.measure(runs=runs)


def test_an_unknown_step_is_refused(trace):
    with pytest.raises(TraceError, match="no step 'nope'"):
        trace.measure("nope")


def test_a_loaded_trace_is_refused_in_a_sentence(trace, tmp_path):
    trace.save(tmp_path / "t.json")
    with pytest.raises(TraceError, match=r"^A trace loaded from a file .* to measure\.$"):
        Trace.load(tmp_path / "t.json").measure()


@pytest.mark.parametrize(("tokens", "cache"), [(0, "auto"), (5, "fp8")])
def test_measuring_leaves_caches_inputs_and_a_later_check_alone(tokens, cache):
    config = PassConfig(fuse_aiter_qk_rope_kvcache_mla=True)
    bench = build(
        "tiny",
        tokens=tokens,
        options=LayerOptions(dtype=torch.bfloat16, kv_cache_dtype=cache, device="cpu"),
    )
    trace = record(bench, config=config)
    bench.randomise(7)  # other rows than those that the graphs write
    before = caches(bench)
    hidden, weights = bench.hidden_TD.clone(), [w.clone() for w in bench.module.parameters()]
    trace.measure(runs=2)
    assert all(map(torch.equal, before, caches(bench)))
    assert torch.equal(hidden, bench.hidden_TD)
    assert all(map(torch.equal, weights, bench.module.parameters()))
    first = [step.check for step in trace.check()]
    trace.measure(runs=1)
    assert [step.check for step in trace.check()] == first
    assert trace.ok


def test_a_symbolic_token_count_is_measured():
    trace = record(build("tiny", tokens=3), dynamic=True)
    step = trace[LAST]
    assert trace.measure(LAST, runs=1).us[LAST].keys() == node_bytes(step.nodes).keys()


def _write_weight(graph):
    weight = next(
        n for n in graph.nodes if n.op == "placeholder" and n.meta["val"].shape == (64, 128)
    )
    with graph.inserting_before(graph.output_node()):
        view = graph.call_function(torch.ops.aten.view.default, (weight, [-1]))
        view.meta["val"] = weight.meta["val"].view(-1)
        write = graph.call_function(torch.ops.aten.mul_.Tensor, (view, 2))
    write.meta["val"] = view.meta["val"]
    return PassResult()


def test_a_weight_that_a_wrong_pass_writes_is_written_in_a_copy():
    bench = build("tiny", tokens=5)
    damage = CleanUp(name="Damage", note="", run=_write_weight)
    trace = record(bench, passes=(*PIPELINE, damage), verify=False)
    before = [w.clone() for w in bench.module.parameters()]
    trace.measure("Damage", runs=1)
    assert all(map(torch.equal, before, bench.module.parameters()))


def test_caches_are_put_back_when_a_node_fails(trace):
    bench = trace._checker.bench
    before = caches(bench)

    def clock(work):
        bench.layers[0].kv_cache.storage.zero_()
        raise RuntimeError("no kernel")

    with pytest.raises(RuntimeError, match="no kernel"):
        measured(trace._checker, {0: trace[0]}, runs=1, clock=clock)
    assert all(map(torch.equal, before, caches(bench)))


def written(x, y):
    x.mul_(2)
    x += y
    return x[1:] * 3


def effect_only(x, y):
    x.add_(y)


@pytest.mark.parametrize("program", [written, effect_only])
@pytest.mark.parametrize("rows", [1, 5])
def test_a_program_that_writes_its_inputs(program, rows):
    inputs = [torch.randn(rows, 3), torch.ones(rows, 3)]
    given = [x.clone() for x in inputs]
    trace = trace_program(program, inputs).check()
    latest = [x.clone() for x in trace._checker.backend.inputs_of("dynamo")]
    times = trace.measure(runs=2)
    assert times.us.keys() == {step.name for step in trace}
    assert times.us["aot"]
    assert all(map(torch.equal, given, inputs))
    assert all(map(torch.equal, latest, trace._checker.backend.inputs_of("dynamo")))
    assert trace.check().ok


def test_times_of_another_trace_are_refused(trace):
    times = trace.measure(FUSED, runs=1)
    for us, said in (
        ({"nope": {}}, "a step 'nope'"),
        ({FUSED: {"nope": 1.0}}, "a node 'nope'"),
        ({FUSED: {"mm": float("nan")}}, "nan µs"),
        ({FUSED: {"mm": float("inf")}}, "inf µs"),
        ({FUSED: {"mm": -1.0}}, "-1.0 µs"),
    ):
        wrong = dataclasses.replace(times, us=us)
        for show in (trace.cost, trace.widget, lambda m: trace.to_html(measured=m)):
            with pytest.raises(TraceError, match=said) as raised:
                show(wrong)
            assert str(raised.value).endswith("measure it again.")


def test_a_gpu_is_timed_by_its_own_events(monkeypatch):
    """Played: sleep, start, work and end are enqueued in this order, then waited for."""
    said = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            said.append("record")

        def synchronize(self):
            said.append("wait")

        def elapsed_time(self, end):
            return 0.25

    played = SimpleNamespace(Event=Event, _sleep=lambda cycles: said.append("sleep"))
    monkeypatch.setattr(timing.torch, "cuda", played)
    assert _gpu_clock(lambda: said.append("work") or 7) == (7, 250.0)
    assert said == ["sleep", "record", "work", "record", "wait"]
