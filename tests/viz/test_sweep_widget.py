"""The sliders, without a front end: values go in at the traits, pictures come out."""

from __future__ import annotations

import dataclasses
import threading

import pytest
import torch

import mlalab
from mlalab.sweeps.spec import SweepSpec
from mlalab.sweeps.sweep import Sweep
from tests.sweeps.played import record

CPU = torch.device("cpu")


def parts(widget):
    """Return the controls by field, and the rest by what it is."""
    *controls, measuring, said, picture, config = widget.children
    buttons, told = measuring.children
    start, cancel, bar = buttons.children
    named = {"said": said, "picture": picture, "config": config, "told": told}
    return {c.description: c for c in controls}, named | {
        **{"start": start, "cancel": cancel, "bar": bar}
    }


@pytest.fixture
def sweep():
    return Sweep(SweepSpec(max_num_seqs=8), CPU)


def test_controls_begin_at_the_setting_and_answer_when_let_go(sweep):
    controls, shown = parts(sweep.widget())
    spec = sweep.spec
    assert {n: c.value for n, c in controls.items()} == {n: getattr(spec, n) for n in controls}
    assert set(controls) == set(SweepSpec.__dataclass_fields__)
    assert not any(c.continuous_update for n, c in controls.items() if "num" in n)
    assert 'alt="Uniform decode batches of up to 8 tokens' in shown["picture"].value
    assert "max_num_seqs=8" in shown["config"].value


def test_a_slider_changes_the_sweep_the_picture_and_the_configuration(sweep):
    controls, shown = parts(sweep.widget())
    controls["max_num_seqs"].value = 20
    controls["num_speculative_tokens"].value = 2
    controls["heads"].value = 128
    assert sweep.spec == SweepSpec(max_num_seqs=20, num_speculative_tokens=2, heads=128)
    assert "up to 60 tokens" in shown["picture"].value
    assert "num_speculative_tokens=2" in shown["config"].value


def test_code_moves_the_sliders(sweep):
    controls, shown = parts(sweep.widget())
    sweep.set(max_num_seqs=5000, heads=7)
    assert controls["max_num_seqs"].value == 5000
    assert controls["heads"].value == 7
    assert "up to 5000 tokens" in shown["picture"].value
    # What is chosen next is still heard.
    controls["heads"].value = 64
    assert sweep.spec.heads == 64


def test_what_cannot_be_set_is_told_and_taken_back(sweep, monkeypatch):
    controls, shown = parts(sweep.widget())

    def refuse(**_):
        raise mlalab.errors.ConfigError("No <such> thing.")

    monkeypatch.setattr(sweep, "set", refuse)
    controls["max_num_seqs"].value = 9
    assert shown["said"].value == "No &lt;such&gt; thing."
    assert controls["max_num_seqs"].value == 8


def test_it_is_one_widget_however_often_it_is_shown(sweep):
    assert sweep.widget() is sweep.widget()
    assert len(sweep.watchers) == 1


def test_without_a_gpu_the_button_is_off_and_says_why(sweep):
    _, shown = parts(sweep.widget())
    assert shown["start"].disabled
    assert "recorded data is used instead." in shown["told"].value


def measured(monkeypatch, steps):
    """Return a sweep on a played GPU that measures by `steps`, and its parts, once it is done."""
    sweep = Sweep(SweepSpec(), torch.device("cuda"))
    monkeypatch.setattr("mlalab.sweeps.measure.measured", steps)
    started = []
    monkeypatch.setattr(threading.Thread, "start", lambda thread: started.append(thread))
    _, shown = parts(sweep.widget())
    shown["start"].click()
    assert shown["start"].disabled
    assert not shown["cancel"].disabled
    return sweep, shown, started[0].run


def test_measuring_ends_in_the_record_of_this_machine(monkeypatch):
    rows = [(1, 4.0, 2.0), (8, 5.0, 3.0)]
    sweep, shown, work = measured(
        monkeypatch, lambda *_: (record(*rows[:i], name="here") for i in (1, 2))
    )
    work()
    assert (shown["bar"].value, shown["told"].value) == (2, "measured 2 of 7 cells")
    assert [p.tokens for p in sweep.result.points] == [1, 8]
    assert "Played GPU" in shown["picture"].value
    assert (shown["start"].disabled, shown["cancel"].disabled) == (False, True)


def test_a_cell_that_failed_is_told_beside_the_button(monkeypatch):
    good = record((1, 4.0, 2.0), (64, 5.0, 3.0), name="here")
    first, second = good.results
    failed = dataclasses.replace(second, times={}, failures={"cell": "no <room>"})
    bad = dataclasses.replace(good, results=(first, failed))
    sweep, shown, work = measured(monkeypatch, lambda *_: iter([good, bad]))
    work()
    assert shown["told"].value == "measured 1 of 7 cells; T=64 failed: no &lt;room&gt;"
    assert "T=64 failed: no &lt;room&gt;" in shown["picture"].value
    assert [p.tokens for p in sweep.result.points] == [1]


def test_cancel_keeps_what_was_finished(monkeypatch):
    def steps(*_):
        for count in (1, 2, 3):
            if count == 2:
                shown["cancel"].click()
                assert shown["told"].value == "stopping after this cell …"
                assert shown["cancel"].disabled
            yield record(*[(t, 4.0, 2.0) for t in (1, 8, 32)[:count]], name="here")

    sweep, shown, work = measured(monkeypatch, steps)
    work()
    assert shown["told"].value == "measured 2 of 7 cells"
    assert [p.tokens for p in sweep.result.points] == [1, 8]


def test_a_failure_is_told_beside_the_button(monkeypatch):
    def steps(*_):
        raise RuntimeError("no <kernel>")
        yield

    sweep, shown, work = measured(monkeypatch, steps)
    work()
    assert shown["told"].value == "RuntimeError: no &lt;kernel&gt;"
    assert sweep.spec.record == "h200"
    assert not shown["start"].disabled
