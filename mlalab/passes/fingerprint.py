"""What a compile cache must tell apart, as one hash.

Two passes may come from one factory and differ in what their functions closed over only, or from
two cells of a notebook and differ in their code only; so a function counts with its code, its
defaults and its closure, and a value with its fields.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mlalab_kernels

_ROOTS = (Path(__file__).parents[1], Path(mlalab_kernels.__file__).parent)
_PLAIN = (
    *(str, int, float, bool, bytes, complex, type(None)),
    *(torch.dtype, torch.device, torch._ops.OpOverload),
)


@functools.cache
def source_of_mlalab() -> str:
    """Return a hash of every source file of mlalab and its kernels, and torch's version."""
    digest = hashlib.sha256(torch.__version__.encode())
    for root in _ROOTS:
        for path in sorted(root.rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def fingerprint(*values: Any) -> str:
    """Return a hash that is equal, in any process, for values that compile alike."""
    digest = hashlib.sha256()
    for part in _parts(values, set()):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


def _parts(value: Any, seen: set[int]) -> Iterator[str]:
    if isinstance(value, _PLAIN):
        yield f"{type(value).__name__} {value!r}"
        return
    yield f"{type(value).__module__}.{type(value).__qualname__}"
    # A function may reach itself through its closure.
    if id(value) in seen:
        return
    seen = seen | {id(value)}
    for part in _contents(value):
        yield from _parts(part, seen)


def _contents(value: Any) -> Iterator[Any]:
    """Yield what `value` is made of, in an order that does not change."""
    if isinstance(value, types.FunctionType):
        yield from (value.__module__, value.__qualname__, value.__code__)
        yield from (value.__defaults__, value.__kwdefaults__)
        yield from (_cell(cell) for cell in value.__closure__ or ())
        yield from _own_globals(value)
    elif isinstance(value, types.CodeType):
        yield from (value.co_code, value.co_names, value.co_varnames, value.co_consts)
    elif isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, types.MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, Tensor):
        yield from (tuple(value.shape), value.dtype, value.detach().cpu().contiguous().tolist())
    elif isinstance(value, (type, types.BuiltinFunctionType, types.ModuleType)):
        yield from (getattr(value, "__module__", ""), value.__name__)
    elif isinstance(value, Mapping):
        yield from (item for pair in value.items() for item in pair)
    elif isinstance(value, (set, frozenset)):
        yield from sorted(fingerprint(x) for x in value)
    elif isinstance(value, (list, tuple)):
        yield from value
    elif dataclasses.is_dataclass(value):
        yield from (getattr(value, field.name) for field in dataclasses.fields(value))
        yield from _own_methods(type(value))
    else:
        yield from getattr(value, "__dict__", {}).items()


def _own_methods(kind: type) -> Iterator[Any]:
    """Yield the methods that a class got outside mlalab: a pass may be a class with its `apply`."""
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] not in ("mlalab", "builtins"):
            yield from (_function(x) for name, x in vars(base).items() if not name.startswith("__"))


def _function(attribute: Any) -> Any:
    """Return the function in a static or class method or a property; None for what holds none."""
    found = getattr(attribute, "__func__", getattr(attribute, "fget", attribute))
    return found if isinstance(found, types.FunctionType) else None


def _own_globals(function: types.FunctionType) -> Iterator[Any]:
    """Yield the functions and constants of its own module that a function names."""
    for name in _names(function.__code__):
        value = function.__globals__.get(name)
        helper = isinstance(value, types.FunctionType) and value.__module__ == function.__module__
        if helper or (name in function.__globals__ and isinstance(value, _PLAIN)):
            yield from (name, value)


def _names(code: types.CodeType) -> Iterator[str]:
    """Yield the names in a function's code, and in that of lambdas and generators inside it."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _names(inner)


def _cell(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not bound yet
        return None
