"""What the machine is said to be, on machines that are not this one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from mlalab import env

ROOT = Path(__file__).resolve().parents[1]
PROBE = """
import torch
from mlalab.env import probe_aiter

torch.version.hip = None
probe = probe_aiter()
print(probe.usable, "|", probe.detail)
"""
IMPOSTOR = "Summary: Useful patterns building upon asynchronous iteration"
AMD = "Summary: AI Tensor Engine for ROCm"


def probe_with(site: Path, summary: str, code: str = "raise SystemExit('imported')") -> str:
    """Return what a fresh interpreter says with a package called `aiter` on its path."""
    package, info = site / "aiter", site / "aiter-0.13.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "__init__.py").write_text(code, encoding="utf-8")
    metadata = f"Metadata-Version: 2.1\nName: aiter\nVersion: 0.13\n{summary}\n"
    (info / "METADATA").write_text(metadata, encoding="utf-8")
    path = os.pathsep.join((str(site), str(ROOT), str(ROOT / "kernels")))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROBE],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_pypi_impostor_is_recognised_and_never_imported(tmp_path):
    said = probe_with(tmp_path, IMPOSTOR)
    assert said.startswith("False | the installed 'aiter' is PyPI's async-iterator package")
    assert "github.com/ROCm/aiter" in said


@pytest.mark.parametrize("summary", [AMD, "Author: nobody"])
def test_real_package_without_rocm_is_never_imported(tmp_path, summary):
    assert probe_with(tmp_path, summary) == "False | installed, but this torch is not a ROCm build"


def test_absent(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    probe = env.probe_aiter()
    assert not probe.usable
    assert probe.detail.startswith("not installed")


@pytest.mark.parametrize(
    ("attributes", "usable", "detail"),
    [
        ({"fused_qk_rope_concat_and_cache_mla": print}, True, "ready"),
        ({}, False, "installed, but too old: it has no fused_qk_rope_concat_and_cache_mla"),
    ],
)
def test_on_rocm_the_call_must_be_there(monkeypatch, attributes, usable, detail):
    module = types.ModuleType("aiter")
    module.__dict__.update(attributes)
    module.__spec__ = importlib.util.spec_from_loader("aiter", loader=None)
    monkeypatch.setitem(sys.modules, "aiter", module)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert env.probe_aiter() == env.Availability(usable, detail)


def test_on_rocm_a_failing_import_is_reported(monkeypatch, tmp_path):
    (tmp_path / "aiter.py").write_text("raise OSError('libhip.so')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert env.probe_aiter() == env.Availability(False, "import failed: libhip.so")


@pytest.mark.parametrize(
    ("arch", "dtype"),
    [
        ("gfx942", torch.float8_e4m3fnuz),
        ("gfx941", torch.float8_e4m3fnuz),
        ("gfx950", torch.float8_e4m3fn),
        ("gfx1201", torch.float8_e4m3fn),
        ("sm_90", torch.float8_e4m3fn),
        ("x86_64", torch.float8_e4m3fn),
    ],
)
def test_fp8_type_follows_the_architecture(monkeypatch, arch, dtype):
    monkeypatch.setattr(env, "arch", lambda device=None: arch)
    assert env.fp8_dtype() == dtype


@pytest.mark.parametrize(
    ("hip", "properties", "arch"),
    [
        ("7.0", types.SimpleNamespace(gcnArchName="gfx942:sramecc+:xnack-"), "gfx942"),
        (None, types.SimpleNamespace(major=9, minor=0), "sm_90"),
    ],
)
def test_arch_of_an_accelerator(monkeypatch, hip, properties, arch):
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert env.arch("cuda") == arch


def test_a_cpu_is_named_after_its_processor():
    assert env.arch("cpu") == os.uname().machine


@pytest.mark.parametrize("present", [True, False])
def test_default_device(monkeypatch, present):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present)
    assert env.default_device().type == ("cuda" if present else "cpu")


def test_flashinfer_absent(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert env.probe_flashinfer().detail.startswith("not installed; only used on CUDA")


@pytest.mark.parametrize(
    ("gpu", "hip", "attributes", "usable", "detail"),
    [
        (False, None, {}, False, "installed, but this torch sees no NVIDIA GPU"),
        (True, "7.0", {}, False, "installed, but this torch sees no NVIDIA GPU"),
        (True, None, {}, False, "installed, but too old: mlalab calls it as of 0.7.2"),
        (True, None, {"MLAPlanMetadata": print}, True, "ready"),
    ],
)
def test_flashinfer_present(monkeypatch, gpu, hip, attributes, usable, detail):
    for name in ("flashinfer", "flashinfer.mla"):
        module = types.ModuleType(name)
        module.__spec__ = importlib.util.spec_from_loader(name, loader=None)
        module.__dict__.update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert env.probe_flashinfer() == env.Availability(usable, detail)


def test_a_failing_import_of_flashinfer_is_reported(monkeypatch, tmp_path):
    (tmp_path / "flashinfer.py").write_text("raise OSError('libcudart')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert env.probe_flashinfer() == env.Availability(False, "import failed: libcudart")


def test_report_is_short_lines():
    report = env.report()
    assert {"torch", "triton", "device", "arch", "fp8", "aiter"} <= set(report)
    assert report["torch"] == torch.__version__
    assert all(value and "\n" not in value for value in report.values())
    assert env._version("no-such-package") == "not installed"
