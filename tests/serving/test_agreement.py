"""Choices that rounding tipped are told from those of a wrong model."""

from __future__ import annotations

import pytest
import torch

from mlalab.serving.agreement import Agreement, ToldRunner
from mlalab.serving.clock import VirtualClock
from mlalab.serving.engine import Engine
from mlalab.serving.requests import RequestSpec
from mlalab.serving.runner import ModelRunner
from tests.serving.decoders import BLOCK, LONGEST, VOCAB, decoder, scheduler

TRACE = tuple(RequestSpec(0.0, prompt, 6) for prompt in (5, 1, 13))


def serve(run_step):
    return Engine(scheduler(), run_step, vocab_size=VOCAB, clock=VirtualClock()).run(TRACE).tokens


def runner(model=None):
    return ModelRunner(model or decoder(), max_model_len=LONGEST, block_size=BLOCK)


@pytest.fixture(scope="module")
def told():
    return serve(runner())


def agreement(told, model=None, tolerance=1e-3):
    judged = ToldRunner(runner(model), told, tolerance)
    assert serve(judged) == told
    return judged.agreement


def with_another(told, request):
    """Change the last token of a request."""
    rows = [list(tokens) for tokens in told]
    rows[request][-1] = (rows[request][-1] + 1) % VOCAB
    return tuple(map(tuple, rows))


def test_a_model_agrees_with_itself(told):
    assert agreement(told) == Agreement(choices=18)


def test_one_other_token_is_found_and_spoils_no_other(told):
    changed = with_another(told, 2)
    found = agreement(changed)
    assert found.wrong == [(2, 5)] and found.tipped == 0


def test_a_narrow_gap_is_rounding(told):
    changed = with_another(told, 0)
    found = agreement(changed, tolerance=100.0)
    assert (found.wrong, found.tipped, found.choices) == ([], 1, 18)
    assert 0 < found.widest < 100


@pytest.mark.parametrize("name", ["self_attn.o_proj.weight", "self_attn.kv_a_layernorm.weight"])
def test_a_wrong_layer_is_noticed_beyond_the_tolerance_of_half_precision(told, name):
    model = decoder()
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if n.endswith(name)).mul_(-1)
    assert len(agreement(told, model, tolerance=0.1).wrong) > 3


def test_nan_is_beyond_every_tolerance(told):
    model = decoder()
    with torch.no_grad():
        model.norm.weight.fill_(torch.nan)
    assert len(agreement(told, model, tolerance=100.0).wrong) == 18
