"""Every change is traced again; what cannot be traced is told in a sentence and changes nothing."""

from __future__ import annotations

import pytest
import torch

import mlalab
from mlalab.errors import ConfigError
from mlalab.explorer import State, sentence
from mlalab.passes.fusion import CleanUp, GraphFusion, PassResult
from mlalab.passes.pipeline import PIPELINE

FUSION = "MLARoPEKVCacheCatFusionPass"


def fails(graph):
    raise ValueError("no such node\nand more of it")


BOOM = GraphFusion(name="Boom", note="Raises.", run=fails)
IDLE = CleanUp(name="Idle", note="Does nothing.", run=lambda graph: PassResult())


def test_set_traces_again_and_tells_the_listeners():
    lab = mlalab.explore("tiny", tokens=1)
    heard = []
    lab.listeners.append(lambda: heard.append(lab.trace.title))
    assert lab.set(tokens=3) is lab
    assert heard == [lab.trace.title] == ["tiny: 1 layer(s), 3 tokens"]
    assert lab.trace.ok
    assert lab.figure().text in repr(lab)
    assert lab._repr_mimebundle_()["text/plain"] == repr(lab)
    first, again = repr(lab), repr(lab.set())
    assert first == again
    lab.set(dtype="float32", kv_cache_dtype="fp8", tokens=0, check=False)
    assert lab.error is None
    assert (lab.trace.meta["dtype"], lab.trace.meta["kv cache"]) == ("float32", "fp8")
    assert lab.trace["aot"].check is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokens": -1}, "tokens must be a whole number, 0 or more, got -1"),
        ({"dtype": "int8"}, "dtype must be one of bfloat16"),
        ({"kv_cache_dtype": "int4"}, "kv_cache_dtype must be one of"),
        ({"level": "O9"}, "Unknown level 'O9'"),
        ({"mode": "dream"}, "mode must be one of"),
        ({"model": "gpt"}, "neither a preset"),
        ({"passes": [42]}, "42 in the list of passes is not a Pass"),
        ({"on": {"Nope": True}}, "No pass is called 'Nope'"),
    ],
)
def test_a_bad_value_is_a_sentence_and_the_last_trace_stays(tiny, changes, words):
    before = tiny.trace
    tiny.set(**changes)
    assert words in tiny.error
    assert tiny.error.endswith(".")
    assert "\n" not in tiny.error
    assert tiny.trace is before
    assert repr(tiny).startswith(f"not traced: {tiny.error} This is the last trace")


@pytest.fixture
def tiny(_tiny):
    state = _tiny.state
    yield _tiny
    _tiny.state, _tiny.failure = state, None


@pytest.fixture(scope="module")
def _tiny():
    return mlalab.explore("tiny", tokens=2, check=False)


def test_a_name_that_is_none_is_raised(tiny):
    with pytest.raises(ConfigError, match=r"'token' here; set model, tokens"):
        tiny.set(token=3)
    with pytest.raises(ConfigError, match="'token' here"):
        mlalab.explore("tiny", token=3)
    assert tiny.error is None


def test_the_first_trace_must_work():
    with pytest.raises(ConfigError, match="neither a preset"):
        mlalab.explore("gpt")


def test_a_pass_that_raises_is_told_without_the_compilers_wrapping():
    lab = mlalab.explore("tiny", tokens=2, passes=[IDLE, BOOM], on={"Boom": False}, check=False)
    before = lab.trace
    lab.switch(Boom=True)
    assert lab.error == "ValueError: no such node."
    assert lab.trace is before
    assert lab.switch(Boom=False).error is None


def test_passes_that_were_redefined_are_taken_up():
    passes = [GraphFusion(name="Mine", note="Old.", run=lambda graph: PassResult())]
    lab = mlalab.explore("tiny", tokens=2, passes=lambda: passes, check=False)
    assert lab.trace["Mine"].note == "Old."
    passes[0] = GraphFusion(name="Mine", note="New.", run=lambda graph: PassResult())
    assert lab.set().trace["Mine"].note == "New."
    assert lab.why().startswith("Mine\nMine found nothing to match")


def test_the_level_decides_what_on_does_not():
    assert not any(State(level="O0").switches().values())
    assert State(level="O2").switches()[FUSION]
    chosen = State(level="O0", on={FUSION: True}).switches()
    assert [name for name, on in chosen.items() if on] == [FUSION]
    assert list(chosen) == [p.name for p in PIPELINE]


def test_a_pass_that_is_off_is_not_run_and_one_that_cannot_run_is_noted():
    lab = mlalab.explore("tiny", tokens=2, level="O0", check=False)
    assert FUSION not in [step.name for step in lab.trace]
    lab.switch(MLAAiterQkRopeKVCacheFusionPass=True)
    assert "is switched off: it builds on" in lab.notes[0]
    assert lab.notes[0] in repr(lab)
    assert lab.set(on={FUSION: True}).trace[FUSION].matches
    assert lab.notes == ()


def test_why_names_the_pass_and_its_reason(tiny):
    tiny.set(model="tiny-gqa")
    assert tiny.error is None
    assert f"{FUSION}\n{FUSION} found nothing to match" in tiny.why()


def test_a_layer_keeps_its_dtypes():
    bench = mlalab.build("tiny", options=mlalab.LayerOptions(dtype=torch.float32))
    lab = mlalab.explore(bench.layers[0], tokens=2, check=False)
    assert lab.trace.meta["dtype"] == "float32"
    assert "A layer is traced as it is" in lab.set(dtype="bfloat16").error
    assert lab.set(dtype=None).error is None


def test_sentences():
    assert sentence(KeyError()) == "KeyError: no message."
    assert sentence(ConfigError("Say it.")) == "Say it."
