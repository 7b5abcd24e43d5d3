"""What the interpreter's cure relies on in Triton, and that Triton still needs each part of it."""

from __future__ import annotations

import inspect
from unittest import mock

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter, jit
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder

from mlalab_kernels import _interpreter, triton_math
from mlalab_kernels._interpreter import interpret
from mlalab_kernels._interpreter_arithmetic import PATCHES

BF16 = torch.bfloat16

# (owner, name, parameters) of every private function that is replaced or called.
FUNCTIONS = [
    (interpreter, "_convert_float", "input input_dtype output_dtype rounding_mode"),
    (interpreter, "_patch_lang", "fn"),
    (interpreter, "_patch_lang_core", "lang scope"),
    (interpreter._LangPatchScope, "set_attr", "self obj name value"),
    (interpreter._LangPatchScope, "restore", "self"),
    (interpreter.TensorHandle, "__init__", "self data dtype attr"),
    (interpreter.ReduceScanOpInterface, "check_tensor", "self input"),
    (InterpreterBuilder, "binary_op", "self lhs rhs op"),
    (InterpreterBuilder, "ternary_op", "self lhs rhs other op"),
    (InterpreterBuilder, "cast_impl", "self src dst_type"),
    (InterpreterBuilder, "create_minnumf", "self lhs rhs"),
    (InterpreterBuilder, "create_maxnumf", "self lhs rhs"),
    (InterpreterBuilder, "create_clampf", "self arg lo hi propagate_nans"),
    (InterpreterBuilder, "create_fma", "self x y z"),
    (InterpreterBuilder, "create_dot", "self a b d input_precision max_num_imprecise_acc"),
    (InterpreterBuilder, "set_grid_idx", "self x y z"),
    (InterpreterBuilder, "get_fp8e4b8_ty", "self"),
    (InterpretedFunction, "__init__", "self fn kwargs"),
    (InterpretedFunction, "__call__", "self args kwargs"),
    (InterpretedFunction, "rewrite", "self"),
    (jit, "create_function_from_signature", "sig kparams backend"),
    (jit.JITFunction, "_pack_args", "self backend kwargs bound_args specialization options"),
]
VALUES = [
    (interpreter, "interpreter_builder"),
    (interpreter, "interpreter_semantic"),
    (interpreter._ir.ROUNDING_MODE, "RTZ"),
    (interpreter._ir.PROPAGATE_NAN, "ALL"),
    (triton.knobs.nvidia, "dump_ptxas_log"),
    (triton.knobs.compilation, "always_compile"),
]
ADVICE = (
    "Compare triton/runtime/interpreter.py and jit.py with those of Triton 3.7.1, then adapt "
    "mlalab_kernels/_interpreter.py, _interpreter_arithmetic.py or crosscompile.py."
)


def complaint(owner, name, parameters):
    """Return what is wrong with a private function, or None."""
    function = getattr(owner, name, None)
    where = f"Triton {triton.__version__}: {owner.__name__.rpartition('.')[2]}.{name}"
    if function is None:
        return f"{where} is gone, but the interpreter's cure needs it. {ADVICE}"
    found = " ".join(inspect.signature(function).parameters)
    return None if found == parameters else f"{where} takes ({found}), not ({parameters}). {ADVICE}"


def _named(value):
    """An id without an address: every test process must call a test the same."""
    return value if isinstance(value, str) else getattr(value, "__name__", type(value).__name__)


@pytest.mark.parametrize(("owner", "name", "parameters"), FUNCTIONS, ids=_named)
def test_private_functions_are_as_relied_upon(owner, name, parameters):
    if found := complaint(owner, name, parameters):
        pytest.fail(found, pytrace=False)


@pytest.mark.parametrize(("owner", "name"), VALUES, ids=_named)
def test_private_values_exist(owner, name):
    assert hasattr(owner, name), f"Triton {triton.__version__}: {owner}.{name} is gone. {ADVICE}"


def test_a_change_is_told_in_a_sentence():
    assert "_gone is gone, but" in complaint(interpreter, "_gone", "fn")
    assert "_patch_lang takes (fn), not (fn scope)" in complaint(
        interpreter, "_patch_lang", "fn scope"
    )


def test_every_patched_function_is_in_the_table():
    listed = {(owner, name) for owner, name, _ in FUNCTIONS}
    added = {(InterpreterBuilder, "get_bf16")}
    assert {(owner, name) for owner, name, _ in PATCHES} - added <= listed
    # Once Triton has it, the cure must go.
    assert not hasattr(InterpreterBuilder, "get_bf16")


@triton.jit
def probe(x_ptr, y_ptr, out_ptr, WHAT: tl.constexpr):
    i = tl.arange(0, 16)
    x, y = tl.load(x_ptr + i), tl.load(y_ptr + i)
    if WHAT == "binary_op":
        x = x + y
    elif WHAT == "create_minnumf":
        x = tl.minimum(x, y)
    elif WHAT == "create_maxnumf":
        x = tl.maximum(x, y)
    elif WHAT == "create_clampf":
        x = tl.clamp(x, -y, y)
    elif WHAT == "create_fma":
        x = tl.fma(x, x, y)
    elif WHAT == "create_dot":
        x = tl.sum(tl.dot(x[:, None] + y[None, :], y[None, :] + x[:, None]), 1)
    elif WHAT == "get_bf16":
        x = x * 1.5
    elif WHAT == "check_tensor":
        x = y + tl.sum(x, 0)
    tl.store(out_ptr + i, x.to(out_ptr.dtype.element_ty))


ONES, NANS = torch.ones(16), torch.full((16,), torch.nan)
# What must be right, by the patch that makes it so: inputs, the type of the output, its value.
NEEDED = {
    "binary_op": (ONES.to(BF16), ONES.to(BF16), BF16, 2.0),
    "create_minnumf": (NANS, ONES, torch.float32, 1.0),
    "create_maxnumf": (NANS, ONES, torch.float32, 1.0),
    "create_clampf": (NANS, ONES, torch.float32, -1.0),
    "create_fma": (ONES + 2**-20, -ONES, torch.float32, 2**-19 + 2**-40),
    "create_dot": (ONES.to(BF16), ONES.to(BF16), torch.float32, 16 * 64.0),
    "cast_impl": (ONES.int(), ONES, BF16, 1.0),
    "get_bf16": (ONES.to(BF16), ONES.to(BF16), BF16, 1.5),
    "_convert_float": (ONES * 125.2, ONES, torch.float8_e4m3fn, 128.0),
    "_patch_lang_core": (ONES * 500, ONES, torch.float8_e4m3fnuz, 240.0),
    "check_tensor": (ONES.to(BF16), ONES.to(BF16), BF16, None),
}


def is_right(what):
    x, y, dtype, expected = NEEDED[what]
    out = torch.empty(16, dtype=dtype)
    try:
        interpret(probe, (1,), x, y, out, WHAT=what)
    except triton.runtime.errors.InterpreterError as error:
        return expected is None and isinstance(error.__cause__, TypeError)
    return expected is not None and out.float().tolist() == [expected] * 16


def test_every_patch_has_a_probe():
    assert {name for _, name, _ in PATCHES} == set(NEEDED)


@pytest.mark.parametrize("what", NEEDED)
def test_the_cure_is_right(what):
    assert is_right(what)


@pytest.mark.parametrize("what", NEEDED)
def test_triton_is_still_wrong_without_it(what):
    others = [patch for patch in PATCHES if patch[1] != what]
    with mock.patch.object(_interpreter, "PATCHES", others):
        right = is_right(what)
    assert not right, (
        f"Triton {triton.__version__} is right without mlalab's own {what}: once every supported "
        "version is, take it out of PATCHES in mlalab_kernels/_interpreter_arithmetic.py."
    )


def test_a_device_call_still_leaves_the_language_patched():
    scope = interpreter._patch_lang(_interpreter._LANGUAGE)
    try:
        before = tl.dtype.to_ir
        with pytest.raises(interpreter.InterpreterError):
            InterpretedFunction(triton_math.inverse_of.fn)(None)
        left = tl.dtype.to_ir is not before
    finally:
        scope.restore()
    assert left, f"Triton {triton.__version__} restores it: take _device_call out of _interpreter."


def test_a_library_function_still_needs_the_swap():
    with pytest.raises(interpreter.InterpreterError, match="outside of the scope of a kernel"):
        InterpretedFunction(library.fn)[(1,)](torch.ones(16), torch.ones(1))


@triton.jit
def library(x_ptr, out_ptr):
    tl.store(out_ptr, tl.sum(tl.load(x_ptr + tl.arange(0, 16)), 0))
