"""The live FP8 byte in a real browser, in a page opened from disk: no kernel, no request."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from mlalab.fp8 import FORMATS
from mlalab.viz.bits_widget import format_rows
from tests.browser.chrome import CONTRAST, watched

pytestmark = pytest.mark.browser
LEVELS = ("debug", "info", "log", "warning", "error")
STATIC = files("mlalab.viz") / "static"
MODEL = """
const state = STATE;
const listeners = {};
globalThis.saved = 0;
globalThis.model = {
  get: (name) => state[name],
  set: (name, value) => {
    if (state[name] === value) return;
    state[name] = value;
    (listeners[`change:${name}`] ?? []).forEach((listener) => listener());
  },
  on: (event, listener) => (listeners[event] ??= []).push(listener),
  save_changes: () => { globalThis.saved += 1; },
};
globalThis.leaked = [];
document.addEventListener("keydown", (event) => globalThis.leaked.push(event.key));
globalThis.bits = { decode, kindOf, neighbours };
render({ model: globalThis.model, el: document.getElementById("here") });
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = {
        "byte": 0x38,
        "format": "e4m3fn",
        "formats": format_rows(),
        "source": 0.4,
        "scale": 0.37,
    }
    style = (STATIC / "bits.css").read_text(encoding="utf-8")
    script = (STATIC / "bits.js").read_text(encoding="utf-8")
    script += MODEL.replace("STATE", json.dumps(state))
    path = tmp_path_factory.mktemp("bits") / "bits.html"
    path.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>bits</title>'
        f'<style>{style}</style><body><div id="here"></div>'
        f'<script type="module">{script}</script></body></html>',
        encoding="utf-8",
    )
    return path


@pytest.fixture
def page(browser, file, request) -> Iterator[object]:
    """The page, opened from disk; fails the test on any request, error or warning."""
    # The system's theme is the opposite of Lab's throughout: only Lab's may count.
    theme = getattr(request, "param", "light")
    system = "light" if theme == "dark" else "dark"
    context = browser.new_context(color_scheme=system, viewport={"width": 860, "height": 620})
    page = context.new_page()
    with watched(page, allowed={"file"}, level=LEVELS):
        page.goto(file.as_uri())
        page.wait_for_selector(".mlalab-bits tbody tr")
        light = json.dumps(str(theme == "light").lower())
        page.evaluate(f"document.body.dataset.jpThemeLight = {light}")
        yield page
    context.close()


def trait(page, name: str) -> object:
    return page.evaluate(f"model.get({name!r})")


def said(page) -> str:
    return page.locator(".said").text_content()


def bit(page, number: int):
    return page.get_by_role("button", name=f"bit {number},")


def test_shows_the_byte_in_every_format(page):
    assert said(page) == "0x38 is 1 (normal)"
    rows = page.locator("tbody tr").all_inner_texts()
    assert [row.split("\t")[-1] for row in rows] == ["1", "0.5", "0.5"]
    assert page.locator("tbody tr[aria-current]").inner_text().startswith("e4m3fn")
    assert "relative error 7.50 %" in page.locator(".source").text_content()


def test_a_click_flips_a_bit(page):
    bit(page, 7).click()
    assert trait(page, "byte") == 0xB8
    assert said(page) == "0xB8 is −1 (normal)"
    assert bit(page, 7).get_attribute("aria-pressed") == "true"
    assert bit(page, 7).get_attribute("aria-label") == "bit 7, sign, is 1"
    bit(page, 7).click()
    assert trait(page, "byte") == 0x38
    assert bit(page, 7).get_attribute("aria-pressed") == "false"
    assert page.evaluate("saved") == 2


def test_keys_move_and_flip_and_stay_inside(page):
    bit(page, 7).focus()
    page.keyboard.press("ArrowLeft")  # already at the first
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    assert trait(page, "byte") == 0x78
    for _ in range(9):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert trait(page, "byte") == 0x79
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "below"
    assert page.evaluate("leaked") == []
    page.keyboard.press("Control+b")
    assert page.evaluate("leaked") == ["Control", "b"]


def test_the_format_picker(page):
    page.get_by_label("read as").select_option("e4m3fnuz")
    assert trait(page, "format") == "e4m3fnuz"
    assert said(page) == "0x38 is 0.5 (normal)"
    names = [b.get_attribute("class").split()[0] for b in page.locator(".bits button").all()]
    page.get_by_label("read as").select_option("e5m2")
    wider = [b.get_attribute("class").split()[0] for b in page.locator(".bits button").all()]
    assert (names.count("exponent"), wider.count("exponent")) == (4, 5)


def test_python_moves_it(page):
    page.evaluate("model.set('byte', 0x80); model.set('format', 'e4m3fnuz')")
    assert said(page) == "0x80 is NaN (NaN)"
    kinds = page.locator("tbody td:nth-child(3)").all_inner_texts()
    assert kinds == ["−0 negative zero", "× NaN", "−0 negative zero"]
    assert page.locator(".below").is_disabled()
    assert page.locator(".above").text_content() == "next above ▶: none"
    assert page.locator(".axis").is_hidden()
    assert page.locator(".source").text_content() == "source 0.4 reads back as NaN"


def test_buttons_go_to_the_neighbours(page):
    page.locator(".above").click()
    assert said(page) == "0x39 is 1.125 (normal)"
    page.locator(".below").click()
    page.locator(".below").click()
    assert said(page) == "0x37 is 0.9375 (normal)"
    page.evaluate("model.set('byte', 0x7E)")
    assert page.locator(".above").is_disabled()
    assert page.locator(".axis text").all_text_contents() == ["384", "416", "448"]
    page.evaluate("model.set('byte', 0x38)")
    assert page.locator(".axis text").all_text_contents() == [
        *("0.875", "0.9375", "1", "1.125", "1.25")
    ]


def test_the_script_reads_every_byte_as_python_does(page):
    script = """() => model.get("formats").flatMap((format) =>
      [...Array(256).keys()].map((b) => [String(bits.decode(format, b)),
        Object.is(bits.decode(format, b), -0), bits.kindOf(format, b),
        bits.neighbours(format, b).map((c) => c ?? null)]))"""
    pairs = [(fmt, byte) for fmt in FORMATS.values() for byte in range(256)]
    for (fmt, byte), row in zip(pairs, page.evaluate(script), strict=True):
        text, is_negative_zero, kind, next_to = row
        value = fmt.decode(byte)
        assert kind == fmt.kind(byte)
        assert tuple(next_to) == fmt.neighbours(byte)
        assert is_negative_zero == (value == 0 and math.copysign(1, value) < 0)
        if math.isnan(value):
            assert text == "NaN"
        else:
            assert float(text.replace("Infinity", "inf")) == value


@pytest.mark.parametrize("page", ["light", "dark"], indirect=True)
def test_contrast(page):
    for byte in (0x38, 0x80, 0x7F):
        page.evaluate(f"model.set('byte', {byte})")
        measured = page.evaluate(CONTRAST, ".mlalab-bits *")
        assert len(measured) > 25
        assert [pair for pair in measured if pair[0] < 4.5] == []


@pytest.mark.parametrize("page", ["light", "dark"], indirect=True)
def test_follows_labs_theme_and_not_the_systems(page, request):
    ground = page.locator(".mlalab-bits").evaluate("n => getComputedStyle(n).backgroundColor")
    is_light = request.node.callspec.params["page"] == "light"
    assert ground == ("rgb(255, 255, 255)" if is_light else "rgb(15, 20, 26)")
    page.evaluate("document.body.style.setProperty('--jp-layout-color1', 'rgb(1, 2, 3)')")
    ground = page.locator(".mlalab-bits").evaluate("n => getComputedStyle(n).backgroundColor")
    assert ground == "rgb(1, 2, 3)"
