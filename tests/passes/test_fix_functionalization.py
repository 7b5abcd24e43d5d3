"""In-place calls on every kind of memory: written in place, through a clone, or left alone.

Each program runs in eager mode and through the real pipeline; outputs, inputs and the recorded
values of the final graph are compared bit for bit. The table says which of the three it expects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from tests.passes.toy_harness import compile_and_run, differences, wrong_graph
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


@case()
def transposed_and_permuted(a):
    b, c = a + 1, (a + 2).view(2, 2, 6)
    ops.scale(b.t(), 3)
    ops.scale(c.permute(2, 0, 1), 3)
    return b, c


@case()
def select_and_diagonal(a):
    b = a + 1
    ops.scale(b[1], 3)
    ops.scale(b.diagonal(), 5)
    return (b * 2,)


@case()
def through_views_of_views(a):
    b = a + 1
    ops.scale(b.view(-1)[2:9].unsqueeze(0), 3)
    ops.scale(b.unsqueeze(1)[:, :, 1:4].transpose(0, 2), 5)
    return (b * 2,)


@case()
def reshape_that_copies(a):
    b = a + 1
    c = b.t().reshape(-1)
    ops.scale(c, 3)
    return b, c


@case("reads the result by its place in memory", left=1)
def result_read_as_strided(a):
    b = a + 1
    ops.scale(b, 3)
    return b * 2, b.as_strided((3, 2), (2, 1), 1) * 2


@case()
def seen_as_another_dtype(a):
    b = a + 1
    ops.scale(b.view(torch.int32)[:, 2:4], 3)  # the second column, as two halves
    ops.accumulate(b[:, 3:], b[:, 2:3])
    return (b,)


@case("overlaps the op's argument other", clones=1)
def overlap_seen_as_another_dtype(a):
    b = a + 1
    ops.accumulate(b[:, 1], b.view(torch.int32)[:, 2:4])
    return (b,)


@case("two results of the graph would share memory", clones=1)
def results_that_eager_mode_keeps_apart(a):
    b = a + 1
    s = b[:2].clone()
    ops.scale(s, 3)
    b[:2].copy_(s)
    return b, s


@case("whose clone would lie otherwise: two results of the graph would share memory", left=1)
def results_kept_apart_at_an_offset(a):
    b = a + 1
    s = b[1:].clone()  # Inductor drops the clone, and then forgets that the rest has an offset
    ops.scale(s, 3)
    b[1:].copy_(s)
    return b, s


@case("it writes xs, a list of tensors", left=1)
def list_of_tensors(a):
    b, c = a + 1, a + 2
    ops.each([b, c[1:]])
    return b, c


@case("list of tensors", "a result of a call left as it was", clones=1, left=1)
def result_of_a_call_that_stays(a):
    b = a + 1
    ops.each([b, a + 2])
    ops.scale(b, 3)
    return (b,)


@pytest.mark.parametrize("name", CASES)
def test_in_place_or_clone(name):
    case, inputs = CASES[name], [torch.randint(-99, 99, (4, 6))]
    run = compile_and_run(case.program, inputs)
    assert differences(run, case.program, inputs) == []
    assert wrong_graph(run) == []
    assert len(run.calls("clone")) - len(run.calls_before("clone")) == case.clones, run.reasons
    assert len(run.calls("auto_functionalized")) == case.left, run.reasons
    assert len(run.reasons) == len(case.reasons)
    for reason, expected in zip(run.reasons, case.reasons, strict=True):
        assert expected in reason
    if not case.reasons:
        assert run.calls("_scatter") == [], "every chain of a call in place is folded"
    if case.left and not case.clones:
        assert str(run.after) == str(run.before)
