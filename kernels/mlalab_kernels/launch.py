"""Running a Triton kernel where its tensors lie: compiled on a GPU, interpreted on the CPU."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mlalab_kernels.numerics import FP8_DTYPES


@dataclass(frozen=True)
class Launch:
    """One call of `launch`, with its very arguments."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    options: dict[str, Any]


@dataclass(frozen=True)
class _Recorder:
    arch: str
    launches: list[Launch]


_RECORDER: ContextVar[_Recorder | None] = ContextVar("recorder", default=None)


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Launch `kernel[grid](*args, **options)`; an empty grid launches nothing.

    Args:
        args, options: the kernel's arguments, at least one tensor among `args`; `options` may also
            hold the compiler's (`num_warps`, `enable_fp_fusion`, ...), which the interpreter has
            no use for.
    """
    if 0 in grid:
        return
    if recorder := _RECORDER.get():
        recorder.launches.append(Launch(kernel, grid, args, options))
        return
    device = next(x.device for x in args if isinstance(x, Tensor))
    if device.type == "cpu":
        from mlalab_kernels._interpreter import interpret

        interpret(kernel, grid, *args, **options)
    else:
        with torch.cuda.device(device):
            kernel[grid](*args, **options)


@contextlib.contextmanager
def recording(arch: str) -> Iterator[list[Launch]]:
    """Collect the launches of this thread in the list given, and run none of them.

    Args:
        arch: `"sm_90"`, `"gfx942"`, ..., for which a wrapper is to choose its kernels' arguments.
    """
    recorder = _Recorder(arch, [])
    token = _RECORDER.set(recorder)
    try:
        yield recorder.launches
    finally:
        _RECORDER.reset(token)


def arch_of(device: torch.device) -> str:
    """Return `sm_90`, `gfx942`, ..., or `cpu`; inside `recording`, what is recorded for."""
    if recorder := _RECORDER.get():
        return recorder.arch
    return "cpu" if device.type == "cpu" else _arch_of_gpu(device)


def arch_of_gpu(device: torch.device) -> str:
    """Return what the driver calls a GPU's architecture: `sm_90`, `gfx942`."""
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return str(properties.gcnArchName).split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


_arch_of_gpu = functools.cache(arch_of_gpu)


def clamp_of(out: Tensor) -> float:
    """Return the bound that a kernel must clamp to before it stores to `out`, 0 for none.

    NVIDIA's conversion to FP8 saturates; elsewhere one that overflows may become NaN.
    """
    saturates = arch_of(out.device).startswith("sm_")
    return 0.0 if saturates or out.dtype not in FP8_DTYPES else torch.finfo(out.dtype).max
