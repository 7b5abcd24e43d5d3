"""In-place ops of every shape a schema can have, for breaking passes with; `torch.ops.mlalab_test`.

Each reads all it needs before it writes, and writes its arguments in order: so a program that
passes overlapping tensors means the same in eager mode and functionalised. Values are int64:
every order of summing gives the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

LIBRARY = torch.library.Library("mlalab_test", "FRAGMENT")
ops = torch.ops.mlalab_test


def scale(x: Tensor, by: int) -> None:
    x.copy_(x * by + torch.arange(x.numel()).view(x.shape))


def accumulate(other: Tensor, x: Tensor) -> None:
    x.copy_(x * 3 + other.sum())


def exchange(x: Tensor, y: Tensor) -> None:
    new_x, new_y = x * 2 + y.sum(), y * 5 - x.sum()
    x.copy_(new_x)
    y.copy_(new_y)


def count(x: Tensor) -> Tensor:
    x.copy_(x * 7 + 1)
    return x.sum()


def extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    low, high = x.sum(), x.sum() + 1
    x.copy_(x * 11 - 2)
    return low, high


def optional(x: Tensor, y: Tensor | None = None, z: Tensor | None = None) -> Tensor:
    result = x + 1
    new_x = x * 13 + (0 if y is None else y.sum()) + (0 if z is None else z.sum())
    new_y, new_z = (None if t is None else t * 17 - x.sum() for t in (y, z))
    x.copy_(new_x)
    for t, new in ((y, new_y), (z, new_z)):
        if t is not None:
            t.copy_(new)
    return result


def each(xs: list[Tensor]) -> None:
    for x, new in zip(xs, [x * 19 + 3 for x in xs], strict=True):
        x.copy_(new)


def gather(x: Tensor, ys: list[Tensor]) -> None:
    x.copy_(x * 23 + sum(y.sum() for y in ys))


def stamp(x: Tensor) -> None:
    """Row by row, so that an expanded tensor is written once for each row."""
    for row in x.unbind(0):
        row.copy_(row * 2 + 1)


def _register(schema: str, real: object, fake: object) -> None:
    name = LIBRARY.define(schema)
    LIBRARY.impl(name, real, "CompositeExplicitAutograd")
    torch.library.register_fake(f"mlalab_test::{name}", fake, lib=LIBRARY)


def late(x: Tensor, y: Tensor) -> None:
    """The one that reads after it wrote: for graphs written by hand, which have no eager mode."""
    x.copy_(x * 3)
    x.copy_(x + y.sum())


def _nothing(*args: object) -> None:
    return None


def _number(x: Tensor) -> Tensor:
    return x.new_empty((), dtype=torch.int64)


_register("scale(Tensor(a!) x, int by) -> ()", scale, _nothing)
_register("accumulate(Tensor other, Tensor(a!) x) -> ()", accumulate, _nothing)
_register("exchange(Tensor(a!) x, Tensor(b!) y) -> ()", exchange, _nothing)
_register("count(Tensor(a!) x) -> Tensor", count, _number)
_register(
    "extremes(Tensor(a!) x) -> (Tensor, Tensor)",
    extremes,
    lambda x: (_number(x), _number(x)),
)
_register(
    "optional(Tensor(a!) x, Tensor(b!)? y=None, Tensor(c!)? z=None) -> Tensor",
    optional,
    lambda x, y=None, z=None: torch.empty_like(x),
)
_register("each(Tensor(a!)[] xs) -> ()", each, _nothing)
_register("gather(Tensor(a!) x, Tensor[] ys) -> ()", gather, _nothing)
_register("late(Tensor(a!) x, Tensor y) -> ()", late, _nothing)
_register("stamp(Tensor(a!) x) -> ()", stamp, _nothing)
