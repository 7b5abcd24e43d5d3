"""The stepper in a real JupyterLab: shown, stepped from both sides, in both themes, by keyboard."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mlalab.traces import Trace
from tests.browser.chrome import CONTRAST
from tests.browser.lab import PANEL
from tests.viz.samples import steps

pytestmark = pytest.mark.browser
WIDGET = f"{PANEL} .mlalab"
CELLS = (
    "import mlalab\ntrace = mlalab.Trace.load('sample.json')\nmlalab.show(trace)",
    "stepper = trace.widget()\nstepper",
    "stepper.index = 1\nstepper.chosen = 'copy'",
)


@pytest.fixture
def notebook(lab) -> Iterator[object]:
    """A notebook that shows a trace, run; the stepper of its second cell is on its second step."""
    Trace("tiny MLA", steps(3), {"device": "cpu"}).save(lab.folder / "sample.json")
    lab.show("stepper.ipynb", *CELLS)
    lab.page.wait_for_selector(f"{WIDGET} .picture .n")
    yield lab
    assert lab.errors() == []


def stepper(lab):
    return lab.page.locator(f"{PANEL} .jp-CodeCell").nth(1).locator(".mlalab")


def title(lab) -> str:
    return stepper(lab).locator(".finding h2").text_content()


def test_show_gives_the_picture_and_then_the_widget(notebook):
    first = notebook.page.locator(f"{PANEL} .jp-CodeCell").nth(0).locator(".jp-OutputArea-child")
    assert first.count() == 2
    assert first.nth(0).locator("figure img").count() == 1
    assert first.nth(1).locator(".mlalab").count() == 1


def test_python_and_browser_share_step_and_choice(notebook):
    assert title(notebook) == "2 of 4: RopeFusion"
    assert stepper(notebook).locator(".picture .chosen").get_attribute("data-n") == "copy"
    stepper(notebook).locator('.picture [data-n="mm"]').click()
    notebook.page.keyboard.press("ArrowRight")
    assert title(notebook) == "3 of 4: QuantFusion"
    notebook.wait_until_kernel_says("stepper.index, stepper.chosen", "(2, 'mm')")


def test_keys_stay_in_the_widget(notebook):
    """In Lab's command mode, d d deletes a cell, a inserts one, and the arrows leave it."""
    cells = notebook.page.locator(f"{PANEL} .jp-Cell")
    stepper(notebook).locator(".next").click()
    for key in ("d", "d", "a", "ArrowDown", "ArrowLeft"):
        notebook.page.keyboard.press(key)
    assert cells.count() == len(CELLS)
    assert title(notebook) == "2 of 4: RopeFusion"
    stepper(notebook).locator(".search").click()
    notebook.page.keyboard.type("add")
    assert cells.count() == len(CELLS)
    assert_filtered(notebook, "9 of 102 nodes", 3, 9)


def test_filter_dims_and_counts(notebook):
    stepper(notebook).locator(".chip").first.click()
    search = stepper(notebook).locator(".search")
    search.fill("MUL layers.0")
    assert_filtered(notebook, "4 of 93 nodes", 4, 4)
    search.fill("null")  # what JavaScript prints for a node without a layer
    assert_filtered(notebook, "0 of 93 nodes", 0, 0)
    search.fill("")
    assert stepper(notebook).locator(".picture .dim").count() == 0
    assert stepper(notebook).locator(".code li:visible").count() == 93


def assert_filtered(lab, said, boxes, lines):
    """Check what the filter says it found, and what it leaves undimmed and visible."""
    assert stepper(lab).locator("output").text_content() == said
    assert stepper(lab).locator(".picture .n:not(.dim)").count() == boxes
    assert stepper(lab).locator(".code li:visible").count() == lines


def test_keys_with_control_reach_lab(notebook):
    stepper(notebook).locator(".frame").focus()
    notebook.page.keyboard.press("Control+s")
    notebook.page.wait_for_function("!jupyterapp.shell.currentWidget.context.model.dirty")


@pytest.mark.parametrize("system", ["light", "dark"])
@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_it_follows_the_theme_of_lab_and_not_of_the_system(notebook, theme, system):
    notebook.page.emulate_media(color_scheme=system)
    notebook.theme(f"JupyterLab {theme}")
    stepper(notebook).locator(".side").check()
    stepper(notebook).locator('.code [data-n="fused"]').click()
    ground = stepper(notebook).evaluate("n => getComputedStyle(n).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(", "))) > 600) == (theme == "Light")
    measured = notebook.page.evaluate(CONTRAST, f"{WIDGET} *")
    assert len(measured) > 50
    assert [pair for pair in measured if pair[0] < 4.5] == []
    notebook.page.emulate_media(color_scheme="light")


def test_its_height_is_bounded(notebook):
    assert stepper(notebook).bounding_box()["height"] < 800
