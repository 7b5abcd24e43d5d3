"""What this machine is: device, architecture, FP8 type, libraries. The only place that asks."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
from dataclasses import dataclass

import torch

from mlalab.errors import ConfigError
from mlalab_kernels.launch import arch_of_gpu

_FNUZ_ARCH_PREFIX = "gfx94"


def default_device() -> torch.device:
    """Return the accelerator when there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_named(name: str | None) -> torch.device:
    """Return the device called `name`, or the default one.

    Raises:
        ConfigError: no such device, or not on this machine.
    """
    if name is None:
        return default_device()
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise ConfigError(f"Cannot use device {name!r}: {reason}") from error
    return device


def arch(device: torch.device | str | None = None) -> str:
    """Return the architecture name: `gfx942`, `sm_90`, or the processor's for a CPU."""
    device = torch.device(device) if device is not None else default_device()
    return arch_of_gpu(device) if device.type == "cuda" else platform.machine()


def fp8_dtype(device: torch.device | str | None = None) -> torch.dtype:
    """Return the FP8 type that cache bytes mean on `device`.

    gfx94x has its own format (no negative zero, other bias); everything else uses e4m3fn.
    """
    if arch(device).startswith(_FNUZ_ARCH_PREFIX):
        return torch.float8_e4m3fnuz
    return torch.float8_e4m3fn


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether something can be used here, and one sentence on why or why not."""

    usable: bool
    detail: str


def probe_triton() -> Availability:
    """Look for Triton without importing it."""
    if importlib.util.find_spec("triton") is None:
        return Availability(False, "not installed; there are builds for Linux only")
    return Availability(True, "ready")


def probe_aiter() -> Availability:
    """Look for AMD's AITER without importing it where it cannot work.

    The PyPI project called `aiter` is an unrelated async-iterator package.
    """
    if importlib.util.find_spec("aiter") is None:
        return Availability(False, "not installed; only used on ROCm, from github.com/ROCm/aiter")
    if _is_pypi_impostor():
        return Availability(
            False,
            "the installed 'aiter' is PyPI's async-iterator package, not AMD's; uninstall it and "
            "build github.com/ROCm/aiter",
        )
    if not torch.version.hip:
        return Availability(False, "installed, but this torch is not a ROCm build")
    return _import_aiter()


def _is_pypi_impostor() -> bool:
    try:
        summary = str(importlib.metadata.metadata("aiter").json.get("summary", "")).lower()
    except importlib.metadata.PackageNotFoundError:
        return False
    return "iter" in summary and "rocm" not in summary


def _import_aiter() -> Availability:
    try:
        import aiter
    except (ImportError, RuntimeError, OSError) as error:
        return Availability(False, f"import failed: {error}")
    if not hasattr(aiter, "fused_qk_rope_concat_and_cache_mla"):
        return Availability(
            False, "installed, but too old: it has no fused_qk_rope_concat_and_cache_mla"
        )
    return Availability(True, "ready")


def probe_flashinfer() -> Availability:
    """Look for FlashInfer without importing it where it cannot work."""
    if importlib.util.find_spec("flashinfer") is None:
        return Availability(False, "not installed; only used on CUDA, for decode attention")
    if torch.version.hip or not torch.cuda.is_available():
        return Availability(False, "installed, but this torch sees no NVIDIA GPU")
    try:
        mla = importlib.import_module("flashinfer.mla")
    except (ImportError, RuntimeError, OSError) as error:
        return Availability(False, f"import failed: {error}")
    if not hasattr(mla, "MLAPlanMetadata"):
        return Availability(False, "installed, but too old: mlalab calls it as of 0.7.2")
    return Availability(True, "ready")


def report() -> dict[str, str]:
    """Return what matters about this machine, one short line per subject."""
    device = default_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "no accelerator found"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "transformers": _version("transformers"),
        "device": f"{device.type} ({name})",
        "arch": arch(device),
        "fp8": str(fp8_dtype(device)).removeprefix("torch."),
        "aiter": probe_aiter().detail,
        "flashinfer": probe_flashinfer().detail,
        "cores": str(torch.get_num_threads()),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
