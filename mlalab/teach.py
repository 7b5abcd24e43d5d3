"""Exercises: a task, a judge for what the learner wrote, and one sentence about it.

`check("01.absorb", mine)` runs what was written on awkward sizes, strided inputs, poisoned memory
and arguments that share memory, next to a reference in plain torch, and says what differs first.
"""

from __future__ import annotations

import copy
import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mlalab.errors import ConfigError, first_line

Judge = Callable[[Any], str | None]


class Verdict(NamedTuple):
    """What became of an attempt. True when it passed; prints as one sentence."""

    name: str
    complaint: str | None
    praise: str

    def __bool__(self) -> bool:
        return self.complaint is None

    def __repr__(self) -> str:
        if self.complaint is None:
            return f"{self.name}: right. {self.praise}".rstrip()
        return f"{self.name}: not yet. {self.complaint}"


@dataclass(frozen=True, slots=True)
class Exercise:
    """One task. `judge` takes the attempt and returns what is wrong with it, or None."""

    judge: Judge
    praise: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """Arguments for one call, and what is special about them: "3 tokens, strided"."""

    label: str
    args: tuple[Any, ...]


def cases(rows: Iterable[tuple[str, tuple[Any, ...]]]) -> list[Callable[[], Case]]:
    """Return cases whose arguments are plain values, from (label, arguments)."""
    return [functools.partial(Case, *row) for row in rows]


def check(name: str, attempt: Any) -> Verdict:
    """Judge `attempt` at the exercise called `name`; nothing is raised for a wrong one.

    Raises:
        ConfigError: no exercise is called so.
    """
    exercise = _exercise(name)
    if attempt is ...:
        return Verdict(name, "The blank `...` is still there: put your answer in its place.", "")
    return Verdict(name, exercise.judge(attempt), exercise.praise)


def same_as(
    reference: Callable[..., Any],
    cases: Sequence[Callable[[], Case]],
    *,
    rtol: float = 0.0,
    atol: float = 0.0,
) -> Judge:
    """Return a judge for functions: same results, and same arguments afterwards, in every case.

    Fresh memory is filled with NaN while an attempt runs, so what it leaves unwritten shows.
    Arguments that share memory still share it in the copy that the attempt gets.
    """

    def judge(attempt: Any) -> str | None:
        if not callable(attempt):
            return f"A function is expected here, and this is {_kind(attempt)}."
        for make in cases:
            torch.manual_seed(0)
            case = make()
            with poisoned():
                complaint = _compare(reference, attempt, case, rtol=rtol, atol=atol)
            if complaint:
                return f"With {case.label}: {complaint}"
        return None

    return judge


def equals(expected: object, explain: Callable[[Any], str]) -> Judge:
    """Return a judge for values; `explain` turns a wrong one into a sentence that helps."""

    def judge(attempt: Any) -> str | None:
        right = type(attempt) is type(expected) and attempt == expected
        return None if right else explain(attempt)

    return judge


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill what `torch.empty` returns with NaN (integers: their maximum) inside the block."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        # The flag means "deterministic" to torch as well, and its warnings are not the learner's.
        warnings.filterwarnings("ignore", ".*does not have a deterministic implementation")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warn_only)


def _exercise(name: str) -> Exercise:
    from mlalab.exercises import find

    exercise = find(name)
    if exercise is None:
        raise ConfigError(f"No exercise is called {name!r}; they are named like '01.absorb'.")
    return exercise


def _compare(
    reference: Callable[..., Any], attempt: Callable[..., Any], case: Case, **tolerance: float
) -> str | None:
    theirs, ours = copy.deepcopy(case.args), copy.deepcopy(case.args)
    expected = reference(*theirs)
    try:
        found = attempt(*ours)
    except Exception as error:  # whatever a learner's code raises is the answer
        return f"it stopped with {first_line(error)}."
    if found is ...:
        return "the blank `...` is still there: put your code in its place."
    if complaint := _differs("the result", expected, found, **tolerance):
        return complaint
    names = inspect.signature(reference).parameters
    for name, want, got in zip(names, theirs, ours, strict=True):
        if complaint := _differs(f"the argument {name}, afterwards,", want, got, **tolerance):
            return complaint
    return None


def _differs(what: str, want: Any, got: Any, *, rtol: float, atol: float) -> str | None:
    """Say how `got` differs from `want`, tensors in sequences included; None where it does not."""
    if isinstance(want, (tuple, list)):
        if not isinstance(got, (tuple, list)) or len(want) != len(got):
            return f"{what} should be {len(want)} values, and is {_kind(got)}."
        pairs = enumerate(zip(want, got, strict=True))
        return next(
            filter(None, (_differs(f"{what} [{i}]", *p, rtol=rtol, atol=atol) for i, p in pairs)),
            None,
        )
    if _kind(want) != _kind(got):
        return f"{what} should be {_kind(want)}, and is {_kind(got)}."
    if not isinstance(want, Tensor):
        # NaN is the one value that does not equal itself.
        same = want == got or (want != want and got != got)
        return None if same else f"{what} should be {want!r}, and is {got!r}."
    wrong = ~torch.isclose(got.double(), want.double(), rtol=rtol, atol=atol, equal_nan=True)
    if not wrong.any():
        return None
    at = tuple(int(i) for i in wrong.nonzero()[0])
    return (
        f"{what} differs in {int(wrong.sum())} of {wrong.numel()} places, first at {list(at)}: "
        f"{got[at].item():.4g} instead of {want[at].item():.4g}."
    )


def _kind(value: Any) -> str:
    if value is None:
        return "nothing (None)"
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor {list(value.shape)}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
