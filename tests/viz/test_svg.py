"""The picture: well-formed, legible, honest about state, and safe with any name."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from mlalab.viz import theme
from mlalab.viz.alt import before_after_alt, step_alt
from mlalab.viz.boxes import input_name, label
from mlalab.viz.folding import fold
from mlalab.viz.measure import elide, text_width, wrap
from mlalab.viz.overlay import overlay
from mlalab.viz.svg import bare_svg, before_after_svg, legend_svg, step_svg
from tests.viz.samples import steps

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "</text><script>alert('\"&')</script>"


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def boxes(svg: str) -> dict[str, ElementTree.Element]:
    return {g.get("data-n"): g for g in parsed(svg).iter(f"{SVG}g") if g.get("data-n")}


def contrast(one: str, two: str) -> float:
    """WCAG contrast of two `#rrggbb` colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (
            p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    light, dark = sorted((luminance(one), luminance(two)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_picture_of_a_fusion(golden):
    captured, fused, *_ = steps()
    golden("viz_step_svg", step_svg(fused, captured).replace("><", ">\n<"))


@pytest.mark.parametrize("show", ["changes", "all"])
@pytest.mark.parametrize("layers", [1, 3])
def test_every_picture_is_well_formed_and_self_contained(show, layers):
    trace = steps(layers)
    pictures = [step_svg(trace[0], show=show)]
    for before, after in pairwise(trace):
        pictures += [step_svg(after, before, show=show), before_after_svg(before, after)]
        pictures.append(bare_svg(fold(overlay(after, before), show)))
    for svg in [*pictures, legend_svg()]:
        parsed(svg)
        assert re.findall(r"https?://[^\"]+", svg) == ["http://www.w3.org/2000/svg"]
        assert "<script" not in svg
        assert " id=" not in svg


def test_drawing_is_deterministic():
    captured, fused, *_ = steps(2)
    assert step_svg(fused, captured) == step_svg(fused, captured)


def test_state_shows_in_shape_and_mark_not_only_in_colour():
    captured, fused, *_ = steps()
    svg = step_svg(fused, captured)
    found = boxes(svg)
    assert found["fused"].get("class") == "n c"
    assert found["mul"].get("class") == "n d"
    assert len(found["copy"].findall(f"{SVG}rect")) == 2  # the double border of a rewired node
    for name, marked in (("fused", True), ("mul", True), ("copy", True), ("mm", False)):
        assert (found[name].find(f".//{SVG}circle") is not None) is marked
    assert ".mg .d>.b{stroke-width:1.6;stroke-dasharray" in svg
    assert {"created", "erased", "reads something else now"} <= {t.text for t in parsed(svg).iter()}


def test_writes_are_drawn_from_the_node_to_its_buffer():
    *_, missed, in_place = steps()
    root = parsed(step_svg(in_place, missed))
    writes = [g for g in root.iter(f"{SVG}g") if g.get("class") == "w" and g.get("data-a")]
    assert {(g.get("data-a"), g.get("data-b")) for g in writes} == {
        ("fused_1", "slice_1"),
        ("attention_1", "empty"),
    }


def test_tooltips_say_what_is_known():
    *_, missed, in_place = steps()
    title = boxes(step_svg(in_place, missed))["fused_1"].find(f"{SVG}title").text
    for fact in ("shape: [0]", "dtype: bfloat16", "stride: [1]", "mutates: slice_1", "users: 1"):
        assert fact in title
    assert "source: mla.py" in title
    assert "alias of: mm" in boxes(step_svg(in_place, missed))["slice_1"].find(f"{SVG}title").text


def test_text_stays_inside_its_box():
    for step in steps(2):
        for node in fold(overlay(step), "all").nodes:
            words = label(node)
            lines = [text_width(t, theme.TITLE_SIZE, bold=True) for t in words.titles]
            lines += [text_width(t, theme.SUB_SIZE) for t in words.subs]
            assert words.kind == "input" or max(lines) <= words.width - 20


def test_hostile_names_are_text():
    captured, *_ = steps()
    nodes = [replace(n, target=HOSTILE, source=HOSTILE, text=HOSTILE) for n in captured.nodes]
    step = replace(captured, name=HOSTILE, nodes=tuple(nodes))
    root = parsed(step_svg(step, show="all"))
    assert not list(root.iter(f"{SVG}script"))
    assert HOSTILE in {element.text for element in root.iter()}


@pytest.mark.parametrize("state", list(theme.CLASS))
def test_contrast_of_the_states(state):
    for ink in (theme.INK, theme.FAINT, theme.CUSTOM):
        assert contrast(ink, theme.FILL[state]) >= 4.5
    assert contrast(theme.STROKE[state], theme.CARD) >= 4.5  # also the white glyph in the mark
    assert contrast(theme.STROKE[state], theme.FILL[state]) >= 4.5


def test_contrast_on_the_card():
    for ink in (theme.INK, theme.FAINT, theme.LINE, theme.WRITE):
        assert contrast(ink, theme.CARD) >= 4.5


@pytest.mark.parametrize(("layers", "nodes"), [(1, 35), (2, 60)])
def test_text_is_legible_when_the_picture_is_1280_pixels_wide(layers, nodes):
    svg = step_svg(steps(layers)[0], show="all")
    assert len(boxes(svg)) >= nodes
    scale = min(1.0, 1280 / int(parsed(svg).get("width")))
    assert theme.TITLE_SIZE * scale >= 9


def test_unused_legend_entries_are_left_out():
    assert "erased" not in "".join(parsed(step_svg(steps()[0])).itertext())


def test_a_view_and_its_memory_are_joined_by_a_ring():
    svg = step_svg(steps()[0], show="all")
    assert svg.count('class="o"') > 5
    assert "a view: same memory" in "".join(parsed(svg).itertext())
    alone = [replace(node, alias_of=None) for node in steps()[0].nodes]
    assert 'class="o"' not in step_svg(replace(steps()[0], nodes=tuple(alone)), show="all")


def test_alt_text_states_the_finding():
    captured, fused, missed, in_place = steps()
    alt = step_alt(fused, captured)
    assert alt.startswith(
        "RopeFusion: 35 nodes became 27; removed mlalab.unified_mla_kv_cache_update"
    )
    assert "added auto_functionalized(mlalab.fused_rope_update) and 2 more" in alt
    assert "agrees bit for bit" in alt
    assert "no match, the graph of 27 nodes is unchanged" in step_alt(missed, fused)
    assert "not by a quantisation op" in step_alt(missed, fused)
    assert "The check FAILED: cache model.layers.0.self_attn." in step_alt(in_place, missed)
    assert before_after_alt(captured, fused).endswith(alt)


def test_rounding_of_inductor_is_not_called_a_failure():
    *_, missed, in_place = steps()
    assert "FAILED" not in step_alt(replace(in_place, kind="inductor"), missed)


def test_names_are_shortened_so_that_they_still_tell_apart():
    assert elide("l_self_parameters_weight_", 11) == "l_sel…ight_"
    assert elide("short", 11) == "short"
    assert wrap("mlalab.fused_rope_update", 16) == ["mlalab.fused_", "rope_update"]
    assert wrap("x" * 9, 4) == ["xxxx", "xxxx", "x"]
    assert input_name("l_self_modules_layers_modules_0_parameters_weight_") == "layers.0.weight"
    assert input_name("arg0_1") == "arg0_1"
