"""The exported page's ways of looking at a step: side by side, shaded, and by keyboard alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mlalab.viz import page_data
from mlalab.viz.cost import bytes_text
from mlalab.viz.export import trace_html
from tests.browser.chrome import CONTRAST
from tests.viz.samples import steps

pytestmark = pytest.mark.browser
# From the key until the browser has drawn: a message is delivered after the frame's paint.
STEP_MS = """
async (key) => {
  const start = performance.now();
  document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  await new Promise((resolve) => requestAnimationFrame(() => {
    const channel = new MessageChannel();
    channel.port1.onmessage = resolve;
    channel.port2.postMessage(0);
  }));
  return performance.now() - start;
}
"""
IN_VIEW = """
(name) => {
  const rect = (selector) => document.querySelector(selector).getBoundingClientRect();
  const line = rect(`.code [data-n="${name}"]`);
  return line.y >= rect(".details").bottom - 1 && line.bottom <= rect("aside").bottom + 1;
}
"""
IN_FOCUS = "document.activeElement.dataset.n ?? document.activeElement.className"


def figures(page):
    return page.locator(".picture figure")


@pytest.fixture
def fused(page):
    """The page on the step that fuses."""
    page.locator(".chip").nth(1).click()
    return page


def test_overlay_is_one_picture_and_side_by_side_two(fused):
    assert figures(fused).count() == 1
    fused.locator(".side").check()
    heads = fused.locator(".picture figcaption").all_text_contents()
    assert heads == ["before: aot, 93 nodes", "after: RopeFusion, 69 nodes"]
    before, after = figures(fused).nth(0), figures(fused).nth(1)
    assert before.locator('[data-n="mul"]').count() == 1
    assert after.locator('[data-n="mul"]').count() == 0
    assert after.locator('[data-n="fused"]').count() == 1
    for figure in (before, after):
        assert "×2" in figure.locator('[data-n^="layers:"]').text_content()
    fused.locator(".side").uncheck()
    assert figures(fused).count() == 1


def test_the_first_step_has_no_before(page):
    page.locator(".side").check()
    assert page.locator(".picture figcaption").all_text_contents() == ["aot, 93 nodes"]


def test_hover_and_choice_show_on_both_sides(fused):
    fused.locator(".side").check()
    for figure in (figures(fused).nth(0), figures(fused).nth(1)):
        figure.locator('[data-n="copy"]').hover()
        assert fused.locator('.picture .hot[data-n="copy"]').count() == 2
        assert "copy~ rewired" in fused.locator(".details").text_content()
    figures(fused).nth(0).locator('[data-n="copy"]').click()
    assert fused.locator('.picture .chosen[data-n="copy"]').count() == 2
    assert fused.locator(".code .chosen").get_attribute("data-n") == "copy"


def test_every_node_side_by_side(fused):
    fused.locator(".side").check()
    fused.locator(".all").check()
    assert [figures(fused).nth(i).locator(".n").count() for i in (0, 1)] == [93, 69]


def test_the_cost_stands_beside_every_step(page):
    for number in range(4):
        page.locator(".chip").nth(number).click()
        assert page.locator(".cost").text_content().startswith("modelled: ")
        assert "bytes moved" in page.locator(".facts").text_content()
    assert " launches, " in page.locator(".cost").text_content()
    assert " → " in page.locator(".cost").text_content()


def test_shading_by_bytes_with_amounts_and_a_legend(fused):
    fused.locator(".shade").select_option(label="bytes moved, modelled")
    legend = fused.locator(".scale").text_content()
    assert legend.startswith("bytes moved, modelled:noneunder 10 B")
    mm = fused.locator('.picture [data-n="mm"]')
    assert "40.2 kB" in mm.text_content()
    light, dark = (
        fused.locator(f'.picture [data-n="{name}"] .b').evaluate("n => getComputedStyle(n).fill")
        for name in ("x", "mm")
    )
    assert (light, dark) == ("rgb(255, 255, 255)", "rgb(242, 154, 31)")
    mm.hover()
    assert "modelled40.2 kB" in fused.locator(".details").text_content()
    box = fused.locator('.picture [data-n^="layers:"]')
    box.hover()
    assert "modelled" in fused.locator(".details").text_content()
    fused.locator(".shade").select_option(label="none")
    assert fused.locator(".picture .k").count() == 0
    assert fused.locator(".scale").text_content() == ""


def test_amounts_read_as_in_python(page):
    """But for trailing zeros, which a label in the picture leaves out of round numbers."""
    counts = [1, 512, 999, 1000, 1049, 65_536, 999_499, 999_500, 10**6 - 1, 24_100_000]
    script = page_data.static_text("stepper_shade.js")
    told = page.evaluate(
        f"(counts) => {{ {script}; return counts.map((n) => amount(n, 'B')) }}", counts
    )
    expected = [bytes_text(count) for count in counts]
    assert [x.replace(".00", "") for x in told] == [x.replace(".00", "") for x in expected]


def test_measured_times_say_where_and_when(page):
    page.locator(".shade").select_option(label="µs, measured on H200, 2026-10-01")
    assert page.locator(".picture .k").all_text_contents() == ["12.5 µs", "0.500 µs"]
    assert "measured on H200, 2026-10-01" in page.locator(".scale").text_content()
    page.locator(".next").click()  # a step without times; its erased nodes keep theirs
    assert page.locator(".picture .k").all_text_contents() == ["0.500 µs"]


def test_the_focus_stays_while_stepping(page):
    page.locator('.picture [data-n="mm"]').focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate(IN_FOCUS) == "mm"
    page.locator(".prev").focus()
    page.keyboard.press("Enter")  # the first step, where there is nothing before
    assert page.evaluate(IN_FOCUS) == "frame"
    page.locator(".next").focus()
    for _ in range(3):
        page.keyboard.press("Enter")
    assert page.evaluate(IN_FOCUS) == "frame"


def test_everything_is_reached_by_tab(fused):
    fused.locator(".frame").focus()
    reached = set()
    for _ in range(40):
        fused.keyboard.press("Tab")
        reached |= set(fused.evaluate("document.activeElement.getAttribute('class') ?? ''").split())
    assert {"chip", "play", "slider", "side", "all", "fit", "shade", "search", "changed"} <= reached
    assert {"n", "s"} & reached


@pytest.mark.parametrize("page", ["light", "dark"], indirect=True)
def test_contrast_side_by_side_and_shaded(fused):
    fused.locator(".side").check()
    fused.locator(".shade").select_option("0")
    fused.locator('.picture [data-n="fused"]').click()
    measured = fused.evaluate(CONTRAST, ".mlalab *")
    assert len(measured) > 50
    assert [pair for pair in measured if pair[0] < 4.5] == []


def test_a_step_is_quick(page):
    """Generous, as the machine may be busy; it takes 20 to 60 ms."""
    times = [page.evaluate(STEP_MS, key) for key in ("ArrowRight", "ArrowLeft") * 3]
    assert min(times) < 100


def test_a_graph_traced_anew_shares_no_names_with_the_one_before(browser, tmp_path):
    captured = steps()[0]
    path = tmp_path / "anew.html"
    anew = replace(captured, name="anew", retraced=True)
    path.write_text(trace_html("anew", [captured, anew], {}), encoding="utf-8")
    page = browser.new_page()
    page.goto(f"{path.as_uri()}#step=2")
    page.locator(".side").check()
    figures(page).nth(0).locator('[data-n="mm (before)"]').hover()
    assert page.locator(".picture .hot[data-n]").count() == 1
    assert "mm = aten.mm" in page.locator(".details").text_content()
    figures(page).nth(1).locator('[data-n="mm"]').hover()
    assert page.locator(".picture .hot[data-n]").count() == 1
    page.close()


def test_sixty_one_layers_step_and_find_a_line(browser, tmp_path):
    path = tmp_path / "many.html"
    path.write_text(trace_html("many", steps(61), {}), encoding="utf-8")
    page = browser.new_page(viewport={"width": 1280, "height": 860})
    page.goto(path.as_uri())
    assert page.locator(".all").is_disabled()
    times = [page.evaluate(STEP_MS, key) for key in ("ArrowRight", "ArrowLeft") * 3]
    assert min(times) < 400  # 40 to 100 ms on a machine with nothing else to do
    page.locator('.picture [data-n="output"]').click()
    page.wait_for_function(IN_VIEW, arg="output")  # among the last of two thousand lines
    assert page.evaluate("scrollY") == 0
    page.close()
