"""Which implementation serves an op: by device, by force, and never a surprise."""

from __future__ import annotations

import inspect
import subprocess
import sys
import types
from importlib import import_module
from pathlib import Path

import pytest
import torch

import mlalab
import mlalab_kernels
from mlalab import kernels
from mlalab.env import Availability
from mlalab.errors import ConfigError
from mlalab.kernels import Choice, availability, choice, choices, force, load, pick, summary
from mlalab_kernels.refusal import RefusedError

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
OP, OTHER = "rotary_embedding", "paged_attention"


def by_triton(*arguments):
    """Stand for a Triton kernel."""


@pytest.fixture(autouse=True)
def fresh():
    for cached in (kernels._choose, kernels._load, kernels._in_line):
        cached.cache_clear()
    yield
    for cached in (kernels._choose, kernels._load, kernels._in_line):
        cached.cache_clear()


@pytest.fixture
def one_kernel(monkeypatch):
    """A tree in which OP alone has a Triton and an AITER kernel."""
    module = types.ModuleType("stand_in")
    setattr(module, OP, by_triton)
    monkeypatch.setitem(sys.modules, "stand_in", module)
    table = {op: {"reference": f"mlalab_kernels.{op}.reference"} for op in kernels._TABLE}
    table[OP] |= {"triton": "stand_in", "aiter": "stand_in"}
    monkeypatch.setattr(kernels, "_TABLE", table)
    monkeypatch.setattr(kernels, "probe_triton", lambda: Availability(True, "ready"))


@pytest.fixture
def aiter(monkeypatch):
    """A ROCm machine; returns how to say whether AITER is there."""
    monkeypatch.setattr(torch.version, "hip", "7.0")

    def found(usable, detail="ready"):
        monkeypatch.setattr(kernels, "probe_aiter", lambda: Availability(usable, detail))

    return found


def test_every_folder_is_in_the_table_and_every_module_has_its_function():
    folders = {p.parent.name for p in Path(mlalab_kernels.__path__[0]).glob("*/reference.py")}
    assert set(kernels._TABLE) == folders
    for op, served in kernels._TABLE.items():
        wanted = inspect.signature(load(op, "reference")).parameters
        for module in served.values():
            found = inspect.signature(getattr(import_module(module), op)).parameters
            assert list(found)[: len(wanted)] == list(wanted), module
            own = list(found.values())[len(wanted) :]
            assert all(p.default is not p.empty for p in own), module


def test_the_device_of_the_tensors_decides(one_kernel):
    assert choice(OP, CPU) == Choice("reference", "CPU tensors")
    assert choice(OP, GPU) == Choice("triton", "CUDA tensors")
    assert choice(OTHER, GPU) == Choice("reference", "no flashinfer kernel; no triton kernel")
    assert pick(OP, GPU) is by_triton
    assert pick(OP, CPU) is load(OP, "reference")


def test_on_rocm_aiter_comes_first_where_it_has_the_kernel(one_kernel, aiter):
    aiter(True)
    assert choice(OP, GPU) == Choice("aiter", "ROCm tensors")
    assert choice(OTHER, GPU) == Choice("reference", "no aiter kernel; no triton kernel")
    assert choice(OP, CPU) == Choice("reference", "CPU tensors")


def test_a_call_that_aiter_refuses_goes_to_triton(one_kernel, aiter, monkeypatch):
    aiter(True)
    refusing = types.ModuleType("refusing")
    calls = []

    def by_aiter(*arguments, **keywords):
        calls.append((arguments, keywords))
        raise RefusedError("too wide")

    setattr(refusing, OP, by_aiter)
    served = types.ModuleType("served")
    setattr(served, OP, lambda *arguments, **keywords: (arguments, keywords))
    monkeypatch.setitem(sys.modules, "refusing", refusing)
    monkeypatch.setitem(sys.modules, "served", served)
    kernels._TABLE[OP].update(aiter="refusing", triton="served")
    assert pick(OP, GPU)(1, wide=2) == ((1,), {"wide": 2})
    assert calls == [((1,), {"wide": 2})]
    with force("aiter"), pytest.raises(RefusedError, match="too wide"):
        pick(OP, GPU)(1)


def test_on_rocm_without_aiter_the_reason_says_what_is_missing(one_kernel, aiter):
    aiter(False, "import failed: libhip.so")
    assert choice(OP, GPU) == Choice("triton", "aiter: import failed: libhip.so")


def test_without_triton_the_reference_serves_and_says_so(one_kernel, monkeypatch):
    monkeypatch.setattr(kernels, "probe_triton", lambda: Availability(False, "not installed"))
    assert choice(OP, GPU) == Choice("reference", "triton: not installed")
    assert availability("triton") == Availability(False, "not installed")
    with pytest.raises(ConfigError, match="Cannot use triton: not installed"), force("triton"):
        pass


def test_force_is_scoped_nests_and_falls_back(one_kernel):
    with force("triton"):
        assert choice(OP, CPU) == Choice("triton", "forced")
        assert choice(OTHER, CPU) == Choice("reference", "no triton kernel")
        with force(rotary_embedding="auto"):
            assert choice(OP, CPU).provider == "reference"
        with force("reference"):
            assert choice(OP, GPU) == Choice("reference", "forced")
        assert pick(OP, CPU) is by_triton
    assert choice(OP, CPU).provider == "reference"
    with force(rotary_embedding="triton"):
        assert pick(OP, CPU) is by_triton
        assert choice(OTHER, CPU) == Choice("reference", "CPU tensors")


def test_force_ends_with_its_block_also_when_that_fails(one_kernel):
    with pytest.raises(ZeroDivisionError), force("triton"):
        _ = 1 / 0
    assert choice(OP, CPU).provider == "reference"


@pytest.mark.parametrize(
    ("provider", "ops", "message"),
    [
        (
            "rocm",
            {},
            "provider must be one of auto, aiter, flashinfer, triton, reference, got 'rocm'",
        ),
        (None, {"nope": "triton"}, "No kernel is called 'nope'; known: fused_absorb"),
        (None, {OTHER: "triton"}, f"triton for {OTHER}: mlalab has no triton kernel for it"),
        ("aiter", {}, "Cannot use aiter: not installed; only used on ROCm"),
    ],
)
def test_what_cannot_be_forced_is_refused_by_name(one_kernel, monkeypatch, provider, ops, message):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=message), force(provider, **ops):
        pass


@pytest.mark.parametrize("ask", [pick, choice])
def test_an_unknown_op_is_refused(ask):
    with pytest.raises(ConfigError, match="No kernel is called 'nope'"):
        ask("nope", CPU)


def test_availability_and_choice_agree(one_kernel):
    for op in (OP, OTHER):
        with force("triton"):
            served = choice(op, CPU).provider == "triton"
        assert availability("triton", op).usable is served


def test_the_summary_names_ops_only_where_they_differ(one_kernel):
    assert summary(CPU) == "reference (CPU tensors)"
    assert f"; triton (CUDA tensors): {OP}; " in f"; {summary(GPU)}; "
    assert set(choices(GPU)) == set(kernels._TABLE)


def test_a_trace_says_who_served_it():
    trace = mlalab.trace("tiny", tokens=2)
    assert trace.meta["kernels"] == "reference (CPU tensors)"


def test_a_compiled_model_is_served_by_its_provider(monkeypatch):
    bench = mlalab.build("tiny", tokens=2)
    seen = []
    watched = load("unified_mla_kv_cache_update", "reference")
    config = mlalab.CompileConfig(level="O0", provider="reference", mode="display")
    model = mlalab.CompiledModel(bench.module, config)

    def picked(op, device):
        seen.append(choice(op, device).reason)
        return watched

    monkeypatch.setattr("mlalab.ops.mla.pick", picked)
    bench.run(model, bench.positions, bench.hidden_TD)
    assert seen == ["forced"]


def test_importing_mlalab_and_choosing_load_no_triton():
    code = (
        "import sys, torch, mlalab, mlalab.kernels as k;"
        "k.choices(torch.device('cpu')), k.choices(torch.device('cuda'));"
        "print('triton' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
