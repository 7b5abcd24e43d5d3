"""What a recorded launch costs on a GPU that is not here: registers, shared memory, spills.

Triton compiles for a named target without the device, so that a kernel which no longer compiles, or
starts to spill, is noticed on any machine. It proves nothing of speed or of results.
"""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from mlalab_kernels._interpreter import LOCK
from mlalab_kernels.launch import Launch


@dataclass(frozen=True)
class Target:
    """A GPU by the name of its architecture.

    `fp8_dtype` is the type that it computes with; `shared_limit` the bytes of shared memory that
    one program may take, beyond which a kernel compiles but cannot be launched.
    """

    name: str
    gpu: GPUTarget
    fp8_dtype: torch.dtype
    shared_limit: int


TARGETS = (
    Target("sm_90", GPUTarget("cuda", 90, 32), torch.float8_e4m3fn, 227 * 1024),
    Target("gfx942", GPUTarget("hip", "gfx942", 64), torch.float8_e4m3fnuz, 64 * 1024),
    Target("gfx950", GPUTarget("hip", "gfx950", 64), torch.float8_e4m3fn, 160 * 1024),
)


@dataclass(frozen=True)
class Resources:
    """What one program of a compiled kernel takes.

    `registers` are 32 bits wide and per thread (AMD: VGPRs and AGPRs together). `spills` counts
    bytes stored and loaded again on CUDA, registers of either kind on AMD; `scratch_bytes` is the
    private memory of one thread, where spills and arrays live.
    """

    kernel: str
    target: str
    warps: int
    registers: int
    shared_bytes: int
    spills: int
    scratch_bytes: int


def resources_of(launch: Launch, target: Target) -> Resources:
    """Compile the very specialisation that `launch` would run on `target`.

    Raises:
        triton.CompilationError: the kernel does not compile for it.
    """
    # The interpreter and the compiler cannot use `triton.language` at once.
    with LOCK:
        compiled, log = _compile(launch, target)
    numbers = _from_ptxas(log) if target.gpu.backend == "cuda" else _from_amdgcn(compiled)
    return Resources(
        kernel=launch.kernel.fn.__name__,
        target=target.name,
        warps=compiled.metadata.num_warps,
        shared_bytes=compiled.metadata.shared,
        **numbers,
    )


def _compile(launch: Launch, target: Target) -> tuple[Any, str]:
    """Return the compiled kernel and the assembler's log, as a launch on a GPU would do it."""
    kernel, backend = launch.kernel, make_backend(target.gpu)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = bind(*launch.args, **launch.options)
    options, signature, constexprs, attributes = kernel._pack_args(
        backend, launch.options, bound, specialization, options
    )
    source = ASTSource(kernel, signature, constexprs, attributes)
    log = io.StringIO()
    # The log is printed by a compilation only, never for a kernel found in the cache.
    with (
        triton.knobs.compilation.scope(),
        triton.knobs.nvidia.scope(),
        contextlib.redirect_stdout(log),
    ):
        triton.knobs.compilation.always_compile = True
        triton.knobs.nvidia.dump_ptxas_log = True
        compiled = triton.compile(source, target=target.gpu, options=options.__dict__)
    return compiled, log.getvalue()


def _from_ptxas(log: str) -> dict[str, int]:
    stored = _number(r"(\d+) bytes spill stores", log)
    return {
        "registers": _number(r"Used (\d+) registers", log),
        "spills": stored + _number(r"(\d+) bytes spill loads", log),
        "scratch_bytes": _number(r"(\d+) bytes stack frame", log),
    }


def _from_amdgcn(compiled: Any) -> dict[str, int]:
    text = compiled.asm["amdgcn"]
    vector = _number(r"\.vgpr_spill_count:\s+(\d+)", text)
    return {
        "registers": _number(r"\.vgpr_count:\s+(\d+)", text),
        "spills": vector + _number(r"\.sgpr_spill_count:\s+(\d+)", text),
        "scratch_bytes": _number(r"\.private_segment_fixed_size:\s+(\d+)", text),
    }


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"no {pattern!r} in what Triton {triton.__version__} reports:\n{text}")
    return int(found[1])
