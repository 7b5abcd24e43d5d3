"""The text forms are what terminals print and notebooks compare: exact, aligned, ASCII."""

from __future__ import annotations

from dataclasses import replace

from mlalab.viz.text import op_delta, step_table, why_text
from tests.viz.samples import steps


def test_step_table(golden):
    golden("viz_step_table", step_table(steps()))


def test_op_delta(golden):
    captured, fused, *_ = steps()
    golden("viz_op_delta", op_delta(captured, fused))


def test_why(golden):
    golden("viz_why", why_text(steps()[2].refusals))


def test_everything_is_ascii():
    trace = steps()
    text = step_table(trace) + op_delta(trace[0], trace[3]) + why_text(trace[2].refusals)
    assert text.isascii()


def test_times_do_not_show():
    trace = steps()
    assert step_table([replace(s, seconds=1.25) for s in trace]) == step_table(trace)


def test_a_retraced_step_shows_no_counts():
    step = replace(steps()[1], retraced=True, created=(), erased=(), rewired=())
    row = step_table([step]).splitlines()[-1]
    assert "retraced" in row
    assert " 0 " not in row


def test_delta_lists_only_changed_ops_and_the_total():
    captured, fused, missed, _ = steps()
    lines = op_delta(captured, fused).splitlines()
    assert not any(line.startswith("aten.mm ") for line in lines)
    assert lines[-1].split() == ["total", "29", "21", "-8"]
    assert op_delta(fused, missed) == "no op count changed (21 ops)"


def test_reasons_that_repeat_are_said_once():
    refusal = steps()[2].refusals[0]
    again = [replace(refusal, node=f"getitem_{i}", layer=f"layers.{i}") for i in range(61)]
    text = why_text(again)
    assert text.count(refusal.reason) == 1
    assert "and 60 more" in text


def test_no_refusals():
    assert why_text(()) == "nothing was refused"
