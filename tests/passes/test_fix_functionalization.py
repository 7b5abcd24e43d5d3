"""In-place calls on every kind of memory: written in place, through a clone, or left alone.

Each program runs in eager mode and through the real pipeline; outputs, inputs and the recorded
values of the final graph are compared bit for bit. The table says which of the three it expects.
"""

from __future__ import annotations

import pytest
import torch

from tests.passes.fix_cases import CASES, case
from tests.passes.toy_harness import compile_and_run, differences, wrong_graph
from tests.passes.toy_ops import ops


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
    entry, inputs = CASES[name], [torch.randint(-99, 99, (4, 6))]
    run = compile_and_run(entry.program, inputs)
    assert differences(run, entry.program, inputs) == []
    assert wrong_graph(run) == []
    assert len(run.calls("clone")) - len(run.calls_before("clone")) == entry.clones, run.reasons
    assert len(run.calls("auto_functionalized")) == entry.left, run.reasons
    assert len(run.reasons) == len(entry.reasons)
    for reason, expected in zip(run.reasons, entry.reasons, strict=True):
        assert expected in reason
    if not entry.reasons:
        assert run.calls("_scatter") == [], "every chain of a call in place is folded"
    if entry.left and not entry.clones:
        assert str(run.after) == str(run.before)
