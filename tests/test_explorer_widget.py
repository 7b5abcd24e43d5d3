"""A control that moves changes the state and what is shown, and the other way round."""

from __future__ import annotations

import pytest

import mlalab
from mlalab import explorer_widget
from mlalab.passes.fusion import CleanUp, GraphFusion, PassResult
from tests.test_explorer import BOOM, FUSION

pytest.importorskip("ipywidgets")


@pytest.fixture(scope="module")
def lab():
    return mlalab.explore("tiny", tokens=2, check=False)


def test_controls_show_the_state(lab):
    panel = lab.widget()
    assert lab.widget() is panel
    shown = {name: control.value for name, control in panel.controls.items()}
    assert shown == {
        **{"model": "tiny", "tokens": 2, "dtype": "bfloat16", "kv_cache_dtype": "auto"},
        **{"level": "O2", "mode": "display"},
    }
    assert not panel.controls["tokens"].continuous_update
    assert {name: box.value for name, box in panel.passes.items()} == lab.state.switches()
    assert panel.stepper.trace is panel.explorer.trace
    assert panel.children[-1] is panel.stepper


def test_a_control_that_moves_traces_again(lab):
    panel = lab.widget()
    table = panel.table.value
    panel.controls["tokens"].value = 3
    assert lab.trace.title.endswith("3 tokens")
    panel.passes[FUSION].value = False
    assert FUSION in table
    assert FUSION not in panel.table.value
    assert lab.state.on == {FUSION: False}
    panel.controls["level"].value = "O0"
    assert not any(box.value for box in panel.passes.values())


def test_what_python_sets_moves_the_controls(lab):
    panel = lab.widget()
    lab.set(tokens=300, level="O2", on={}, dtype="float32")
    assert (panel.controls["tokens"].value, panel.controls["tokens"].max) == (300, 300)
    assert panel.controls["dtype"].value == "float32"
    assert panel.passes[FUSION].value
    assert lab.error is None


def test_an_error_is_shown_and_the_stepper_stays():
    lab = mlalab.explore("tiny", tokens=2, passes=[BOOM], on={"Boom": False}, check=False)
    panel = lab.widget()
    stepper = panel.stepper
    panel.passes["Boom"].value = True
    assert "ValueError: no such node." in panel.message.value
    assert panel.stepper is stepper
    lab.set(tokens=-1)
    assert "tokens must be a whole number, 0 or more" in panel.message.value
    lab.set(tokens=2, on={"Boom": False})
    assert "ValueError" not in panel.message.value


def test_an_edited_pass_is_followed_and_an_equal_one_is_not():
    def passes():
        return [GraphFusion(name="Mine", note=note, run=lambda graph: PassResult())]

    note, count = "Old.", []
    lab = mlalab.explore("tiny", tokens=2, passes=passes, check=False)
    panel = lab.widget()
    lab.listeners.append(lambda: count.append(1))
    panel.follow()
    assert count == []
    note = "New."
    panel.follow()
    assert count == [1]
    assert lab.trace["Mine"].note == "New."
    panel.follow()
    assert count == [1]


def test_passes_that_come_and_go_get_boxes():
    idle = [CleanUp(name=name, note="", run=lambda graph: PassResult()) for name in ("A", "B")]
    lab = mlalab.explore("tiny", tokens=2, passes=idle[:1], check=False)
    panel = lab.widget()
    lab.set(passes=idle)
    assert list(panel.passes) == ["A", "B"]
    panel.passes["B"].value = False
    assert lab.state.on == {"B": False}


def test_a_pass_that_was_renamed_is_no_dead_end():
    def passes():
        return [CleanUp(name=name, note="", run=lambda graph: PassResult())]

    name = "Old"
    lab = mlalab.explore("tiny", tokens=2, passes=passes, check=False)
    panel = lab.widget()
    panel.passes["Old"].value = False
    name = "New"
    panel.follow()
    assert lab.error is None
    assert list(panel.passes) == ["New"]
    assert lab.state.on == {}


@pytest.mark.parametrize("tokens", ["many", None, 2.5])
def test_what_no_control_can_show_is_an_error_and_nothing_raised(lab, tokens):
    panel = lab.widget()
    lab.set(tokens=4)
    lab.set(tokens=tokens)
    assert lab.error
    assert panel.controls["tokens"].value == 4
    lab.set(tokens=2)
    assert lab.error is None


def test_a_dtype_that_is_unset_again_is_shown_as_what_it_then_is(lab):
    panel = lab.widget()
    lab.set(dtype="float16", kv_cache_dtype="fp8")
    lab.set(dtype=None, kv_cache_dtype=None)
    shown = [panel.controls[name].value for name in ("dtype", "kv_cache_dtype")]
    assert shown == ["bfloat16", "auto"]
    assert lab.trace.meta["dtype"] == "bfloat16"


def test_a_layer_has_no_choice_of_dtypes():
    layer = mlalab.build("tiny").layers[0]
    panel = mlalab.explore(layer, tokens=2, check=False).widget()
    assert list(panel.controls) == ["tokens", "level", "mode"]


def test_only_the_latest_panel_follows_the_cells(monkeypatch, lab):
    from IPython.core import getipython

    class Shell:
        def __init__(self):
            self.events, self.calls = self, []

        def register(self, event, call):
            self.calls.append(call)

        def unregister(self, event, call):
            self.calls.remove(call)

    shell = Shell()
    monkeypatch.setattr(getipython, "get_ipython", lambda: shell)
    monkeypatch.setattr(explorer_widget, "_followers", [])
    panels = [explorer_widget.panel(lab) for _ in range(2)]
    assert shell.calls == [panels[1].follow]
