"""What the stepper is given: panels, shades and their sums, and how large it gets."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from mlalab.viz import page_data, theme
from mlalab.viz.cost import Measured, node_bytes
from mlalab.viz.page_data import MOST_DRAWN, packed, trace_data
from tests.viz.samples import steps


def drawn(data: dict, panel: list) -> set[str]:
    return set(re.findall(r'data-n="([^"]+)"', data["pictures"][panel[1]]))


def values(data: dict, number: int) -> dict[str, list[float]]:
    return {data["nodes"][line[0]][0]: line[2:] for line in data["steps"][number]["lines"]}


def test_side_by_side_has_the_graph_before_and_the_one_after():
    data = trace_data("tiny", steps(), {})
    overlay, sides = data["steps"][1]["folded"]
    assert len(overlay) == 1
    assert [head for head, *_ in sides] == ["before: aot, 35 nodes", "after: RopeFusion, 27 nodes"]
    before, after = (drawn(data, panel) for panel in sides)
    assert "mul" in before - after
    assert "fused" in after - before
    assert "copy" in before & after & drawn(data, overlay[0])


def test_side_by_side_shows_everything_that_the_step_touched():
    trace = steps()
    data = trace_data("tiny", trace, {})
    for number in (1, 3):
        before, after = (drawn(data, panel) for panel in data["steps"][number]["folded"][1])
        assert set(trace[number].erased) <= before
        assert {*trace[number].created, *trace[number].rewired} <= after


def test_the_first_step_stands_alone():
    sides = trace_data("tiny", steps(), {})["steps"][0]["folded"][1]
    assert [head for head, *_ in sides] == ["aot, 35 nodes"]


def test_a_step_that_changes_nothing_adds_no_picture():
    data = trace_data("tiny", steps()[1:3], {})
    [[overlay], [before, after]] = data["steps"][1]["folded"]
    assert overlay[1] == before[1] == after[1]


def test_every_node_side_by_side():
    trace = steps()
    data = trace_data("tiny", trace, {})
    for panel, step in zip(data["steps"][1]["all"][1], trace[:2], strict=True):
        assert drawn(data, panel) == {node.name for node in step.nodes}


def test_large_graphs_are_drawn_folded_only():
    layers = MOST_DRAWN // (len(steps(2)[0].nodes) - len(steps()[0].nodes)) + 1
    data = trace_data("many", steps(layers)[:2], {})
    assert all(step["all"] is None for step in data["steps"])
    assert f"×{layers - 1}  like the layer drawn" in data["pictures"][0]


def test_lines_carry_the_bytes_of_their_node():
    trace = steps()
    found = values(trace_data("tiny", trace, {}), 1)
    assert found["fused"] == [node_bytes(trace[1].nodes)["fused"]]
    assert found["mul"] == [node_bytes(trace[0].nodes)["mul"]]  # erased: what it moved before
    assert found["view"] == [0]


def test_a_box_of_layers_carries_the_sum_of_its_nodes():
    trace = steps(4)
    data = trace_data("tiny", trace, {})
    [[[_, _, boxes]], [[_, _, before], [_, _, after]]] = data["steps"][1]["folded"]
    old, new = (node_bytes(step.nodes) for step in trace[:2])
    later = [sum(v for n, v in x.items() if n[-3:] in ("_L1", "_L2", "_L3")) for x in (old, new)]
    [[[total]], [[was]], [[now]]] = (list(x.values()) for x in (boxes, before, after))
    assert (was, now) == tuple(later)
    erased = sum(old.get(n, 0) for n in trace[1].erased if n[-3:] in ("_L1", "_L2", "_L3"))
    assert total == now + erased


def test_levels_end_at_the_largest_value():
    [[name, _, unit, bounds, levels]] = trace_data("tiny", steps(), {})["shades"]
    assert (name, unit) == ("bytes moved, modelled", "B")
    assert bounds == (10, 100, 1000, 10_000)
    assert levels == ("under 10 B", "from 10 B", "from 100 B", "from 1 kB", "from 10 kB")


@pytest.mark.parametrize("times", [{}, {"aot": {}}, {"aot": {"mm": 0.0}}])
def test_times_may_be_missing(times):
    measured = Measured(us=times, device="H200", date="2026-10-01")
    assert len(trace_data("tiny", steps(), {}, measured)["shades"]) == 2


def test_sixty_one_layers_stay_small():
    trace = [replace(step, name=f"{step.name} {i}") for i in range(2) for step in steps(61)]
    assert len(packed(trace_data("many", trace, {}))) < 600_000


def test_text_is_readable_on_every_shade():
    fills = re.findall(r"\.h\d > \.b\) \{ background: (#\w+); fill: (#\w+);", page_data.style())
    assert len(fills) == 6
    for ground, fill in fills:
        assert ground == fill
        assert contrast(theme.INK, fill) >= 4.5


def contrast(a: str, b: str) -> float:
    low, high = sorted(map(luminance, (a, b)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(c * w for c, w in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))
