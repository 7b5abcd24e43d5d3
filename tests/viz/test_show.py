"""Figures: the form that survives a fresh clone, and text where there is no notebook."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest

import mlalab.viz
from mlalab.records import StepRecord
from mlalab.viz.cost import step_cost
from mlalab.viz.show import (
    Figure,
    Pictured,
    before_after_figure,
    figure_html,
    show,
    step_figure,
    trace_figure,
)
from tests.viz.samples import steps


@dataclass
class Traced:
    title: str
    steps: list[StepRecord]


def test_html_is_an_image_with_alt_and_caption():
    html = figure_html("<svg/>", 'a "quoted" <finding>', "see & learn")
    assert 'alt="a &quot;quoted&quot; &lt;finding&gt;"' in html
    assert "<figcaption>see &amp; learn</figcaption>" in html
    data = re.search(r'src="data:image/svg\+xml;base64,([^"]+)"', html)[1]
    assert base64.b64decode(data) == b"<svg/>"
    # An untrusted notebook drops these, and then the picture would be gone.
    assert not re.search(r"<(svg|style|script)", html)


def test_bundle_has_html_and_the_text_that_repr_gives():
    figure = Figure(svg="<svg/>", alt="alt", caption="caption", text="table")
    bundle = figure._repr_mimebundle_()
    assert bundle["text/plain"] == repr(figure) == "table"
    assert set(bundle) == {"text/html", "text/plain"}


def test_what_is_pictured_ends_a_cell_with_its_picture_and_its_own_text():
    class Thing(Pictured):
        def figure(self):
            return step_figure(steps()[0])

        def __repr__(self):
            return "a thing"

    bundle = Thing()._repr_mimebundle_(include=None, exclude=None)
    assert bundle["text/plain"] == "a thing"
    assert "<img alt=" in bundle["text/html"]


def test_step_figures():
    captured, fused, *_ = steps()
    for figure in (step_figure(fused, captured), before_after_figure(captured, fused)):
        assert figure.alt in figure.svg.replace("&quot;", '"')
        assert figure.caption == "RopeFusion: 35 → 27 nodes: 3 created, 11 erased, 2 rewired"
        assert "aten.mul" in figure.text
    assert step_figure(captured).caption == "aot: 35 nodes"
    assert step_figure(captured).alt == (
        "aot: a graph of 35 nodes, of which 16 move data and 12 are views."
    )
    assert step_cost(captured).launches == 16


def test_trace_figure_is_the_net_result_of_all_passes():
    figure = trace_figure(Traced("tiny", steps()))
    assert figure.caption == "tiny. all passes: 35 → 21 nodes: 2 created, 16 erased, 1 rewired"
    assert figure.text.startswith("tiny\nstep ")


@pytest.mark.parametrize("count", [1, 2])
def test_trace_figure_of_a_short_trace(count):
    assert trace_figure(Traced("tiny", steps()[:count])).svg.startswith("<svg")


def test_trace_figure_starts_at_the_last_new_graph():
    first = replace(steps()[0], name="dynamo")
    aot = replace(steps()[0], retraced=True)
    figure = trace_figure(Traced("tiny", [first, aot, *steps()[1:]]))
    assert figure.caption == trace_figure(Traced("tiny", steps())).caption


def test_show_prints_the_text_outside_a_notebook(capsys):
    show(Figure(svg="<svg/>", alt="alt", caption="caption", text="table"))
    assert capsys.readouterr().out == "table\n"


def test_show_displays_in_a_notebook(monkeypatch):
    display = pytest.importorskip("IPython.display")
    from IPython.core import getipython

    shown: list[object] = []
    monkeypatch.setattr(getipython, "get_ipython", object)
    monkeypatch.setattr(display, "display", shown.append)
    figure = Figure(svg="<svg/>", alt="alt", caption="caption", text="table")
    show(figure)
    assert shown == [figure]


@pytest.mark.parametrize("name", mlalab.viz.__all__)
def test_public_names_resolve(name):
    assert callable(getattr(mlalab.viz, name))


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="no_such_name"):
        mlalab.viz.no_such_name  # noqa: B018


def test_drawing_needs_neither_torch_nor_a_notebook():
    code = (
        "import sys, mlalab.viz.export, mlalab.viz.show;"
        "print([m for m in ('torch', 'IPython', 'numpy') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
