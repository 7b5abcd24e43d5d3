"""Triton's interpreter, made exact for bf16 and FP8 and usable beside the compiler.

The stock interpreter computes on the bit patterns of bf16, truncates where the hardware rounds,
and is wrong for FP8; it also needs an environment variable before Triton is imported, after which
nothing can be compiled. While a kernel runs here, and only then, conversions go through torch,
bf16 operands are widened to fp32 and rounded back, and every `@triton.jit` function in reach is
swapped for its interpreted twin. Private parts of Triton are used here and nowhere else.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
import triton.experimental.gluon  # imported lazily by Triton otherwise, amid the swap
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle
from triton.runtime.jit import JITFunction

_TORCH = {
    tl.bfloat16: torch.bfloat16,
    tl.float16: torch.float16,
    tl.float32: torch.float32,
    tl.float64: torch.float64,
    tl.float8e4nv: torch.float8_e4m3fn,
    tl.float8e4b8: torch.float8_e4m3fnuz,
    tl.float8e5: torch.float8_e5m2,
}
_FP8 = (tl.float8e4nv, tl.float8e4b8, tl.float8e5)
_UINT = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
_TORCH_BITS = {8: torch.uint8, 16: torch.int16, 32: torch.int32, 64: torch.int64}
_COMPARISONS = {
    *(np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal),
}
_BITWISE = {np.bitwise_and, np.bitwise_or, np.bitwise_xor, np.left_shift, np.right_shift}
_LOCK = threading.RLock()
_twins: dict[Any, InterpretedFunction] = {}


def interpret(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Run `kernel` over `grid` on CPU tensors, one program after the other."""
    with _LOCK, _interpreting(kernel):
        _twin(kernel)[grid](*args, **options)


def _convert(bits: np.ndarray, source: Any, target: Any, rounding: Any) -> np.ndarray:
    """Return the bits of `target` nearest to values given as bits of `source`.

    A conversion to FP8 saturates and keeps NaN, as the hardware's does.
    """
    width = source.primitive_bitwidth
    signed = np.ascontiguousarray(bits).reshape(-1).view(_UINT[width])
    values = torch.from_numpy(signed.copy().view(f"int{width}" if width > 8 else np.uint8))
    values = values.view(_TORCH[source])
    if target in _FP8 and source not in _FP8:
        largest = torch.finfo(_TORCH[target]).max
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        values = values.clamp(-largest, largest)
    width = target.primitive_bitwidth
    converted = values.to(_TORCH[target]).view(_TORCH_BITS[width])
    return converted.numpy().view(_UINT[width]).reshape(bits.shape)


def _convert_float(bits: np.ndarray, source: Any, target: Any, rounding: Any) -> np.ndarray:
    narrows = source.primitive_bitwidth > target.primitive_bitwidth
    towards_zero = narrows and rounding == interpreter._ir.ROUNDING_MODE.RTZ
    if towards_zero or source not in _TORCH or target not in _TORCH:
        return _STOCK_CONVERT(bits, source, target, rounding)
    return _convert(bits, source, target, rounding)


def _is_bf16(handle: Any) -> bool:
    return bool(handle.dtype.scalar == tl.bfloat16)


def _wide(handle: Any) -> np.ndarray:
    """The values in fp32 where they are bf16 or FP8, whose bits numpy cannot compute with."""
    scalar = handle.dtype.scalar
    if scalar == tl.bfloat16 or scalar in _FP8:
        return _convert(handle.data, scalar, tl.float32, None).view(np.float32)
    return handle.data


def _narrow(values: np.ndarray) -> np.ndarray:
    return _convert(np.asarray(values, dtype=np.float32), tl.float32, tl.bfloat16, None)


def _binary_op(self: Any, left: Any, right: Any, op: Any) -> Any:
    if not _is_bf16(left) or op in _BITWISE:
        return _STOCK["binary_op"](self, left, right, op)
    result = op(_wide(left), _wide(right))
    kept = result if op in _COMPARISONS else _narrow(result)
    return TensorHandle(kept, left.dtype.scalar)


def _unary_op(self: Any, value: Any, op: Any) -> Any:
    if not _is_bf16(value):
        return _STOCK["unary_op"](self, value, op)
    return TensorHandle(_narrow(op(_wide(value))), value.dtype.scalar)


def _ternary_op(self: Any, a: Any, b: Any, c: Any, op: Any) -> Any:
    if not _is_bf16(c) or op is np.where:
        return _STOCK["ternary_op"](self, a, b, c, op)
    return TensorHandle(_narrow(op(_wide(a), _wide(b), _wide(c))), c.dtype.scalar)


def _create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
    result = _wide(x) * _wide(y) + _wide(z)
    return TensorHandle(_narrow(result) if _is_bf16(z) else result, z.dtype.scalar)


def _create_dot(self: Any, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> Any:
    product = np.matmul(_wide(a), _wide(b), dtype=d.data.dtype)
    return TensorHandle(product + d.data, d.dtype.scalar)


def _cast_impl(self: Any, value: Any, dtype: Any) -> Any:
    source, target = value.dtype.scalar, dtype.scalar
    if tl.bfloat16 not in (source, target):
        return _STOCK["cast_impl"](self, value, dtype)
    if source in _TORCH and target in _TORCH:
        bits = _convert(value.data, source, target, None)
        return TensorHandle(bits.view(interpreter._get_np_dtype(dtype)), target)
    if source == tl.bfloat16:
        return _STOCK["cast_impl"](self, TensorHandle(_wide(value), tl.float32), dtype)
    return TensorHandle(_narrow(value.data.astype(np.float32)), target)


def _patch_lang_core(lang: Any, scope: Any) -> None:
    """Also teach the interpreter the FP8 type that it does not know."""
    _STOCK_PATCH(lang, scope)
    known = lang.dtype.to_ir

    def to_ir(self: Any, builder: Any) -> Any:
        return builder.get_fp8e4b8_ty() if self.name == "fp8e4b8" else known(self, builder)

    scope.set_attr(lang.dtype, "to_ir", to_ir)


def _device_call(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a device function and then give `triton.language` back, which the stock one does not."""
    scope = interpreter._patch_lang(self.fn)
    try:
        return self.rewrite()(*args, **kwargs)
    finally:
        scope.restore()


_BUILDER: dict[str, Callable[..., Any]] = {
    "binary_op": _binary_op,
    "unary_op": _unary_op,
    "ternary_op": _ternary_op,
    "create_fma": _create_fma,
    "create_dot": _create_dot,
    "cast_impl": _cast_impl,
}
_STOCK = {name: getattr(InterpreterBuilder, name) for name in _BUILDER}
_STOCK_CONVERT, _STOCK_PATCH = interpreter._convert_float, interpreter._patch_lang_core


def _twin(function: Any) -> InterpretedFunction:
    if function.fn not in _twins:
        _twins[function.fn] = InterpretedFunction(function.fn)
    return _twins[function.fn]


def _spaces(kernel: Any) -> list[dict[str, Any]]:
    """Return the globals of the kernel's module and of every module whose functions it calls."""
    found: list[dict[str, Any]] = []
    waiting = [kernel.fn.__globals__]
    while waiting:
        space = waiting.pop()
        if any(space is known for known in found):
            continue
        found.append(space)
        waiting += [f.fn.__globals__ for f in space.values() if isinstance(f, JITFunction)]
    return found


@contextlib.contextmanager
def _interpreting(kernel: Any) -> Iterator[None]:
    with contextlib.ExitStack() as undo:
        for name, function in _BUILDER.items():
            undo.enter_context(mock.patch.object(InterpreterBuilder, name, function))
        undo.enter_context(mock.patch.object(interpreter, "_convert_float", _convert_float))
        undo.enter_context(mock.patch.object(interpreter, "_patch_lang_core", _patch_lang_core))
        undo.enter_context(mock.patch.object(InterpretedFunction, "__call__", _device_call))
        for space in (vars(tl), vars(tl.standard), *_spaces(kernel)):
            undo.callback(space.update, _swap(space))
        for name, function in list(vars(tl.tensor).items()):
            if isinstance(function, JITFunction):
                undo.callback(setattr, tl.tensor, name, function)
                setattr(tl.tensor, name, _twin(function))
        yield


def _swap(space: dict[str, Any]) -> dict[str, Any]:
    """Put interpreted twins in place of compiled functions; return what was there."""
    before = {name: f for name, f in space.items() if isinstance(f, JITFunction)}
    space.update({name: _twin(f) for name, f in before.items()})
    return before
