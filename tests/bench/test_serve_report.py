"""The table of the serving benchmark."""

from __future__ import annotations

from mlalab.bench.serve_faces import SetUp
from mlalab.bench.serve_report import FaceResult, Run, figures, ratios, table
from mlalab.serving.engine import StepsTaken
from mlalab.serving.metrics import RequestTimes, summarise


def run(scale, tokens=3):
    times = [
        RequestTimes(0.0, tuple(scale * (1 + i) for i in range(tokens))),
        RequestTimes(0.0, (scale,)),
    ]
    steps = {"prefill": StepsTaken(1, 9, scale), "decode": StepsTaken(2, 2, 2 * scale)}
    return Run(summarise(times), steps)


def face(name, *scales, **found):
    return FaceResult(name, SetUp(12.5, 0.25, 4, 2), [run(s) for s in scales], **found)


def test_figures_are_medians_with_what_they_range_over():
    found = figures(face("opaque", 0.001, 0.004, 0.002))
    assert found["requests/s"] == (1 / 0.003, 2 / 0.012, 2 / 0.003)
    assert found["TTFT median, ms"] == (2.0, 1.0, 4.0)
    assert found["decode tokens/s"] == (500.0, 250.0, 1000.0)


def test_a_figure_without_a_sample_is_left_out():
    result = face("opaque")
    assert figures(result) == {}
    result.runs = [run(0.001, tokens=1)]
    assert "TTFT mean, ms" in figures(result) and "ITL mean, ms" not in figures(result)


def test_no_ratio_of_a_form_that_says_other_things():
    first, second = face("opaque", 0.002), face("exposed", 0.001)
    assert ratios(second, first)["requests/s"] == 2.0
    second.differing = 1
    assert ratios(second, first) == {}
    assert ratios(first, second) == {}


def test_the_table(golden):
    results = (
        face("opaque O2", 0.002, 0.001, 0.003, peak_bytes=5 << 20),
        face("exposed O2", 0.001, 0.002, 0.0015, compiled_later=1),
        face("exposed+passes O2", 0.001, differing=3, first_difference=(0, 1)),
        face("exposed O3"),
    )
    golden("serve_table", table(results))
