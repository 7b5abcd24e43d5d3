"""The exported page in a real browser: from disk, by keyboard, without a single request."""

from __future__ import annotations

import re

import pytest

from tests.browser.chrome import CONTRAST

pytestmark = pytest.mark.browser


def title(page) -> str:
    return page.locator(".finding h2").text_content()


def test_opens_from_disk_on_the_first_step(page):
    assert title(page) == "1 of 4: aot"
    assert page.locator(".chip").count() == 4
    assert page.locator(".meta").text_content() == "device cpu"


def test_steps_by_arrow_keys(page):
    page.keyboard.press("ArrowRight")
    assert title(page) == "2 of 4: RopeFusion"
    assert page.locator(".picture .n.c").count() > 0
    assert page.locator(".picture .n.d").count() > 0
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")  # already at the first
    assert title(page) == "1 of 4: aot"


def test_steps_by_slider_buttons_and_chips(page):
    page.locator(".slider").focus()
    page.keyboard.press("ArrowRight")
    assert title(page).startswith("2 of 4")
    page.locator(".next").click()
    assert title(page).startswith("3 of 4")
    page.locator(".chip").nth(3).click()
    assert title(page).startswith("4 of 4")
    assert page.locator(".next").is_disabled()
    assert page.locator('.chip[aria-current="step"]').text_content().startswith("4 ")


def test_play_runs_to_the_end_and_stops(page):
    page.clock.install()
    page.locator(".play").click()
    page.clock.run_for(60_000)
    assert title(page).startswith("4 of 4")
    assert "play" in page.locator(".play").text_content()


def test_the_address_names_the_step(page, file):
    page.keyboard.press("ArrowRight")
    page.wait_for_url(re.compile(r"#step=2$"))
    page.goto(f"{file.as_uri()}#step=3")
    page.wait_for_function("document.querySelector('.finding h2').textContent.startsWith('3 of')")


def test_focus_and_hover_show_the_facts_of_a_node(page):
    page.keyboard.press("ArrowRight")
    page.locator('.picture [data-n="copy"]').focus()
    details = page.locator(".details").text_content()
    assert "copy~ rewired" in details
    assert "[8, 4, 16]" in details
    assert "1,024" in details
    page.locator('.picture [data-n="fused"]').hover()
    assert "fused+ created" in page.locator(".details").text_content()


def test_the_picture_is_one_tab_stop_with_arrow_keys_inside(page):
    assert page.locator('.picture .n[tabindex="0"]').count() == 1
    page.locator('.picture .n[tabindex="0"]').focus()
    first = page.evaluate("document.activeElement.dataset.n")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.dataset.n") != first
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.dataset.n") == first


def test_a_click_ties_node_and_line(page):
    page.locator('.picture [data-n="mm"]').click()
    assert page.locator(".code .chosen").get_attribute("data-n") == "mm"
    page.locator('.code [data-n="update"]').click()
    assert page.locator(".picture .chosen").get_attribute("data-n") == "update"
    page.keyboard.press("ArrowRight")  # erased by this step, still drawn and still chosen
    assert page.locator(".picture .chosen").get_attribute("data-n") == "update"


def test_why_it_did_not_match_leads_to_the_node(page):
    page.locator(".chip").nth(2).click()
    why = page.locator(".facts")
    assert "aten.mm(getitem_3, permute_1)" in why.text_content()
    why.locator("[data-pick]").click()
    assert page.locator(".code .chosen").get_attribute("data-n") == "getitem_3"


def test_filter_dims_and_counts(page):
    page.locator(".search").fill("MUL layers.0")
    assert page.locator("output").text_content() == "4 of 93 nodes"
    assert page.locator(".picture .n:not(.dim)").count() == 4
    assert page.locator(".code li:visible").count() == 4
    page.locator(".search").fill("null")  # what JavaScript prints for a node without a layer
    assert page.locator(".code li:visible").count() == 0
    page.locator(".search").fill("")
    page.locator(".chip").nth(1).click()
    page.locator(".changed").check()
    assert page.locator(".picture .n.s:not(.dim)").count() == 0
    assert page.locator(".picture .n.c:not(.dim)").count() > 0


def test_every_node_can_be_shown(page):
    folded = page.locator(".picture .n").count()
    page.locator(".all").check()
    assert page.locator(".picture .n").count() == 93 > folded


@pytest.mark.parametrize("page", ["light", "dark"], indirect=True)
@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_contrast(page, step):
    page.locator(".chip").nth(step).click()
    page.locator(".picture .n").first.click()
    measured = page.evaluate(CONTRAST, ".mlalab *")
    assert len(measured) > 50
    assert [pair for pair in measured if pair[0] < 4.5] == []


@pytest.mark.parametrize("page", ["light", "dark"], indirect=True)
def test_the_picture_keeps_its_light_card(page):
    card = page.locator(".picture").evaluate("n => getComputedStyle(n).backgroundColor")
    assert card == "rgb(255, 255, 255)"
