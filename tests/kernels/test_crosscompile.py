"""Every kernel compiles for every target without spills. `pytest -s` prints what each takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

from mlalab_kernels import triton_math
from mlalab_kernels.crosscompile import TARGETS, Resources, Target, resources_of
from mlalab_kernels.launch import Launch, clamp_of, launch, recording
from mlalab_kernels.rotary_embedding.triton_kernel import _rotate_heads
from tests.kernels.specialisations import CALLS

KERNELS = Path(__file__).resolve().parents[2] / "kernels" / "mlalab_kernels"
FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.fixture(scope="module")
def report() -> Iterator[list[tuple[str, Resources]]]:
    rows: list[tuple[str, Resources]] = []
    yield rows
    header = ("call", *(field.name for field in dataclasses.fields(Resources)))
    lines = [header, *((call, *map(str, dataclasses.astuple(found))) for call, found in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("", *(cell.ljust(width) for cell, width in zip(line, widths, strict=True)), sep="  ")


def launches_of(call, target: Target) -> list[Launch]:
    with recording(target.name) as launches:
        call(target.fp8_dtype)
    return launches


def complaint(call: str, found: Resources, target: Target) -> str | None:
    """Return a sentence about what a kernel takes too much of, or None."""
    where = f"{found.kernel}, as launched by {call!r},"
    if found.shared_bytes > target.shared_limit:
        return (
            f"{where} takes {found.shared_bytes} bytes of shared memory on {found.target}, which "
            f"has {target.shared_limit}: try smaller blocks or fewer stages."
        )
    if not found.spills and not found.scratch_bytes:
        return None
    unit = "bytes" if target.gpu.backend == "cuda" else "registers"
    return (
        f"{where} spills {found.spills} {unit} on {found.target} ({found.registers} registers, "
        f"{found.scratch_bytes} bytes of scratch for each thread): try smaller blocks or more "
        "warps."
    )


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("call", CALLS)
def test_compiles_without_spills(call, target, report):
    launches = launches_of(CALLS[call], target)
    assert launches, f"{call!r} of specialisations.py launched nothing, so nothing was compiled."
    for launched in launches:
        found = resources_of(launched, target)
        report.append((call, found))
        if wrong := complaint(call, found, target):
            pytest.fail(wrong, pytrace=False)


def test_every_kernel_has_a_row():
    recorded = {x.kernel.fn.__module__ for c in CALLS.values() for x in launches_of(c, TARGETS[0])}
    for path in sorted(KERNELS.glob("*/triton_kernel.py")):
        module = f"mlalab_kernels.{path.parent.name}.triton_kernel"
        assert module in recorded, (
            f"{module} is compiled for no target: add a call of it to CALLS in "
            "tests/kernels/specialisations.py."
        )


def calls(function: JITFunction, wanted: JITFunction) -> bool:
    """Whether `function` calls `wanted`, itself or through others."""
    named = [function.fn.__globals__.get(name) for name in function.fn.__code__.co_names]
    inner = [f for f in named if isinstance(f, JITFunction) and f is not function]
    return wanted in inner or any(calls(f, wanted) for f in inner)


@pytest.mark.parametrize("call", CALLS)
def test_rotation_is_compiled_without_fused_multiply_adds(call):
    """The interpreter never fuses, so no comparison on the CPU would notice."""
    for launched in launches_of(CALLS[call], TARGETS[0]):
        exact = launched.options.get("enable_fp_fusion") is False
        assert exact or not calls(launched.kernel, triton_math.rotated), (
            f"{launched.kernel.fn.__name__}, as launched by {call!r}, rotates: launch it with "
            "enable_fp_fusion=False, to round as the reference does."
        )


def test_calls_are_followed():
    assert calls(_rotate_heads, triton_math.rotated)
    assert not calls(_rotate_heads, triton_math.stored)


@triton.jit
def keep_all(x_ptr, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i)
    tl.store(out_ptr + i, x - tl.max(x, 0))


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_a_spill_is_noticed(target):
    """One warp cannot hold 512 values for each of its threads."""
    size = 512 * target.gpu.warp_size
    args = (torch.empty(size), torch.empty(size))
    few, many = (
        resources_of(Launch(keep_all, (1,), args, {"N": size, "num_warps": warps}), target)
        for warps in (16, 1)
    )
    assert complaint("few", few, target) is None
    assert many.spills > 0
    sentence = complaint("many", many, target)
    assert sentence.startswith(f"keep_all, as launched by 'many', spills {many.spills} ")
    assert f" on {target.name} " in sentence


@triton.jit
def square(x_ptr, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    at = i[:, None] * N + i[None, :]
    x = tl.load(x_ptr + at)
    tl.store(out_ptr + at, tl.dot(x, x))


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_too_much_shared_memory_is_noticed(target):
    args = torch.empty(64, 64, dtype=torch.bfloat16), torch.empty(64, 64)
    found = resources_of(Launch(square, (1,), args, {"N": 64}), target)
    assert found.shared_bytes >= 64 * 64 * 2
    enough = dataclasses.replace(target, shared_limit=found.shared_bytes)
    assert complaint("it", found, enough) is None
    less = dataclasses.replace(target, shared_limit=found.shared_bytes - 1)
    sentence = complaint("it", found, less)
    assert f"takes {found.shared_bytes} bytes of shared memory on {target.name}" in sentence


@triton.jit
def quantise(x_ptr, out_ptr, n, N: tl.constexpr, LARGEST: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    x = tl.load(x_ptr + i, mask=i < n)
    if LARGEST > 0:
        x = tl.clamp(x, -LARGEST, LARGEST, propagate_nan=tl.PropagateNan.ALL)
    tl.store(out_ptr + i, x.to(out_ptr.dtype.element_ty), mask=i < n)


def quantised(fp8_dtype):
    out = torch.empty(100, dtype=fp8_dtype)
    args = (torch.ones(100), out, 100)
    launch(quantise, (1,), *args, N=128, LARGEST=clamp_of(out), num_warps=2)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_fp8_is_that_of_the_target(target):
    (launched,) = launches_of(quantised, target)
    assert launched.args[1].dtype == (FNUZ if target.name == "gfx942" else FN)
    largest = {"sm_90": 0.0, "gfx942": 240.0, "gfx950": 448.0}[target.name]
    assert launched.options["LARGEST"] == largest
    assert resources_of(launched, target).warps == 2


def test_the_fp8_type_of_another_target_does_not_compile():
    """On CUDA; AMD's compiler emulates what its hardware lacks."""
    with recording("cuda") as launches:
        quantised(FNUZ)
    with pytest.raises(triton.CompilationError, match="fp8e4b8 not supported"):
        resources_of(launches[0], TARGETS[0])


def test_recording_runs_nothing_and_ends():
    x, out = torch.ones(4), torch.zeros(4)
    with recording("cuda") as launches:
        launch(keep_all, (1,), x, out, N=4)
        launch(keep_all, (0,), x, out, N=4)
    assert [(r.kernel, r.grid, r.options) for r in launches] == [(keep_all, (1,), {"N": 4})]
    assert launches[0].args == (x, out)
    assert out.tolist() == [0.0] * 4
    launch(keep_all, (1,), x + torch.arange(4), out, N=4)
    assert out.tolist() == [-3.0, -2.0, -1.0, 0.0]
    assert len(launches) == 1


def test_recording_ends_after_an_error():
    with pytest.raises(ZeroDivisionError), recording("hip"):
        assert clamp_of(torch.empty(0, dtype=FN)) == 448.0
        raise ZeroDivisionError
    launch(keep_all, (1,), torch.ones(4), out := torch.ones(4), N=4)
    assert out.tolist() == [0.0] * 4
