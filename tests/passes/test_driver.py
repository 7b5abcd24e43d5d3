"""The driver: order, flags, range gate, verification, recording, and its cache key."""

import dataclasses
import re

import pytest
import torch

import mlalab
from mlalab.compile.capture import LabBackend
from mlalab.compile.config import PassConfig
from mlalab.compile.ranges import CompileRange
from mlalab.errors import ConfigError, VerifyError
from mlalab.lab import record
from mlalab.passes.driver import PassDriver
from mlalab.passes.fusion import CleanUp, PassResult
from mlalab.passes.pipeline import PIPELINE
from mlalab.recorder import Recorder
from mlalab.workbench import build

FUSION = next(p for p in PIPELINE if p.name == "MLARoPEKVCacheCatFusionPass")


def cleanup(name, run, **options):
    def wrapped(graph):
        run(graph)
        return PassResult()

    return CleanUp(name=name, note="", run=wrapped, **options)


@pytest.mark.parametrize("intruder", [lambda graph: None, CleanUp, "CleanUp", None])
def test_what_is_not_a_pass_is_refused_by_name(intruder):
    given = [*PIPELINE, intruder]
    with pytest.raises(ConfigError, match=rf"{re.escape(repr(intruder))}.* is not a Pass"):
        PassDriver(given, PassConfig())


def test_passes_run_in_the_order_given():
    seen = []
    passes = [cleanup(n, lambda graph, n=n: seen.append(n)) for n in "abc"]
    mlalab.trace("tiny", tokens=1, passes=passes)
    assert seen == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("served", "status"),
    [
        (CompileRange(1, 4), "applied"),
        (CompileRange(1, 5), "out of range"),
        (CompileRange(0, 0), "applied"),
        (None, "out of range"),
    ],
)
def test_range_gate(served, status):
    bench = build("tiny", tokens=3)
    gated = dataclasses.replace(FUSION, max_tokens=4)
    backend = LabBackend(passes=[gated], compile_range=served)
    compiled = torch.compile(bench.module, backend=backend, fullgraph=True)
    bench.run(compiled, bench.positions, bench.hidden_TD)
    (recorder,) = backend.recorders
    ran = {step.name: step.status for step in recorder.steps}
    assert {**ran, **recorder.skipped}[FUSION.name] == status
    assert (FUSION.name in ran) == (status == "applied")


def test_a_pass_whose_flag_is_off_is_never_called():
    def explode(graph):
        raise AssertionError("called")

    off = PassConfig(fuse_rope_kvcache_cat_mla=False)
    passes = [cleanup("x", explode, flags=("fuse_rope_kvcache_cat_mla",))]
    trace = record(build("tiny", tokens=1), config=off, passes=passes)
    assert "x" not in [s.name for s in trace]


def _out_of_order(graph):
    nodes = [n for n in graph.nodes if n.op == "call_function"]
    nodes[-1].append(nodes[0])


def _without_value(graph):
    del next(n for n in graph.nodes if n.op == "call_function").meta["val"]


@pytest.mark.parametrize("damage", [_out_of_order, _without_value])
def test_a_malformed_graph_is_pinned_on_the_pass_that_made_it(damage):
    with pytest.raises(Exception, match="Culprit") as caught:
        mlalab.trace("tiny", tokens=1, passes=[cleanup("Culprit", damage)])
    cause = caught.value
    while cause is not None and not isinstance(cause, VerifyError):
        cause = cause.__cause__ or cause.__context__ or getattr(cause, "inner_exception", None)
    assert isinstance(cause, VerifyError)


def _uuid(passes=PIPELINE, config=None, served=None):
    return PassDriver(passes, config or PassConfig(), Recorder(), compile_range=served).uuid()


def test_uuid_tells_passes_order_configuration_and_range_apart():
    assert _uuid() == _uuid()
    others = [
        _uuid(PIPELINE[:2]),
        _uuid((*PIPELINE, PIPELINE[-1])),
        _uuid([cleanup("a", len), cleanup("b", len)]),
        _uuid([cleanup("b", len), cleanup("a", len)]),
        _uuid(config=PassConfig(fuse_rope_kvcache_cat_mla=False)),
        _uuid(served=CompileRange(1, 8)),
    ]
    assert len({_uuid(), *others}) == 7


def test_uuid_tells_the_parameters_of_one_pass_apart():
    changed = [
        dataclasses.replace(FUSION, max_tokens=8),
        dataclasses.replace(FUSION, variants=FUSION.variants[:1]),
        dataclasses.replace(FUSION, flags=()),
    ]
    assert len({_uuid([FUSION]), *(_uuid([f]) for f in changed)}) == 4
