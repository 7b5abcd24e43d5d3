"""Whose kernels a GPU can capture: asked of the table of providers, no GPU is needed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from mlalab import kernels
from mlalab.compile.cudagraph_refusals import refusals
from mlalab.env import Availability


def reasons(mode="FULL_AND_PIECEWISE", forced=None, kind="mla", device="cuda"):
    weight = SimpleNamespace(device=torch.device(device))
    layer = SimpleNamespace(kind=kind, layer_name="a", o_proj=SimpleNamespace(weight=weight))
    config = SimpleNamespace(cudagraph_mode=mode)
    return refusals(SimpleNamespace(layers=[layer], config=config, forced=forced), on_gpu=True)


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine with a GPU of NVIDIA's, Triton and FlashInfer."""
    ready = Availability(True, "ready")
    probes = {name: lambda: ready for name in ("triton", "flashinfer")}
    missing = {"aiter": lambda: Availability(False, "missing")}
    monkeypatch.setattr(kernels, "_PROBES", probes | missing)
    kernels._choose.cache_clear()
    kernels._in_line.cache_clear()
    yield
    kernels._choose.cache_clear()
    kernels._in_line.cache_clear()


def test_kernels_of_triton_are_captured():
    assert reasons() == reasons(forced="triton") == {}


def test_a_reference_waits_for_the_device():
    found = reasons(forced="reference")
    assert set(found) == {"general", "decode", "prefill"}
    assert set(found.values()) == {
        "rotary_embedding is served by its reference, which waits for the device"
    }


def test_without_triton_there_is_only_the_reference(monkeypatch):
    probes = dict.fromkeys(kernels._PROBES, lambda: Availability(False, "missing"))
    monkeypatch.setattr(kernels, "_PROBES", probes)
    kernels._choose.cache_clear()
    assert "served by its reference" in reasons()["decode"]


def test_attention_of_a_library_that_is_forced_is_planned_on_the_host():
    with kernels.force(mla_decode_attention="flashinfer"):
        found = reasons()
    assert found == {
        "decode": "flashinfer, which is forced, plans mla_decode_attention on the host"
    }


def test_a_cpu_has_no_graphs():
    assert "need a CUDA device" in reasons(device="cpu")["general"]


def test_attention_that_is_not_mla_stays_out_of_full_graphs():
    found = reasons(kind="gqa")
    assert set(found) == {"decode"} and "choose PIECEWISE" in found["decode"]
