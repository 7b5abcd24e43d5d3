"""Nothing stays swapped after an interpreted launch, and the compiler works beside it."""

from __future__ import annotations

import inspect
import sys
import threading
import traceback

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.errors import InterpreterError
from triton.runtime.jit import JITFunction

from mlalab_kernels import triton_math
from mlalab_kernels._interpreter import interpret
from mlalab_kernels.crosscompile import TARGETS, resources_of
from mlalab_kernels.launch import Launch


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@triton.jit
def total(x_ptr, out_ptr, N: tl.constexpr):
    row = tl.program_id(0)
    x = tl.load(x_ptr + row * N + tl.arange(0, N))
    x = triton_math.rounded(x, tl.bfloat16)
    x = tl.sum(x + tl.zeros_like(x), 0)
    tl.store(out_ptr + row, x)


@triton.jit
def fails(x_ptr, out_ptr, AT: tl.constexpr):
    if tl.program_id(0) == AT:
        tl.store(out_ptr + 0, fails_inside(x_ptr))


@triton.jit
def fails_inside(x_ptr):
    return tl.load(x_ptr + tl.arange(0, 3))


def language():
    """Return all that an interpreted launch swaps or patches: owner, name → object."""
    owners = [
        *(tl, tl.core, tl.standard, tl.math, tl.tensor, tl.dtype, triton_math),
        *(sys.modules[__name__], interpreter, interpreter.InterpreterBuilder),
        *(interpreter.InterpretedFunction, interpreter.ReduceScanOpInterface),
        tl.core.tensor_descriptor_base,
    ]
    # Inherited attributes count: Triton gives a class back its base's `__repr__` as its own.
    names = [(owner, name) for owner in owners for name in dir(owner) if name != "__annotations__"]
    return {(owner, name): inspect.getattr_static(owner, name) for owner, name in names}


def assert_given_back(before):
    after = language()
    assert {key[1] for key in after.keys() ^ before.keys()} == set()
    assert [key[1] for key in after if after[key] is not before[key]] == []


def run_total(rows=3):
    x, out = torch.randn(rows, 64), torch.empty(rows)
    interpret(total, (rows,), x, out, N=64)
    torch.testing.assert_close(out, x.bfloat16().float().sum(-1))


def test_everything_is_given_back():
    before = language()
    swapped = [value for value in before.values() if isinstance(value, JITFunction)]
    assert total in swapped
    assert len(swapped) > 30
    for _ in range(2):
        run_total()
        assert_given_back(before)


@pytest.mark.parametrize("grid", [(2,), (1, 0)])
def test_everything_is_given_back_after_an_error(grid):
    before = language()
    with pytest.raises((InterpreterError, TypeError)):
        interpret(fails, grid, torch.ones(4), torch.ones(1), **({"AT": 1} if 0 not in grid else {}))
    assert_given_back(before)
    run_total()


def test_an_error_names_kernel_program_and_line():
    with pytest.raises(InterpreterError) as caught:
        interpret(fails, (3,), torch.ones(4), torch.ones(1), AT=2)
    message = str(caught.value)
    assert message.startswith("fails, program (2, 0, 0) of grid (3,): ValueError: ")
    assert "power of 2" in message
    lines = [f.line for f in traceback.extract_tb(caught.value.__cause__.__traceback__)]
    assert "tl.store(out_ptr + 0, fails_inside(x_ptr))" in lines
    assert "return tl.load(x_ptr + tl.arange(0, 3))" in lines


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_compiles_after_an_interpreted_launch(target):
    run_total()
    launch = Launch(total, (3,), (torch.ones(3, 64), torch.ones(3)), {"N": 64})
    assert resources_of(launch, target).registers > 0
    run_total()


def test_threads_may_interpret_and_compile_at_once():
    failed = []

    def work(function):
        try:
            for _ in range(4):
                function()
        except BaseException as error:
            failed.append(error)

    # Recorded before the other threads start, as its kernel is looked up by name.
    launch = Launch(total, (3,), (torch.ones(3, 64), torch.ones(3)), {"N": 64})

    def compiled():
        resources_of(launch, TARGETS[1])

    before = language()
    threads = [threading.Thread(target=work, args=(f,)) for f in (run_total, run_total, compiled)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    assert_given_back(before)


@triton.jit
def double(x_ptr, stride, B: tl.constexpr):
    at = x_ptr + tl.program_id(0) * stride + tl.arange(0, B)
    tl.store(at, tl.load(at) * 2.0)


def test_a_view_is_written_in_place_and_nothing_beside_it():
    base = torch.arange(60.0).view(5, 12)
    expected = base.clone()
    expected[1:4, 3:7] *= 2
    interpret(double, (3,), base[1:4, 3:7], base.stride(0), B=4)
    assert torch.equal(base, expected)


def test_overflow_and_nan_warn_no_one():
    x = torch.tensor([3e38, torch.inf, torch.nan, 1.0])
    interpret(double, (1,), x, 4, B=4)
    assert x.tolist()[:2] == [torch.inf, torch.inf]
