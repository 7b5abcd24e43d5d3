"""The explorer in a real JupyterLab: a control that moves changes the table of steps."""

from __future__ import annotations

import pytest

from tests.browser.chrome import CONTRAST
from tests.browser.lab import PANEL

pytestmark = pytest.mark.browser
TEXT = f"{PANEL} .mlalab-text"
STEPPER = f"{PANEL} .widget-vbox .mlalab"
SETUP = """
import mlalab
from mlalab.passes.fusion import GraphFusion, PassResult
from mlalab.passes.pipeline import PIPELINE

lab = mlalab.explore("tiny", tokens=2, passes=lambda: [*PIPELINE[:-1], mine(), PIPELINE[-1]])
""".strip()
PASS = """
def mine():
    return GraphFusion(name="Mine", note="", run=run)


def run(graph):
    {}
""".strip()


@pytest.fixture
def shown(lab):
    lab.run("explore.ipynb", PASS.format("return PassResult()"), SETUP, "lab.widget()")
    lab.page.wait_for_selector(f"{TEXT} >> text=MLARoPEKVCacheCatFusionPass")
    return lab


def text(lab):
    return "\n".join(lab.page.locator(TEXT).all_text_contents())


def test_controls_and_edits_change_what_is_shown_in_either_theme(shown):
    page = shown.page
    page.wait_for_selector(f"{STEPPER} .picture .n")
    page.get_by_label("MLARoPEKVCacheCatFusionPass").click()
    page.wait_for_function(
        "s => ![...document.querySelectorAll(s)].some(n => /MLARoPE|tracing/.test(n.textContent))",
        arg=TEXT,
    )
    handle = page.locator(f"{PANEL} .widget-slider .noUi-handle").first
    handle.focus()
    handle.press("ArrowRight")
    page.wait_for_selector(f"{STEPPER} h1 >> text=3 tokens")
    source = PASS.format("raise ValueError('half written')")
    page.evaluate(
        "(source) => jupyterapp.shell.currentWidget.content.widgets[0].model.sharedModel"
        ".setSource(source)",
        source,
    )
    page.evaluate("() => { jupyterapp.shell.currentWidget.content.activeCellIndex = 0 }")
    shown.run_command("notebook:run-cell")
    page.wait_for_selector(f"{TEXT} >> text=ValueError: half written.")
    assert "aot" in text(shown)
    assert shown.errors() == []

    shown.theme("JupyterLab Dark")
    assert shown.screenshot("explorer").exists()
    measured = page.evaluate(CONTRAST, f"{PANEL} .widget-vbox *")
    assert len(measured) > 12
    assert [pair for pair in measured if pair[0] < 4.5] == []
