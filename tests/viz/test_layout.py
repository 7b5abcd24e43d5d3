"""The layout: nothing overlaps, edges go down, columns are straight, runs agree."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlalab.viz.layout import Box, Layout, lay_out


@st.composite
def dags(draw: st.DrawFn) -> tuple[list[Box], list[tuple[str, str]]]:
    """Boxes of many widths; every edge goes from an earlier box to a later one."""
    count = draw(st.integers(0, 24))
    sizes = st.tuples(st.integers(10, 120), st.integers(8, 40))
    boxes = [Box(f"n{i}", 2 * w, 2 * h) for i, (w, h) in enumerate(draw_many(draw, sizes, count))]
    pairs = st.tuples(st.integers(0, max(count - 1, 0)), st.integers(0, max(count - 1, 0)))
    drawn = draw(st.lists(pairs, max_size=3 * count)) if count > 1 else []
    return boxes, [(f"n{min(p)}", f"n{max(p)}") for p in drawn if p[0] != p[1]]


def draw_many(draw: st.DrawFn, each: st.SearchStrategy, count: int) -> list:
    return draw(st.lists(each, min_size=count, max_size=count))


def chain(count: int, width: int = 80) -> tuple[list[Box], list[tuple[str, str]]]:
    boxes = [Box(str(i), width, 40) for i in range(count)]
    return boxes, [(str(i), str(i + 1)) for i in range(count - 1)]


def overlap(plan: Layout, a: str, b: str) -> bool:
    one, two = plan.boxes[a], plan.boxes[b]
    return (
        abs(one.x - two.x) * 2 < one.width + two.width
        and abs(one.y - two.y) * 2 < one.height + two.height
    )


@given(dags())
def test_boxes_do_not_overlap(graph):
    plan = lay_out(*graph)
    keys = list(plan.boxes)
    assert not [(a, b) for i, a in enumerate(keys) for b in keys[:i] if overlap(plan, a, b)]


@given(dags())
def test_edges_go_down_from_border_to_border(graph):
    plan = lay_out(*graph)
    for (source, target), route in plan.routes.items():
        above, below = plan.boxes[source], plan.boxes[target]
        assert route[0][1] == above.top + above.height
        assert route[-1][1] == below.top
        assert [y for _, y in route] == sorted(y for _, y in route)
        assert above.left <= route[0][0] <= above.left + above.width
        assert below.left <= route[-1][0] <= below.left + below.width


@given(dags())
def test_lines_pass_beside_boxes(graph):
    """A line runs straight through a row; there it must keep clear of every other box."""
    plan = lay_out(*graph)
    for ends, route in plan.routes.items():
        for (x, y), (next_x, next_y) in pairwise(route):
            if x != next_x:
                continue
            for key, box in plan.boxes.items():
                inside = box.left < x < box.left + box.width
                level = y < box.top + box.height and next_y > box.top
                assert key in ends or not (inside and level)


@given(dags())
def test_everything_is_within_the_picture(graph):
    plan = lay_out(*graph)
    assert all(box.left >= 0 and box.left + box.width <= plan.width for box in plan.boxes.values())
    assert all(0 <= x <= plan.width for route in plan.routes.values() for x, _ in route)
    assert all(0 <= y <= plan.height for route in plan.routes.values() for _, y in route)


@given(dags())
def test_the_same_graph_gives_the_same_picture(graph):
    assert lay_out(*graph) == lay_out(*graph)


def test_a_chain_is_one_straight_column():
    boxes, edges = chain(12)
    boxes[5] = Box("5", 200, 60)
    plan = lay_out(boxes, edges)
    assert len({box.x for box in plan.boxes.values()}) == 1
    assert all(len({x for x, _ in route}) == 1 for route in plan.routes.values())


def test_a_diamond_is_symmetric():
    boxes = [Box(name, 80, 40) for name in "abcd"]
    plan = lay_out(boxes, [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")])
    a, b, c, d = (plan.boxes[name].x for name in "abcd")
    assert a == d
    assert (b + c) / 2 == a


def test_a_weight_sits_above_its_reader_not_at_the_top():
    boxes, edges = chain(9)
    boxes.insert(0, Box("weight", 80, 20))
    plan = lay_out(boxes, [*edges, ("weight", "7")])
    assert plan.boxes["6"].top <= plan.boxes["weight"].y <= plan.boxes["7"].top


def test_a_wait_puts_a_box_below_without_a_line():
    boxes, edges = chain(4)
    boxes.append(Box("reader", 80, 40))
    plan = lay_out(boxes, [*edges, ("0", "reader")], [("3", "reader")])
    assert plan.boxes["reader"].top > plan.boxes["3"].top
    assert ("3", "reader") not in plan.routes


def test_an_edge_against_the_order_is_drawn_upwards():
    boxes, edges = chain(3)
    route = lay_out(boxes, [*edges, ("2", "0")]).routes["2", "0"]
    assert route[0][1] > route[-1][1]


def test_repeated_edges_and_self_edges_are_ignored():
    boxes, edges = chain(2)
    assert lay_out(boxes, [*edges, *edges, ("0", "0")]) == lay_out(boxes, edges)


def test_long_edges_of_one_box_share_a_trunk():
    boxes, edges = chain(8)
    plan = lay_out(boxes, [*edges, ("0", "4"), ("0", "7")])
    assert set(plan.routes["0", "4"][1:-2]) <= set(plan.routes["0", "7"])


@pytest.mark.parametrize(("count", "seconds"), [(60, 0.2), (300, 1.5), (2500, 20.0)])
def test_large_graphs_stay_usable(count, seconds):
    """Ten times what it takes here or more: this guards against another complexity class."""
    boxes = [Box(str(i), 120, 40) for i in range(count)]
    edges = [(str(max(0, i - 1 - i * i % 17)), str(i)) for i in range(1, count)]
    edges += [(str(i - 1), str(i)) for i in range(1, count)]
    start = time.perf_counter()
    lay_out(boxes, edges)
    assert time.perf_counter() - start < seconds
