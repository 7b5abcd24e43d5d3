"""The picture of a refused pattern: what agreed, what differed, and what nobody reached."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from mlalab.errors import TraceError
from mlalab.viz import page_data, theme
from mlalab.viz._why_panel import why_style
from mlalab.viz.page_data import packed, trace_data
from mlalab.viz.text import why_text
from mlalab.viz.why import bare_why_svg, refused_patterns, why_figure, why_head
from tests.viz.samples import refused, steps
from tests.viz.test_page_data import contrast

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "</text><script>alert('\"&')</script>"


def nodes(svg):
    """The drawn nodes by title, as groups."""
    groups = [g for g in ElementTree.fromstring(svg).iter(f"{SVG}g") if g.get("class")]
    groups = [g for g in groups if g.get("class").startswith("y ")]
    return {"".join(g.find(f"{SVG}text").itertext()).split("8×")[0]: g for g in groups}


def live(step):
    (pattern, refusal, _), *_ = refused_patterns(step)
    return bare_why_svg(pattern, refusal)


def test_each_fate_has_a_shape_and_a_mark_of_its_own():
    found = nodes(live(refused()[1]))
    fates = {name: g.get("class") for name, g in found.items()}
    assert fates["mul"] == "y no"
    assert fates["add"] == "y ok"
    assert fates["neg"] == "y un"
    rects = {name: len(found[name].findall(f"{SVG}rect")) for name in ("mul", "add", "neg")}
    assert rects == {"mul": 2, "add": 1, "neg": 1}  # a double border
    marks = [g.find(f".//{SVG}path") for g in (found["mul"], found["add"], found["neg"])]
    assert marks[2] is None
    assert marks[0].get("d") != marks[1].get("d")
    style = why_style()
    assert "stroke-dasharray" in re.search(r"\.no>\.b\{([^}]*)\}", style)[1]
    assert "stroke-dasharray" not in re.search(r"\.ok>\.b\{([^}]*)\}", style)[1]


def test_the_failing_node_says_what_was_expected_and_found():
    failing = nodes(live(refused()[1]))["mul"]
    words = [text.text for text in failing.findall(f"{SVG}text")]
    assert words[-2:] == ["expected aten.mul", "found aten.neg"]
    assert (failing.get("data-pick"), failing.get("tabindex")) == ("neg_1", "0")
    assert failing.get("aria-label") == "expected aten.mul, found aten.neg: neg_1"


def test_a_folded_view_that_differs_is_drawn():
    assert "slice" not in nodes(live(refused()[1]))
    assert "slice" in nodes(live(refused(failed="slice")[1]))


def test_figure_in_words():
    step = refused(3)[1]
    figure = why_figure(step)
    assert figure.text == repr(figure) == why_text(step.refusals)
    assert figure.caption == (
        "update (model.layers.0.self_attn) and 2 more: expected aten.mul, found aten.neg at neg_1."
    )
    assert figure.alt == (
        "Pattern plain/neox at update: 2 of 5 ops agree; the next differs, "
        "expected aten.mul, found aten.neg at neg_1."
    )
    assert figure.svg.count('class="h"') == 1
    assert "fusion.py:38: 2 of 5 ops agree" in figure.svg


def test_figure_stands_alone(golden):
    figure = why_figure(refused()[1])
    golden("viz_why_svg", figure.svg.replace("><", ">\n<"))
    assert re.findall(r"https?://[^\"]+", figure.svg) == ["http://www.w3.org/2000/svg"]
    assert not {"data-n=", "tabindex", " id=", "<script"} & set(
        re.findall(r"\S+=|<\w+", figure.svg)
    )
    assert figure == why_figure(refused()[1])


def test_where_all_agrees_nothing_is_marked_as_differing():
    step = refused(failed=None)[1]
    assert why_figure(step).alt.endswith("2 of 5 ops agree; but its input mm depends on a result.")
    assert 'class="y no"' not in why_figure(step).svg
    assert "differs" not in why_figure(step).svg


def test_different_refusals_are_drawn_below_each_other():
    step = refused(2)[1]
    other = replace(step.refusals[1], failed="neg", expected="aten.neg", found="aten.mul")
    figure = why_figure(replace(step, refusals=(step.refusals[0], other)))
    assert figure.svg.count('class="h"') == 2
    assert figure.alt.count("Pattern plain/neox") == 2


@pytest.mark.parametrize("step", steps())
def test_without_a_refused_pattern_there_is_no_picture(step):
    with pytest.raises(TraceError, match=f"{step.name} refused no pattern"):
        why_figure(step)


def test_hostile_names_stay_text():
    step = refused()[1]
    (pattern,) = step.patterns
    bad = tuple(replace(n, text=HOSTILE, target=HOSTILE) for n in pattern.nodes)
    pattern = replace(pattern, name=HOSTILE, source=HOSTILE, nodes=bad)
    refusal = replace(step.refusals[0], at=HOSTILE, found=HOSTILE, reason=HOSTILE)
    step = replace(step, patterns=(pattern,), refusals=(refusal,))
    for svg in (why_figure(step).svg, live(step)):
        ElementTree.fromstring(svg)
        assert "<script" not in svg


def test_the_page_has_one_picture_for_like_layers():
    trace = refused(61)
    data = trace_data("many", trace, {})
    assert data["steps"][0]["whys"] == []
    [[head, number]] = data["steps"][1]["whys"]
    assert head == why_head(trace[1].patterns[0], trace[1].refusals[0])
    assert data["pictures"][number] == live(trace[1])
    without = trace_data("many", [trace[0], replace(trace[1], patterns=(), refusals=())], {})
    assert len(packed(data)) - len(packed(without)) < 12_000
    assert "fusion.py:38" in data["steps"][1]["facts"]


def test_a_view_that_was_found_instead_is_drawn_in_the_graph():
    captured, missed = refused()
    at = replace(missed.refusals[0], at="slice_1")
    for step, drawn in ((missed, False), (replace(missed, refusals=(at,)), True)):
        data = trace_data("tiny", [captured, step], {})
        [[_, number, _]] = data["steps"][1]["folded"][0]
        assert ('data-n="slice_1"' in data["pictures"][number]) is drawn


def test_a_match_names_the_line_of_its_pattern():
    captured, fused, *_ = steps()
    (match,) = fused.matches
    fused = replace(fused, matches=(replace(match, source="fusion.py:38"),))
    facts = trace_data("tiny", [captured, fused], {})["steps"][1]["facts"]
    assert "(deepseek_scaling/gptj, fusion.py:38)" in facts


def test_every_ink_is_readable():
    grounds = {
        "created": theme.FILL["created"],
        "erased": theme.FILL["erased"],
        "same": theme.CARD,
    }
    for state, ground in grounds.items():
        for ink in (theme.INK, theme.FAINT, theme.CUSTOM, theme.STROKE[state]):
            assert contrast(ink, ground) >= 4.5
    used = set(re.findall(r"#\w{6}", why_style()))
    known = {theme.INK, theme.FAINT, theme.CUSTOM, theme.LINE, *theme.STROKE.values()}
    assert used <= known | {theme.CARD, *theme.FILL.values()}
    assert why_style() in page_data.style()
