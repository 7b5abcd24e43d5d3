"""The exported page on a step that refused a pattern: its picture leads to the graph's node."""

from __future__ import annotations

import pytest

from mlalab.viz.export import trace_html
from tests.browser.chrome import CONTRAST
from tests.viz.samples import refused

pytestmark = pytest.mark.browser


@pytest.fixture
def why(page, tmp_path):
    """A page on a step whose pattern was refused in three layers."""
    path = tmp_path / "why.html"
    path.write_text(trace_html("why", refused(3), {}), encoding="utf-8")
    page.goto(f"{path.as_uri()}#step=2")
    page.wait_for_selector(".why")
    return page


def figures(page):
    return page.locator(".picture figure")


def test_a_refused_pattern_stands_beside_the_graph(why):
    assert figures(why).count() == 2
    head = why.locator(".why figcaption").text_content()
    assert head == "pattern plain/neox, fusion.py:38: 2 of 5 ops agree"
    assert why.locator(".why .y.no").count() == 1
    assert why.locator(".why svg").get_attribute("aria-label").startswith("Pattern plain/neox")
    assert why.locator(".why [data-n], .why [data-a]").count() == 0
    why.locator(".whys").uncheck()
    assert figures(why).count() == 1
    why.locator(".whys").check()
    why.locator(".side").check()
    assert figures(why).count() == 3


def test_steps_without_a_refused_pattern_have_none(why):
    why.locator(".prev").click()
    assert why.locator(".why").count() == 0
    assert why.locator(".whys").is_disabled()
    why.locator(".next").click()
    assert why.locator(".why").count() == 1


def test_the_node_that_differs_leads_to_the_graph(why):
    node = why.locator(".why .y.no")
    node.hover()
    assert why.locator('.picture .hot[data-n="neg_1"]').count() == 1
    assert "neg_1 = aten.neg" in why.locator(".details").text_content()
    why.locator(".why .y.ok").first.hover()
    assert why.locator(".hot").count() == 0
    node.click()
    assert why.locator('.picture .chosen[data-n="neg_1"]').count() == 1
    assert why.locator(".code .chosen").get_attribute("data-n") == "neg_1"


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_the_node_that_differs_is_a_button(why, key):
    why.locator(".picture .n").first.focus()
    for _ in range(3):
        why.keyboard.press("Tab")
        if why.evaluate("document.activeElement.matches('.no')"):
            break
    assert why.evaluate("document.activeElement.dataset.pick") == "neg_1"
    assert "neg_1 = aten.neg" in why.locator(".details").text_content()
    why.keyboard.press(key)
    assert why.locator(".code .chosen").get_attribute("data-n") == "neg_1"


@pytest.mark.parametrize("page", ["light", "dark"], indirect=True)
def test_contrast_of_a_refused_pattern(why):
    measured = why.evaluate(CONTRAST, ".mlalab .why *, .mlalab .bar *")
    assert len(measured) > 10
    assert [pair for pair in measured if pair[0] < 4.5] == []
    ground = why.locator(".picture").evaluate("n => getComputedStyle(n).backgroundColor")
    assert ground == "rgb(255, 255, 255)"


def test_filters_leave_the_pattern_alone(why):
    why.locator(".search").fill("no such node")
    assert why.locator(".picture .n.dim").count() > 0
    assert why.locator(".why .dim").count() == 0
