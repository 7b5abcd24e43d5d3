"""The ladder as table and bars, and two graphs of different traces as one change."""

from __future__ import annotations

import re

import pytest

from mlalab.viz.ladder import Calls, Ladder, graphs_figure
from tests.viz.samples import step

RUNGS = [("eager", Calls(27, 0, 6, 2)), ("compiled", Calls(generated=4, library=5, ours=1))]


def test_calls_add_up_and_subtract():
    first, second = Calls(3, 1, 2, 4), Calls(1, 0, 2, 1)
    assert first.total == 10 and Calls().total == 0
    assert first + second == Calls(4, 1, 4, 5)
    assert first - second == Calls(2, 1, 0, 3)


def test_the_table_has_a_line_for_each_rung():
    lines = repr(Ladder("tiny", RUNGS)).splitlines()
    assert lines[0] == "tiny"
    assert lines[1].split() == ["rung", "plain", "generated", "library", "ours", "total"]
    assert [line.split() for line in lines[3:]] == [
        ["eager", "27", "0", "6", "2", "35"],
        ["compiled", "0", "4", "5", "1", "10"],
    ]


@pytest.mark.parametrize("rungs", [RUNGS, RUNGS[:1]], ids=len)
def test_the_bars_name_every_rung_and_its_total(rungs):
    figure = Ladder("tiny", rungs).figure()
    for name, calls in rungs:
        assert f"{name} {calls.total}" in figure.alt
        assert re.search(rf">\s*{name}\s*<", figure.svg)
        assert re.search(rf">\s*{calls.total}\s*<", figure.svg)
    assert "Nothing was timed" in figure.caption
    assert figure.text == repr(Ladder("tiny", rungs))


def test_a_rung_is_found_by_name():
    assert Ladder("tiny", RUNGS)["eager"].plain == 27
    with pytest.raises(KeyError):
        Ladder("tiny", RUNGS)["none"]


def test_two_graphs_differ_by_the_names_of_what_works():
    before = step("a", "capture", "hidden = mlalab.attention(x) 8x64")
    after = step(
        *("b", "capture"),
        "part = aten.slice(x) 4x64 view\nfirst = mlalab.decode(part) 4x64\n"
        "joined = aten.cat(first) 8x64",
    )
    figure = graphs_figure("exposing", before, after)
    assert "before exposing" in figure.svg and "after exposing" in figure.svg
    counts = f"exposing: {len(before.nodes)} -> {len(after.nodes)} nodes"
    assert figure.caption == counts and figure.text.startswith(f"{counts}\n\n")
    assert "mlalab.decode" in figure.svg and "mlalab.attention" in figure.svg
    # A new view is no news.
    assert "2 created, 1 erased" in figure.svg
    assert "removed mlalab.attention" in figure.alt and "aten.slice" not in figure.alt
