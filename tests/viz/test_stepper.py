"""The widget without a front end: its traits, what it refuses, and what it carries."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib

import pytest

from mlalab.errors import TraceError
from mlalab.traces import Trace
from mlalab.viz import page_data
from mlalab.viz.cost import Measured
from mlalab.viz.stepper import Stepper
from tests.viz.samples import steps


@pytest.fixture
def trace() -> Trace:
    return Trace("tiny MLA", steps(), {"device": "cpu"})


@pytest.fixture
def stepper(trace) -> Stepper:
    return trace.widget()


def unpacked(stepper: Stepper) -> dict:
    return json.loads(zlib.decompress(stepper.data))


def test_it_starts_on_the_first_step_with_nothing_chosen(stepper):
    assert (stepper.index, stepper.chosen) == (0, "")


def test_it_carries_the_page_s_data(trace, stepper):
    plain = page_data.trace_data(trace.title, trace.steps, trace.meta)
    assert unpacked(stepper) == json.loads(json.dumps(plain))


def test_it_runs_the_page_s_script_and_style(stepper):
    assert page_data.script() in stepper._esm
    assert stepper._esm.rstrip().endswith("export default { render };")
    assert stepper._css == page_data.style()
    assert "http" not in stepper._esm.replace("http://www.w3.org/2000/svg", "")
    assert "import " not in stepper._esm.replace("import is", "")


def test_only_data_step_and_choice_are_synced(stepper):
    ours = {name for name in stepper.keys if not name.startswith("_")}
    assert ours - {"layout", "tabbable", "tooltip"} == {"data", "index", "chosen"}


def test_a_step_set_in_python_is_seen(stepper):
    seen = []
    stepper.observe(lambda change: seen.append(change["new"]), "index")
    stepper.index = 3
    stepper.index = 3
    assert seen == [3]


@pytest.mark.parametrize("index", [-1, 4, 99])
def test_a_step_that_is_not_there_is_refused(stepper, index):
    with pytest.raises(TraceError, match=f"no step {index}; the last is 3"):
        stepper.index = index
    assert stepper.index == 0


def test_a_node_of_any_step_can_be_chosen_and_let_go(stepper):
    for name in ("mul", "fused", ""):
        stepper.chosen = name
        assert stepper.chosen == name


def test_an_unknown_node_is_refused(stepper):
    with pytest.raises(TraceError, match="has a node 'nope'"):
        stepper.chosen = "nope"


def test_messages_of_a_front_end_move_it(stepper):
    stepper.set_state({"index": 2, "chosen": "mm"})
    assert (stepper.index, stepper.chosen) == (2, "mm")


def test_repr_names_the_step_and_nothing_that_changes(trace, stepper):
    assert repr(stepper) == "<Stepper of tiny MLA: step 1 of 4, aot>"
    stepper.index = 1
    assert repr(stepper) == "<Stepper of tiny MLA: step 2 of 4, RopeFusion>"
    bundle = stepper._repr_mimebundle_()[0]
    assert bundle["text/plain"] == repr(stepper)
    assert repr(trace.widget()) == repr(trace.widget())


@pytest.mark.parametrize("form", [Trace.widget, Trace.figure])
def test_an_empty_trace_is_refused(form):
    with pytest.raises(TraceError, match="none has no steps"):
        form(Trace("none", [], {}))


def test_measured_times_are_a_second_shade(trace):
    measured = Measured(us={"aot": {"mm": 12.5}}, device="H200", date="2026-10-01")
    data = unpacked(trace.widget(measured))
    assert [shade[0] for shade in data["shades"]] == [
        "bytes moved, modelled",
        "µs, measured on H200, 2026-10-01",
    ]
    lines = {data["nodes"][line[0]][0]: line[2:] for line in data["steps"][0]["lines"]}
    assert lines["mm"][1] == 12.5
    assert lines["mul"][1] == 0


def test_a_widget_is_loaded_on_demand():
    code = (
        "import sys, mlalab.viz, mlalab.traces, mlalab.viz.show, mlalab.viz.export;"
        "print([m for m in ('anywidget', 'ipywidgets', 'traitlets') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
