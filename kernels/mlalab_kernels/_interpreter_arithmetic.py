"""The arithmetic of Triton's interpreter, corrected: what `PATCHES` puts in its place.

The stock interpreter computes on the bit patterns of bf16, truncates where the hardware rounds, is
wrong for FP8, and lets NaN win every minimum. Here conversions go through torch, bf16 operands are
widened to fp32 and rounded back, and minima treat NaN as the hardware does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, ReduceScanOpInterface, TensorHandle

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


def _convert(bits: np.ndarray, source: Any, target: Any) -> np.ndarray:
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
    return _convert(bits, source, target)


def _is_bf16(handle: Any) -> bool:
    return bool(handle.dtype.scalar == tl.bfloat16)


def _wide(handle: Any) -> np.ndarray:
    """The values in fp32 where they are bf16 or FP8, whose bits numpy cannot compute with."""
    scalar = handle.dtype.scalar
    if scalar == tl.bfloat16 or scalar in _FP8:
        return _convert(handle.data, scalar, tl.float32).view(np.float32)
    return handle.data


def _narrow(values: np.ndarray) -> np.ndarray:
    return _convert(np.asarray(values, dtype=np.float32), tl.float32, tl.bfloat16)


def _binary_op(self: Any, left: Any, right: Any, op: Any) -> Any:
    if not _is_bf16(left) or op in _BITWISE:
        return _STOCK_BINARY(self, left, right, op)
    result = op(_wide(left), _wide(right))
    kept = result if op in _COMPARISONS else _narrow(result)
    return TensorHandle(kept, left.dtype.scalar)


def _create_minnumf(self: Any, left: Any, right: Any) -> Any:
    return self.binary_op(left, right, np.fmin)


def _create_maxnumf(self: Any, left: Any, right: Any) -> Any:
    return self.binary_op(left, right, np.fmax)


def _create_clampf(self: Any, x: Any, low: Any, high: Any, propagate_nan: Any) -> Any:
    if propagate_nan == interpreter._ir.PROPAGATE_NAN.ALL:
        return self.ternary_op(x, low, high, np.clip)
    return self.create_minnumf(self.create_maxnumf(x, low), high)


def _create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
    """Multiply and add in fp64, where a product of fp32 is exact; stock rounds it."""
    x_64, y_64, z_64 = (_wide(part).astype(np.float64) for part in (x, y, z))
    result = x_64 * y_64 + z_64
    return TensorHandle(
        _narrow(result) if _is_bf16(z) else result.astype(z.data.dtype), z.dtype.scalar
    )


def _create_dot(self: Any, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> Any:
    product = np.matmul(_wide(a), _wide(b), dtype=d.data.dtype)
    return TensorHandle(product + d.data, d.dtype.scalar)


def _cast_impl(self: Any, value: Any, dtype: Any) -> Any:
    source, target, data = value.dtype.scalar, dtype.scalar, value.data
    if target != tl.bfloat16 and target not in _FP8:
        return _STOCK_CAST(self, value, dtype)
    if source not in _TORCH:
        source, data = tl.float32, data.astype(np.float32)
    return TensorHandle(_convert(data, source, target), target)


def _get_bf16(self: Any, value: float) -> Any:
    return TensorHandle(_narrow(np.array([value])), tl.bfloat16)


def _patch_lang_core(lang: Any, scope: Any) -> None:
    """Also teach the interpreter the FP8 type that it does not know, and numbers as loop bounds.

    Triton 3.6 turns an array of one element into a number as numpy 2.4 no longer allows.
    """
    _STOCK_PATCH(lang, scope)
    known = lang.dtype.to_ir

    def to_ir(self: Any, builder: Any) -> Any:
        return builder.get_fp8e4b8_ty() if self.name == "fp8e4b8" else known(self, builder)

    scope.set_attr(lang.dtype, "to_ir", to_ir)
    scope.set_attr(lang.tensor, "__index__", lambda self: int(self.handle.data.item()))


def _check_tensor(self: Any, inputs: Any) -> None:
    """Refuse to reduce bf16 or FP8, whose bits the interpreter would add."""
    _STOCK_CHECK(self, inputs)
    for x in inputs:
        if x.dtype == tl.bfloat16 or x.dtype in _FP8:
            raise TypeError(
                f"a reduction or scan of {x.dtype} rounds after every step, in an order that "
                "only the hardware knows; widen with `.to(tl.float32)` first"
            )


_BUILDER: dict[str, Callable[..., Any]] = {
    "binary_op": _binary_op,
    "create_minnumf": _create_minnumf,
    "create_maxnumf": _create_maxnumf,
    "create_clampf": _create_clampf,
    "create_fma": _create_fma,
    "create_dot": _create_dot,
    "cast_impl": _cast_impl,
    "get_bf16": _get_bf16,
}
_STOCK_BINARY, _STOCK_CAST = InterpreterBuilder.binary_op, InterpreterBuilder.cast_impl
_STOCK_CONVERT, _STOCK_PATCH = interpreter._convert_float, interpreter._patch_lang_core
_STOCK_CHECK = ReduceScanOpInterface.check_tensor

# (owner, name, what stands there while a kernel is interpreted)
PATCHES: list[tuple[Any, str, Callable[..., Any]]] = [
    *((InterpreterBuilder, name, function) for name, function in _BUILDER.items()),
    (interpreter, "_convert_float", _convert_float),
    (interpreter, "_patch_lang_core", _patch_lang_core),
    (ReduceScanOpInterface, "check_tensor", _check_tensor),
]
