"""The sliders of a sweep in a real JupyterLab: what they move, and what a machine cannot do."""

from __future__ import annotations

import pytest

from tests.browser.chrome import CONTRAST
from tests.browser.lab import PANEL

pytestmark = pytest.mark.browser
WIDGET = f"{PANEL} .widget-vbox"
PICTURE = f"{WIDGET} figure img"

_MOVED = """
([picture, image, alt, config, before]) => {
  const shown = document.querySelector(picture);
  return shown.getAttribute("src") !== image && shown.getAttribute("alt") !== alt
    && document.querySelector(config).textContent !== before;
}
"""


@pytest.fixture
def shown(lab):
    lab.show("sweep.ipynb", "import mlalab\nsweep = mlalab.sweep(heads=16)\nmlalab.show(sweep)")
    lab.page.wait_for_selector(PICTURE)
    return lab


def test_the_threshold_slider_moves_ranges_curve_and_config(shown):
    page = shown.page
    picture, config = page.locator(PICTURE), page.locator(f"{WIDGET} pre")
    alt, image = picture.get_attribute("alt"), picture.get_attribute("src")
    before = config.text_content()
    handle = page.locator(f"{WIDGET} .noUi-handle").first
    handle.focus()
    handle.press("ArrowLeft")
    page.wait_for_function(_MOVED, arg=[PICTURE, image, alt, f"{WIDGET} pre", before])
    assert len(picture.get_attribute("alt")) > 40
    assert shown.errors() == []


def test_without_a_gpu_measuring_is_off_and_says_why(shown):
    assert shown.page.get_by_role("button", name="measure here").is_disabled()
    assert "GPU" in shown.page.locator(WIDGET).first.text_content()


def test_everything_is_readable_in_the_dark(shown):
    shown.theme("JupyterLab Dark")
    measured = shown.page.evaluate(CONTRAST, f"{WIDGET} *")
    assert len(measured) > 8
    assert [pair for pair in measured if pair[0] < 4.5 and "measure" not in pair[1]] == []
