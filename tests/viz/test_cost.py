"""Modelled cost: what works, what is free, and how many bytes each kind of node moves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mlalab.records import NodeRecord, StepRecord
from mlalab.viz.cost import (
    MODELLED,
    UNTIMED,
    Cost,
    Measured,
    bytes_text,
    cost_change,
    cost_table,
    node_bytes,
    step_cost,
)
from mlalab.viz.facts import facts_html
from tests.viz.samples import steps


def node(name, target="aten.add", inputs=(), *shape, op="call_function", **more) -> NodeRecord:
    """A node with a bfloat16 value of `shape`; without one if that is empty."""
    facts = {}
    if shape:
        stride = [1]
        for size in shape[:0:-1]:
            stride.insert(0, stride[0] * size)
        facts = {"shape": shape, "stride": tuple(stride), "dtype": "bfloat16"}
        facts["bytes"] = 2 * shape[0] * stride[0]
    facts = {"text": name, "users": 1, **facts, **more}
    return NodeRecord(name=name, op=op, target=target, inputs=tuple(inputs), **facts)


def given(name, *shape, **more) -> NodeRecord:
    return node(name, "placeholder", (), *shape, op="placeholder", **more)


X = given("x", 5, 8)


def step(*nodes: NodeRecord) -> StepRecord:
    return StepRecord(name="s", kind="capture", status="captured", nodes=nodes)


def test_a_node_moves_what_it_reads_and_what_it_makes():
    assert node_bytes([X, node("add", "aten.add", ["x"], 5, 8)]) == {"add": 80 + 80}


@pytest.mark.parametrize("rows", [0, 1])
def test_small_sizes(rows):
    x = given("x", rows, 3)
    assert node_bytes([x, node("add", "aten.add", ["x"], rows, 3)]) == {"add": 12 * rows}


def test_an_input_read_twice_counts_once_and_each_input_counts():
    y = given("y", 5, 1)
    assert node_bytes([X, y, node("mul", "aten.mul", ["x", "y"], 5, 8)]) == {"mul": 80 + 10 + 80}


@pytest.mark.parametrize(
    "free",
    [
        node("view", "aten.reshape", ["x"], 40, alias_of="x", plumbing=True),
        node("view", "Tensor.view", ["x"], 40, alias_of="x", op="call_method"),
        node("empty", "aten.empty", (), 5, 8),
        node("size", "aten.sym_size", ["x"], plumbing=True),
        node("sum", "mul", ["size"]),
        node("weight", "get_attr", (), 9, op="get_attr"),
        node("output", "output", ["x"], op="output", users=0),
    ],
    ids=lambda record: record.target,
)
def test_what_moves_nothing_is_free(free):
    assert node_bytes([X, free]) == {}


def test_a_reshape_that_has_to_copy_works():
    copying = node("view", "aten.reshape", ["x"], 40, plumbing=True)
    assert node_bytes([X, copying]) == {"view": 160}


def test_only_the_view_that_is_read_counts():
    part = node("slice", "aten.slice", ["x"], 5, 2, alias_of="x", plumbing=True)
    assert node_bytes([X, part, node("neg", "aten.neg", ["slice"], 5, 2)]) == {"neg": 20 + 20}


def test_an_expanded_view_is_read_once():
    wide = node("expand", "aten.expand", ["x"], 5, 3, 8, alias_of="x", plumbing=True)
    wide = replace(wide, stride=(8, 0, 1))
    assert node_bytes([X, wide, node("neg", "aten.neg", ["expand"], 5, 3, 8)]) == {"neg": 80 + 240}


def test_several_results_count_where_they_are_new():
    split = node("split", "aten.split", ["x"])
    view = node("part", "getitem", ["split"], 5, 4, alias_of="x", plumbing=True)
    assert node_bytes([X, split, view]) == {}
    op = node("op", "auto_functionalized(mlalab.f)", ["x"])
    made = [node(f"r{i}", "getitem", ["op"], 5, 4, plumbing=True) for i in range(2)]
    assert node_bytes([X, op, *made]) == {"op": 80 + 2 * 40}


def test_a_buffer_written_in_place_is_read_and_written():
    rope = node("rope", "mlalab.rotary_embedding", ["x"], mutates=("x",))
    assert node_bytes([X, rope]) == {"rope": 160}


def test_memory_that_nothing_wrote_is_not_read():
    empty = node("empty", "aten.empty", (), 5, 8)
    first = node("a", "mlalab.attention", ["x", "empty"], mutates=("empty",))
    again = node("b", "mlalab.attention", ["x", "empty"], mutates=("empty",))
    assert node_bytes([X, empty, first, again]) == {"a": 80 + 80, "b": 80 + 80 + 80}


@pytest.mark.parametrize(
    ("target", "written"), [("aten.copy_", {"mutates": ("x",)}), ("setitem", {"mutates": ("x",)})]
)
def test_a_copy_does_not_read_what_it_overwrites(target, written):
    y = given("y", 5, 8)
    assert node_bytes([X, y, node("copy", target, ["x", "y"], **written)]) == {"copy": 160}


def test_setting_a_part_writes_the_part():
    y = given("y", 5, 2)
    assert node_bytes([X, y, node("set", "setitem", ["x", "y"], mutates=("x",))]) == {"set": 40}


def test_a_table_is_read_by_the_rows_looked_up():
    table = given("table", 4096, 16)
    positions = replace(given("positions", 5), dtype="int64", bytes=40)
    index = node("index", "aten.index", ["table", "positions"], 5, 16)
    assert node_bytes([table, positions, index]) == {"index": 160 + 40 + 160}
    # The same table in a matmul is read whole, and so are rows that are not fewer than positions.
    mm = node("mm", "aten.mm", ["x", "table"], 5, 16)
    assert node_bytes([X, table, mm]) == {"mm": 80 + 2 * 4096 * 16 + 160}
    fused = node("rope", "mlalab.rope", ["positions", "x"], 5, 4)
    assert node_bytes([X, positions, fused]) == {"rope": 40 + 80 + 40}


def test_an_effect_alone_is_work():
    assert node_bytes([X, node("log", "mlalab.log", ["x"], users=0)]) == {"log": 80}


def test_a_symbolic_size_is_counted_as_a_launch_without_bytes():
    x = replace(X, shape=("s0", 8), bytes=None)
    add = replace(node("add", "aten.add", ["x"], 5, 8), shape=("s0", 8), bytes=None)
    one = node("one", "aten.neg", ["y"], 5, 8)
    graph = step(x, given("y", 5, 8), add, one)
    assert node_bytes(graph.nodes) == {"add": None, "one": 160}
    assert step_cost(graph) == Cost(launches=2, bytes=160, unsized=1)
    assert str(step_cost(graph)) == "2 launches, at least 160 B"
    assert cost_table([graph, graph]).splitlines()[3].split() == ["s", "2", "0", ">=", "160", "-"]
    assert str(step_cost(step(x, add))) == "1 launch, bytes symbolic"
    assert cost_table([step(x, add)]).splitlines()[2].split() == ["s", "1", "-", "symbolic", "-"]
    facts = facts_html(graph, step(X, one))
    assert "1 of its nodes have symbolic sizes" in facts
    assert "<td>launches</td>" in facts
    assert "<td>bytes moved</td>" not in facts


def test_fusing_removes_launches_and_bytes():
    captured, fused, missed, in_place = steps()
    costs = [step_cost(s) for s in (captured, fused, missed, in_place)]
    assert [cost.launches for cost in costs] == [16, 7, 7, 5]
    assert costs[0].bytes > costs[1].bytes == costs[2].bytes > costs[3].bytes
    assert cost_change(captured, None) == str(costs[0])
    assert cost_change(fused, captured) == f"{costs[0]} → {costs[1]}"


def test_table(golden):
    golden("viz_cost_table", cost_table(steps()))
    assert cost_table([]).startswith("step")


def test_measured_times_bring_their_device_and_date():
    measured = Measured(us={"aot": {"mm": 3.25, "mul": 1.0}}, device="H200", date="2026-10-01")
    text = cost_table(steps(), measured)
    lines = text.splitlines()
    assert lines[0].endswith("us")
    assert lines[2].endswith("4.2")
    assert lines[3].endswith("-")
    assert lines[-2] == MODELLED
    assert lines[-1].endswith("measured on H200, 2026-10-01")


def test_nothing_was_timed_is_said_where_nothing_was():
    measured = Measured(us={"aot": {}}, device="H200", date="2026-10-01")
    assert cost_table(steps(), measured).splitlines()[-1] == cost_table(steps()).splitlines()[-1]
    assert cost_table(steps()).splitlines()[-1] == UNTIMED
    assert "nothing was timed" not in MODELLED


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1, "1 B"), (999, "999 B"), (1000, "1.00 kB"), (65536, "65.5 kB"),
     (999_499, "999 kB"), (999_500, "1.00 MB"), (24_123_456, "24.1 MB"), (10**20, "100 EB")],
)  # fmt: skip
def test_bytes_in_three_digits(count, text):
    assert bytes_text(count) == text
