"""Small functions: recorded like models, checked like models, red when a pass is wrong."""

from __future__ import annotations

import pytest
import torch

import mlalab.ops  # noqa: F401  registers torch.ops.mlalab
from mlalab.errors import VerifyError
from mlalab.exercises.naive_in_place import NaiveInPlacePass
from mlalab.passes.fix_functionalization import FixFunctionalizationPass
from mlalab.passes.fusion import CleanUp, PassResult
from mlalab.programs import trace_program

FIX = FixFunctionalizationPass.name
NAIVE = NaiveInPlacePass.name


def inputs(tokens=5):
    return [torch.randn(tokens, 3, 12), torch.arange(tokens), torch.randn(7, 4)]


def rotate(x_TNH, positions, table):
    torch.ops.mlalab.rotary_embedding(positions, x_TNH, None, 4, table, False)


def in_place(x, positions, table):
    q = x * 2
    rotate(q[..., 8:], positions, table)
    return q.flatten(1)


def old_value_read(x, positions, table):
    q = x * 2
    old = q[..., 8:].clone()
    rotate(q[..., 8:], positions, table)
    return q.flatten(1), old * 2


def put_elsewhere(x, positions, table):
    q = x * 2
    rotated = q[..., 8:].clone()
    rotate(rotated, positions, table)
    q[..., :4] = rotated
    return q.flatten(1)


def input_written(x, positions, table):
    rotate(x[..., 8:], positions, table)
    return x * 2


def nothing_returned(x, positions, table):
    rotate(x[..., 8:], positions, table)


PROGRAMS = (in_place, old_value_read, put_elsewhere, input_written, nothing_returned)


@pytest.mark.parametrize("tokens", [2, 5])
@pytest.mark.parametrize("program", PROGRAMS)
def test_the_proven_pass_keeps_every_bit(program, tokens):
    trace = trace_program(program, inputs(tokens), passes=[FixFunctionalizationPass]).check()
    assert trace.ok, trace
    assert FIX in [step.name for step in trace]


@pytest.mark.parametrize("tokens", [0, 1])
def test_sizes_that_torch_specialises_on(tokens):
    assert trace_program(in_place, inputs(tokens), passes=[FixFunctionalizationPass]).check().ok


@pytest.mark.parametrize(
    ("program", "wrong"),
    [(old_value_read, {"output 1": 60}), (put_elsewhere, {"output 0": 60})],
)
def test_the_naive_pass_is_caught(program, wrong):
    trace = trace_program(program, inputs(), passes=[NaiveInPlacePass], verify=False).check()
    assert not trace.ok
    diffs = trace[NAIVE].check.diffs
    assert {diff.name: diff.mismatched for diff in diffs if not diff.equal} == wrong


def test_what_a_program_only_writes_is_compared():
    def halve(graph):
        for node in graph.find_nodes(op="call_function", target=torch.ops.aten.copy_.default):
            node.args = (node.args[0], node.args[0])
        return PassResult()

    wrong = CleanUp(name="Wrong", note="", run=halve)
    trace = trace_program(nothing_returned, inputs(), passes=[wrong], verify=False).check()
    assert [diff.name for diff in trace["Wrong"].check.diffs if not diff.equal] == ["input 0"]


def test_the_naive_pass_is_right_where_nobody_looks():
    assert trace_program(in_place, inputs(), passes=[NaiveInPlacePass], verify=False).check().ok


def test_the_driver_refuses_the_naive_pass():
    with pytest.raises(Exception, match="recorded in other memory") as caught:
        trace_program(old_value_read, inputs(), passes=[NaiveInPlacePass])
    assert isinstance(caught.value.inner_exception, VerifyError)


@pytest.mark.parametrize(("first", "last", "clones"), [(0, 8, 0), (7, 9, 1), (8, 12, 1)])
def test_the_old_value_of_other_columns_may_be_read(first, last, clones):
    def program(x, positions, table):
        q = x * 2
        old = q[..., first:last].clone()
        rotate(q[..., 8:], positions, table)
        return q.flatten(1), old * 2

    trace = trace_program(program, inputs(), passes=[FixFunctionalizationPass])
    assert len(trace[FIX].refusals) == clones


def test_inputs_are_left_as_they_were():
    given = inputs()
    kept = [x.clone() for x in given]
    trace_program(input_written, given, passes=[FixFunctionalizationPass]).check()
    assert all(torch.equal(x, y) for x, y in zip(given, kept, strict=True))


def test_an_input_that_is_returned_is_compared_as_an_input():
    def program(x, y):
        y.add_(x)
        return y, y * 2

    trace = trace_program(program, [torch.randn(3, 2), torch.randn(3, 2)]).check()
    assert trace.ok
    assert [diff.name for diff in trace["dynamo"].check.diffs] == ["output 0", "input 0", "input 1"]


def test_a_trace_is_checked_after_another_of_the_same_function():
    def program(x):
        return x * 2

    first = trace_program(program, [torch.randn(4, 3)])
    trace_program(program, [torch.randn(7, 3)])
    assert first.check().ok
