"""The lessons in a real JupyterLab: run, and as a reader of a fresh clone finds them."""

from __future__ import annotations

import pytest

from tests.browser.chrome import CONTRAST, watched
from tests.browser.lab import PANEL
from tests.browser.server import NOTEBOOKS

pytestmark = pytest.mark.browser
START = "00_start_here.ipynb"
LESSONS = sorted(
    path.name
    for path in NOTEBOOKS.glob("*.ipynb")
    if not path.stem.endswith(("_exercises", "_solutions"))
)
PICTURES = """
(panel) => [...document.querySelectorAll(panel + " .jp-OutputArea figure img")].map((image) => {
  const box = image.getBoundingClientRect();
  return [image.alt, image.complete && image.naturalWidth, box.width, box.height];
})
"""
CORNERS = """
(panel) => [...document.querySelectorAll(panel + " .jp-OutputArea figure img")].map((image) => {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const pen = canvas.getContext("2d");
  pen.drawImage(image, 0, 0);
  return [...pen.getImageData(canvas.width >> 1, 2, 1, 1).data];
})
"""


def test_the_first_lesson_runs(lab):
    lab.open(lab.copy(START, "run.ipynb"))
    lab.run_all()
    prompts = lab.page.locator(f"{PANEL} .jp-CodeCell .jp-InputPrompt").all_text_contents()
    assert len(prompts) > 5
    assert all(text.strip("[]: ").isdigit() for text in prompts)
    assert lab.errors() == []
    assert_pictures(lab)


@pytest.mark.parametrize("name", LESSONS)
def test_a_fresh_clone_shows_every_picture_without_running(lab, name):
    lab.open(name)
    assert lab.page.locator(f"{PANEL} .jp-OutputArea-output").count() > 3
    assert lab.trusted() == 0
    assert lab.errors() == []
    assert_pictures(lab)


def test_the_dark_theme_leaves_everything_readable(lab):
    lab.theme("JupyterLab Dark")
    lab.open(START)
    captions = lab.page.evaluate(CONTRAST, f"{PANEL} .jp-OutputArea figure *")
    assert captions
    assert [pair for pair in captions if pair[0] < 4.5] == []
    grounds = lab.page.evaluate(CORNERS, PANEL)
    assert grounds
    assert all(min(red, green, blue, alpha) > 240 for red, green, blue, alpha in grounds)


def test_a_traceback_is_seen(lab):
    lab.run("broken.ipynb", "1 / 0")
    assert "ZeroDivisionError" in lab.errors()[0]


@pytest.mark.parametrize("script", ["fetch('http://127.0.0.1:9/').catch(() => {})", "x = y"])
def test_requests_and_errors_are_seen(browser, script):
    page = browser.new_page()
    with (
        pytest.raises(AssertionError),
        watched(page, allowed={"data"}, level=("error",)),
    ):
        page.goto(f"data:text/html,<script>{script}</script>")
        page.wait_for_load_state("networkidle")
    page.close()


def assert_pictures(lab):
    lab.page.wait_for_selector(f"{PANEL} .jp-OutputArea figure img")
    found = lab.page.evaluate(PICTURES, PANEL)
    assert found
    for alt, natural, width, height in found:
        assert len(alt) > 40
        assert natural
        assert width > 50
        assert height > 50
