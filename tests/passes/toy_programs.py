"""Random straight-line programs: views of anything, pure ops, in-place writes, reads at any time.

A program is a list of steps on a growing list of tensors, run alike by eager mode and by `fx`'s
symbolic tracing. `write(choose)` makes one up: `choose(n)` picks an index below `n`, and the steps
run on real tensors while they are chosen, so that shapes always fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.passes.toy_ops import ops

Choose = Callable[[int], int]
Step = tuple[str, tuple[Any, ...]]
SHAPES = ((4, 6), (2, 4, 6), (12,))


@dataclass(frozen=True)
class Program:
    """Steps on tensors known by number: the inputs first, then each result in order."""

    inputs: tuple[tuple[int, ...], ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        known = list(inputs)
        for name, args in self.steps:
            known += STEPS[name](known, *args)
        return tuple(known[i] for i in self.outputs)

    @property
    def function(self) -> Callable[..., tuple[Tensor, ...]]:
        """The program with as many parameters as it has inputs, as `fx` wants it."""
        return (lambda a: self(a)) if len(self.inputs) == 1 else (lambda a, b: self(a, b))

    def make_inputs(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        return [
            _lay_out(torch.randint(-99, 99, shape, generator=generator), n)
            for n, shape in enumerate(self.inputs)
        ]


def _lay_out(x: Tensor, n: int) -> Tensor:
    """The first input contiguous, the second transposed or with gaps."""
    if n == 0:
        return x
    return x.mT.contiguous().mT if x.dim() == 2 else x.repeat_interleave(2, -1)[..., ::2]


def _view(known: list[Any], i: int, method: str, *args: Any) -> list[Any]:
    return [getattr(known[i], method)(*args)]


def _slice(known: list[Any], i: int, dim: int, start: int, stop: int, step: int) -> list[Any]:
    return [known[i][(*[slice(None)] * dim, slice(start, stop, step))]]


def _split(known: list[Any], i: int, sizes: tuple[int, int], dim: int) -> list[Any]:
    first, second = known[i].split(list(sizes), dim)[0], known[i].split(list(sizes), dim)[1]
    return [first, second]


def _pure(known: list[Any], i: int, by: int) -> list[Any]:
    return [known[i] * by + 1]


def _clone(known: list[Any], i: int) -> list[Any]:
    return [known[i].clone()]


def _total(known: list[Any], i: int) -> list[Any]:
    return [known[i].sum()]


def _copy(known: list[Any], i: int, j: int) -> list[Any]:
    known[i].copy_(known[j] * 2 + 1)
    return []


def _assign(known: list[Any], i: int, j: int) -> list[Any]:
    known[i].copy_(known[j].clone())
    return []


def _mutate(known: list[Any], name: str, tensors: tuple[int, ...], *rest: Any) -> list[Any]:
    result = getattr(ops, name)(*(known[i] for i in tensors), *rest)
    if name == "extremes":
        return [result[0], result[1]]
    return [result] if name in ("count", "optional") else []


def _optional(known: list[Any], i: int, j: int, place: str) -> list[Any]:
    return [ops.optional(known[i], **{place: known[j]})]


def _gather(known: list[Any], i: int, j: int, k: int) -> list[Any]:
    ops.gather(known[i], [known[j], known[k]])
    return []


def _each(known: list[Any], i: int, j: int) -> list[Any]:
    ops.each([known[i], known[j]])
    return []


VIEWS = {"view", "slice", "split"}
FREEZING = {"expand", "unfold", "as_strided"}
STEPS: dict[str, Callable[..., list[Any]]] = {
    "view": _view,
    "slice": _slice,
    "split": _split,
    "pure": _pure,
    "clone": _clone,
    "total": _total,
    "copy": _copy,
    "assign": _assign,
    "mutate": _mutate,
    "optional": _optional,
    "gather": _gather,
    "each": _each,
}


def write(choose: Choose, length: int = 8) -> Program:
    """Make up a program of about `length` steps."""
    inputs = tuple(SHAPES[choose(len(SHAPES))] for _ in range(1 + choose(2)))
    known = Program(inputs, (), ()).make_inputs()
    # What functionalisation itself does not let a program write to: views that overlap themselves.
    frozen: set[int] = set()
    steps: list[Step] = []
    # Memory of its own to work on: what the graph's inputs own is never written in place.
    for first in [("pure", (choose(len(inputs)), 3)), *[None] * length]:
        step = first or _choose_step(choose, known, frozen)
        if step is not None:
            name, args = step
            try:
                new = STEPS[name](known, *args)
            except RuntimeError:
                continue  # a view of another dtype that does not exist
            if name in VIEWS and (args[0] in frozen or args[1] in FREEZING):
                frozen |= set(range(len(known), len(known) + len(new)))
            known += new
            steps.append(step)
    outputs = {choose(len(known)) for _ in range(1 + choose(3))}
    return Program(inputs, tuple(steps), tuple(sorted(outputs)))


def _choose_step(choose: Choose, known: list[Tensor], frozen: set[int]) -> Step | None:
    # The latest tensors are the likeliest, so that views of views and repeated writes come up.
    i = max(choose(len(known)), choose(len(known)))
    kind = choose(12)
    if kind < 5:
        return _choose_view(choose, known[i], i)
    if kind < 6:
        return [("pure", (i, 2)), ("clone", (i,)), ("total", (i,))][choose(3)]
    return _choose_write(choose, known, frozen)


def _choose_view(choose: Choose, x: Tensor, i: int) -> Step | None:
    if x.dim() == 0 or not x.numel():
        return ("view", (i, "unsqueeze", 0))
    dim = choose(x.dim())
    size = x.size(dim)
    start = choose(size)
    ones = [d for d in range(x.dim()) if x.size(d) == 1]
    options: list[Step] = [
        ("slice", (i, dim, start, start + 1 + choose(size - start), 1)),
        ("slice", (i, dim, start, start + 1 + choose(size - start), 1)),
        ("slice", (i, dim, choose(2), size, 2)),
        ("view", (i, "unsqueeze", choose(x.dim() + 1))),
        ("view", (i, "select", dim, choose(size))),
        ("view", (i, "transpose", dim, choose(x.dim()))),
        ("view", (i, "reshape", -1)),
        ("view", (i, "reshape", 2, -1) if x.numel() % 2 == 0 else (i, "reshape", -1)),
        ("view", (i, "squeeze", ones[0]) if ones else (i, "unsqueeze", 0)),
        ("split", (i, (start, size - start), dim)),
        ("view", (i, "diagonal") if x.dim() > 1 else (i, "unfold", 0, min(size, 2), 1)),
        ("view", (i, "detach")),
        ("view", (i, "expand", 2, *x.shape)),
        ("view", (i, "view", torch.int32)),
        ("view", (i, "as_strided", (2, 2), (choose(2), 2), choose(4))),
    ]
    chosen = options[choose(len(options))]
    too_small = x.untyped_storage().nbytes() < 8 * 8
    return None if too_small and chosen[1][1] == "as_strided" else chosen


def _choose_write(choose: Choose, known: list[Tensor], frozen: set[int]) -> Step | None:
    free = [n for n in range(len(known)) if n not in frozen]
    i, j = (free[max(choose(len(free)), choose(len(free)))] for _ in range(2))
    k = choose(len(known))
    alike = [n for n, t in enumerate(known) if t.shape == known[i].shape]
    options: list[Step] = [
        ("mutate", ("scale", (i,), 3)),
        ("mutate", ("scale", (i,), 5)),
        ("mutate", ("accumulate", (j, i))),
        ("mutate", ("exchange", (i, j))),
        ("mutate", ("count", (i,))),
        ("mutate", ("extremes", (i,))),
        ("optional", (i, j, "yz"[choose(2)])),
        ("gather", (i, j, k)),
        ("copy", (i, alike[choose(len(alike))])),
        ("assign", (i, alike[choose(len(alike))])),
        ("each", (i, j)),
    ]
    return options[choose(len(options))]
