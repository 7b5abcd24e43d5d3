"""The picture of a sweep: states its finding, tells apart without colour, says what is missing."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from mlalab.bench.records import load
from mlalab.sweeps.engine import run
from mlalab.sweeps.spec import SweepSpec
from mlalab.viz.sweep import alt, finding, sweep_figure, sweep_text
from tests.sweeps.played import FASTER, SLOWER, SLOWER_LATE, record

SMALL = SweepSpec(max_num_seqs=16, num_speculative_tokens=1, max_num_batched_tokens=128)


def words_of(figure):
    return [t.text for t in ElementTree.fromstring(figure.svg).iter() if t.tag.endswith("}text")]


def test_text_golden(golden):
    golden("sweep_text", sweep_text(run(SMALL, FASTER)))


def test_picture_names_ranges_ways_and_where_the_times_come_from():
    figure = sweep_figure(run(SMALL, FASTER))
    words = words_of(figure)
    for word in ("uniform decode", "any other", "1..32", "33..128", "threshold 32", "one launch"):
        assert word in words
    assert "Played GPU, 2026-01-02, torch 2.13.0" in words
    assert "not measured " in words
    assert "<pattern" in figure.svg, "the fused range is told by its hatch, not by colour alone"
    assert figure.svg == sweep_figure(run(SMALL, FASTER)).svg
    assert "Played GPU, 2026-01-02" in figure.caption
    assert figure.text == sweep_text(run(SMALL, FASTER))


@pytest.mark.parametrize(
    ("source", "says", "fused"),
    [
        (FASTER, "(1..64 tokens) one launch is faster, with 0.50 to 0.89 of", "up to 32 tokens"),
        (SLOWER_LATE, "stops being faster at 12 tokens (measured: 1..17)", "up to 11 tokens"),
        (SLOWER, "stops being faster at 1 tokens", "No batch is prepared by one launch"),
        (record(), "the record has no times for N = 16, fp8/fp8.", "up to 32 tokens"),
    ],
)
def test_alt_states_the_finding(source, says, fused):
    result = run(SMALL, source)
    assert says in finding(result)
    assert finding(result) in alt(result)
    assert fused in alt(result)
    assert sweep_figure(result).alt == alt(result)


@pytest.mark.parametrize(
    ("seqs", "says"),
    [
        (8, "at the threshold, measured: 5.00 and 3.00"),
        (36, "at the threshold, interpolated between its neighbours: 7.00 and 5.50"),
        (65, "the threshold, 65 tokens, lies outside what was measured"),
    ],
)
def test_times_at_the_threshold_say_where_they_come_from(seqs, says):
    assert says in sweep_text(run(SweepSpec(max_num_seqs=seqs), FASTER))


@pytest.mark.parametrize(
    "spec",
    [
        SweepSpec(max_num_seqs=1, max_num_batched_tokens=1),
        SweepSpec(max_num_seqs=1024, num_speculative_tokens=3, max_num_batched_tokens=2048),
        SweepSpec(heads=7),
        SweepSpec(num_speculative_tokens=7, max_num_seqs=1, max_num_batched_tokens=4),
    ],
)
def test_settings_at_the_edges_are_drawn(spec):
    figure = sweep_figure(run(spec, load("h200")))
    assert len(figure.alt) > 40
    ElementTree.fromstring(figure.svg)
    assert ("none (0 in all)" in figure.text) == (spec.max_num_batched_tokens == 4)
