"""In-place calls in random programs, with symbolic sizes, and in the code that Inductor writes."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlalab.graphs import value_of
from mlalab.passes.scatter_split import ScatterSplitReplacementPass
from tests.passes.test_fix_functionalization import CASES
from tests.passes.toy_harness import FIX, compile_and_run, differences, wrong_graph
from tests.passes.toy_ops import ops
from tests.passes.toy_programs import write

BOTH = (ScatterSplitReplacementPass, *FIX)
either_way = pytest.mark.parametrize("passes", [FIX, BOTH], ids=["alone", "after scatter_split"])


@either_way
@settings(max_examples=20)
@given(source=st.randoms(use_true_random=False))
def test_random_programs_keep_their_meaning(passes, source):
    program = write(source.randrange)
    run = compile_and_run(program.function, program.make_inputs(), passes)
    assert differences(run, program.function, program.make_inputs()) == []
    assert wrong_graph(run) == []


def test_random_programs_meet_every_outcome():
    in_place = clones = left = folds = 0
    for seed in range(12):
        program = write(random.Random(seed).randrange)
        run = compile_and_run(program.function, program.make_inputs())
        left += len(run.calls("auto_functionalized"))
        clones += len(run.reasons) - len(run.calls("auto_functionalized"))
        in_place += len(run.calls("mlalab_test")) - len(run.reasons)
        folds += len(run.calls_before("slice_scatter")) - len(run.calls("slice_scatter"))
    assert min(in_place, clones, left, folds) > 0, (in_place, clones, left, folds)


def nope_is_read_later(a):
    b = a + 1
    ops.scale(b[..., 2:], 3)
    nope = b[..., :2] * 2
    ops.accumulate(b[..., :2], b[..., 2:].transpose(0, 1))
    return b, nope


def as_many_rows_as_columns(a):
    """Six of each: whatever is concluded from that would tie the program to six rows."""
    b = a * 2
    ops.exchange(b[:, :3], b[:, 3:])
    ops.scale(b.t()[:, 1:], 3)
    c = b.view(-1).view(-1, 2, 3)
    ops.scale(c[1:], 3)
    return b * 2, c * 2


@either_way
@pytest.mark.parametrize("program", [nope_is_read_later, as_many_rows_as_columns])
def test_symbolic_sizes(program, passes):
    inputs = [torch.arange(36).view(6, 6)]
    run = compile_and_run(program, inputs, passes, dynamic=True)
    assert differences(run, program, inputs) == []
    assert wrong_graph(run) == []
    written = [x for call in run.calls("mlalab_test") for x in call.all_input_nodes]
    assert any(isinstance(n, torch.SymInt) for x in written for n in value_of(x).shape)
    assert (run.reasons, run.calls("_scatter"), run.calls("clone")) == ([], [], [])
    # What was compiled for six rows serves nine: no size was tied down.
    other = [torch.arange(54).view(9, 6)]
    pairs = zip(run.compiled(*other), program(*other), strict=True)
    assert all(torch.equal(x, y) for x, y in pairs)
    assert len(run.recorders) == 1


@pytest.mark.parametrize("name", ["through_views_of_views", "two_arguments_that_overlap"])
def test_in_real_code(name):
    program, inputs = CASES[name].program, [torch.randint(-99, 99, (4, 6))]
    run = compile_and_run(program, inputs, BOTH, mode="inductor")
    assert differences(run, program, inputs) == []
