"""Pictures of floors: they say what binds, on which machine, and hold together at one size."""

from __future__ import annotations

from xml.etree import ElementTree

from mlalab.bench.roofline import floors
from mlalab.viz.roofline import floors_figure, floors_text, roofline_figure
from tests.bench.stand_ins import result_of
from tests.bench.test_roofline import record

GROUPS = [floors(record(result_of(1), result_of(512)), 16, "fp8/fp8")]


def words_of(figure):
    return [t.text for t in ElementTree.fromstring(figure.svg).iter() if t.tag.endswith("}text")]


def test_text_golden(golden):
    golden("floors_text", floors_text(GROUPS))


def test_an_unknown_peak_is_a_dash():
    unknown = floors(record(result_of(1), device="Played GPU"), 16, "fp8/fp8")
    assert floors_text([unknown]).splitlines()[-1].split()[5] == "-"


def test_times_over_floors():
    figure = floors_figure(GROUPS * 2, "Played GPU, 2026")
    assert "Played GPU, 2026" in figure.caption
    assert "with 16 heads the floor (launch, then memory) is 67 to 92 % of" in figure.alt
    words = words_of(figure)
    assert words.count("N = 16, fp8/fp8") == 2
    assert {"one launch", "two launches", "copy of as many bytes", "floor"} <= set(words)
    assert figure.text == floors_text(GROUPS * 2)


def test_under_the_roof():
    figure = roofline_figure(GROUPS, (4e12, 1e15), "Played GPU, 2026")
    assert "2 of 2 sizes lie left of the ridge at 250" in figure.alt
    assert "ridge: 250 flop/byte" in words_of(figure)
    assert figure.text.splitlines()[-1].split() == ["fp8/fp8", "16", "512", "98", "358.5"]
    assert "1 of 2 sizes" in roofline_figure(GROUPS, (1e13, 1e14), "x").alt


def test_a_single_size_is_drawn():
    single = [GROUPS[0][:1]]
    for figure in (floors_figure(single, "x"), roofline_figure(single, (4e12, 1e15), "x")):
        assert len(figure.alt) > 40
        ElementTree.fromstring(figure.svg)
