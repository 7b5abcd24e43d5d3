"""The FP8 byte in a real JupyterLab: shown, flipped from both sides, in both themes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser.chrome import CONTRAST
from tests.browser.lab import PANEL

pytestmark = pytest.mark.browser
CELLS = (
    "import mlalab\nmlalab.show(mlalab.inspect_fp8(0x38, format='e4m3fn', source=1.05))",
    "bits = mlalab.inspect_fp8(0x38, format='e4m3fn').widget()\nbits",
    "bits.byte = 0x80",
)


@pytest.fixture
def notebook(lab) -> Iterator[object]:
    """A notebook that shows a byte, run; the one of its second cell was set to 0x80."""
    lab.show("bits.ipynb", *CELLS)
    lab.page.wait_for_selector(f"{PANEL} .mlalab-bits tbody tr")
    yield lab
    assert lab.errors() == []


def widget(lab):
    return lab.page.locator(f"{PANEL} .jp-CodeCell").nth(1).locator(".mlalab-bits")


def test_show_gives_the_picture_and_then_the_widget(notebook):
    first = notebook.page.locator(f"{PANEL} .jp-CodeCell").nth(0).locator(".jp-OutputArea-child")
    assert first.count() == 2
    assert first.nth(0).locator("figure img").count() == 1
    assert first.nth(1).locator(".mlalab-bits .bits button").count() == 8


def test_python_and_browser_share_byte_and_format(notebook):
    byte = widget(notebook)
    assert byte.locator(".said").text_content() == "0x80 is −0 (negative zero)"
    byte.get_by_role("button", name="bit 6,").click()
    byte.get_by_label("read as").select_option("e4m3fnuz")
    assert byte.locator(".said").text_content() == "0xC0 is −1 (normal)"
    notebook.wait_until_kernel_says("bits.byte, bits.format, bits.value", "(192, 'e4m3fnuz', -1.0)")


def test_keys_flip_bits_and_leave_the_notebook_alone(notebook):
    """In Lab's command mode, d d deletes a cell, a inserts one, and the arrows leave it."""
    byte = widget(notebook)
    byte.get_by_role("button", name="bit 7,").focus()
    for key in ("ArrowRight", "Space", "d", "d", "a"):
        notebook.page.keyboard.press(key)
    assert byte.locator(".said").text_content() == "0xC0 is −2 (normal)"
    assert notebook.page.locator(f"{PANEL} .jp-Cell").count() == len(CELLS)


def test_contrast_follows_labs_theme(notebook):
    grounds = []
    for theme in ("JupyterLab Light", "JupyterLab Dark"):
        notebook.theme(theme)
        measured = notebook.page.evaluate(CONTRAST, f"{PANEL} .mlalab-bits *")
        assert len(measured) > 50
        assert [pair for pair in measured if pair[0] < 4.5] == []
        grounds.append(
            widget(notebook).evaluate("n => getComputedStyle(n).backgroundColor.match(/\\d+/g)")
        )
    light, dark = ([int(part) for part in ground[:3]] for ground in grounds)
    assert min(light) > 200
    assert max(dark) < 60
