"""Programs with in-place calls, and what each is expected to become: the first half."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.passes.toy_ops import ops


@dataclass(frozen=True)
class Case:
    program: Callable[..., Any]
    clones: int = 0
    left: int = 0
    reasons: tuple[str, ...] = ()


CASES: dict[str, Case] = {}


def case(*reasons: str, clones: int = 0, left: int = 0) -> Callable[..., Any]:
    def enter(program: Callable[..., Any]) -> Callable[..., Any]:
        CASES[program.__name__] = Case(program, clones, left, reasons)
        return program

    return enter


@case()
def whole(a):
    b = a + 1
    ops.scale(b, 3)
    return (b * 2,)


@case()
def result_never_read(a):
    b = a + 1
    ops.scale(b, 3)
    return (a * 2,)


@case()
def slice_then_whole(a):
    b = a + 1
    ops.scale(b[:, 2:], 3)
    return b * 2, b[:, 2:] + 1


@case()
def other_columns_read_later(a):
    b = a + 1
    left, right = b.split([2, 4], 1)
    ops.scale(right, 3)
    return left * 2, right * 2


@case()
def other_rows_read_later(a):
    b = a + 1
    ops.scale(b[2:], 3)
    ops.accumulate(b[:2], b[2:])
    return b[:2] * 2, b


@case()
def old_value_read_before(a):
    b = a + 1
    ops.accumulate(b * 2, b)
    return (b,)


@case("still reads the old value of add", clones=1)
def old_value_read_later(a):
    b = a + 1
    old = b * 2
    ops.scale(b, 3)
    return old + b, b


@case("memory of the graph's input", clones=1)
def input_that_is_meant_to_change(a):
    ops.scale(a, 3)
    return (a * 2,)


@case("memory of the graph's input", clones=1)
def slice_of_an_input(a):
    ops.scale(a[:, 1:], 3)
    return (a * 2,)


@case("memory of the graph's input", clones=1)
def input_that_must_not_change(a):
    b = a.clone()  # which Inductor drops before our pass
    ops.scale(b, 3)
    return (b * 2,)


@case("memory of the graph's input", clones=1)
def view_of_a_dropped_clone(a):
    b = a.clone().view(-1)
    ops.scale(b[3:9], 3)
    return (b * 2,)


@case("overlaps the op's argument y", clones=1)
def two_arguments_that_overlap(a):
    b = a + 1
    ops.exchange(b, b[1:])
    return (b,)


@case()
def two_arguments_side_by_side(a):
    b = a + 1
    ops.exchange(b[:, :3], b[:, 3:])
    return (b,)


@case("is passed twice", clones=1)
def same_tensor_twice(a):
    b = a + 1
    ops.exchange(b, b)
    return (b,)


@case("overlaps the op's argument other", clones=1)
def read_only_argument_that_overlaps(a):
    b = a + 1
    ops.accumulate(b[1:, 2:], b)
    return (b,)


@case("overlaps the op's argument ys", "is passed twice", clones=2)
def read_only_list_that_overlaps(a):
    b, c = a + 1, a + 2
    ops.gather(b, [a, b[1:]])
    ops.gather(c, [c, a])
    return b, c


@case()
def twice_on_one_buffer(a):
    b = a + 1
    ops.scale(b[:, 2:], 3)
    ops.scale(b[:, 2:], 5)
    ops.scale(b[1:], 7)
    return b, b[0] * 2


@case()
def optional_argument_missing_and_given(a):
    b, c = a + 1, a + 2
    first = ops.optional(b)
    second = ops.optional(b, None, c)
    third = ops.optional(b, z=c)
    return b, c, first, second, third


@case()
def one_and_two_results(a):
    b, c = a + 1, a + 2
    total = ops.count(b)
    low, high = ops.extremes(c[1:])
    return b, c, total, low + high


@case("still reads the old value of", clones=1)
def result_of_a_call_written_in_turn(a):
    b = a + 1
    r = ops.optional(b)
    old = r * 2
    ops.scale(r, 3)
    return b, r, old
