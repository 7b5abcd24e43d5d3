"""Triton's interpreter, made exact for bf16 and FP8 and usable beside the compiler.

The stock one needs an environment variable before Triton is imported, after which nothing can be
compiled. Here its arithmetic is corrected (`_interpreter_arithmetic`), and while a kernel runs, and
only then, every `@triton.jit` function in reach is swapped for its interpreted twin. The private
parts of Triton that this leans on are checked by tests/kernels/test_interpreter_contract.py.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from mlalab_kernels._interpreter_arithmetic import PATCHES

# Triton would import it at the first launch, amid the swap.
importlib.import_module("triton.experimental.gluon")

_LANGUAGE = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})
LOCK = threading.RLock()
_twins: dict[Any, InterpretedFunction] = {}


def interpret(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Run `kernel` over `grid` on CPU tensors, one program after the other.

    One launch at a time: other threads wait for their turn. While it lasts, a `@triton.jit`
    function looked up by name elsewhere in this process may be its interpreted twin, which this
    function takes as well and the compiler does not.

    Raises:
        InterpreterError: names the kernel and the program that failed; its cause is the error.
    """
    with LOCK, _interpreting(kernel), np.errstate(all="ignore"):
        try:
            _twin(kernel)[grid](*args, **options)
        except InterpreterError as error:
            cause = error.__cause__ or error
            program = interpreter.interpreter_builder.grid_idx
            raise InterpreterError(
                f"{kernel.fn.__name__}, program {program} of grid {grid}: "
                f"{type(cause).__name__}: {cause}"
            ) from cause


def _device_call(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a device function; the stock one patches `triton.language` and never gives it back."""
    return self.rewrite()(*args, **kwargs)


def _twin(function: Any) -> InterpretedFunction:
    if function.fn not in _twins:
        _twins[function.fn] = InterpretedFunction(function.fn)
    return _twins[function.fn]


def _spaces(kernel: Any) -> list[dict[str, Any]]:
    """Return the globals of the kernel's module and of every module whose functions it can call."""
    found: list[dict[str, Any]] = [vars(tl), vars(tl.standard)]
    waiting = [kernel.fn.__globals__]
    while waiting:
        space = waiting.pop()
        if any(space is known for known in found):
            continue
        found.append(space)
        waiting += [f.fn.__globals__ for f in space.values() if isinstance(f, JITFunction)]
        modules = [vars(m) for m in space.values() if isinstance(m, ModuleType)]
        waiting += [m for m in modules if any(isinstance(f, JITFunction) for f in m.values())]
    return found


@contextlib.contextmanager
def _interpreting(kernel: Any) -> Iterator[None]:
    with contextlib.ExitStack() as undo:
        for owner, name, function in (*PATCHES, (InterpretedFunction, "__call__", _device_call)):
            undo.enter_context(mock.patch.object(owner, name, function, create=True))
        for space in _spaces(kernel):
            undo.callback(_give_back, space, _swap(space))
        for name, function in list(vars(tl.tensor).items()):
            if isinstance(function, JITFunction):
                undo.callback(setattr, tl.tensor, name, function)
                setattr(tl.tensor, name, _twin(function))
        # The stock interpreter patches what a kernel's module imports; its functions need all.
        undo.callback(interpreter._patch_lang(_LANGUAGE).restore)
        yield


def _swap(space: dict[str, Any]) -> dict[str, Any]:
    """Put interpreted twins in place of compiled functions; return what was there."""
    before = dict(space)
    space.update({name: _twin(f) for name, f in before.items() if isinstance(f, JITFunction)})
    # Rewritten functions call it; the rewriter plants it once, and `_give_back` removes it.
    space.setdefault("interpreter_semantic", interpreter.interpreter_semantic)
    return before


def _give_back(space: dict[str, Any], before: dict[str, Any]) -> None:
    """Undo `_swap`, and drop the names that the rewriter copied from Triton's own module."""
    space.update({name: f for name, f in before.items() if isinstance(f, JITFunction)})
    planted = vars(interpreter)
    for name in [n for n in space.keys() - before.keys() if space[n] is planted.get(n)]:
        del space[name]
