"""After warm-up nothing is compiled again, however the split of the batches changes."""

from __future__ import annotations

import random

import pytest
import torch
from torch._dynamo.utils import counters

from mlalab.compile import entries
from mlalab.context import ForwardContext, forward_context, make_batch
from tests.compile.batches import BLOCK, compiled, flags, model, run

STEPS = 2000


def random_batch(draw):
    """Return a batch of at most 24 rows: any number of decode requests and prompts, often both."""
    decodes, prompts = draw.randint(0, 8), draw.choice((0, 0, 1, 1, 2))
    lengths = [1] * decodes + [draw.randint(1, 8) for _ in range(prompts)]
    contexts = [draw.randint(0, 12) for _ in lengths]
    return make_batch(lengths, contexts, num_decodes=decodes, block_size=BLOCK)


@pytest.fixture
def compilations(monkeypatch):
    counted = []
    original = entries.inductor.compile_with
    monkeypatch.setattr(
        entries.inductor,
        "compile_with",
        lambda *given: counted.append(given) or original(*given),
    )
    return counted


def test_two_thousand_mixed_steps_compile_nothing(compilations):
    module = model("tiny", exposed=True, kv_cache_dtype="fp8", dtype=torch.bfloat16)
    settings = {"verify": False, "mode": "inductor", "pass_config": flags(module, aiter=False)}
    function, layers = compiled(module, **settings), list(module.layers)
    function.warm_up()
    run(function, layers, make_batch([], [], num_decodes=0, block_size=BLOCK))
    ready, frames = len(compilations), counters["frames"]["total"]
    draw, hidden, splits = random.Random(0), torch.randn(24, 64).bfloat16(), set()
    for _ in range(STEPS):
        batch = random_batch(draw)
        context = ForwardContext(
            layers={layer.layer_name: layer for layer in layers},
            metadata=batch,
            slot_mapping=batch.slot_mapping(BLOCK),
        )
        with torch.no_grad(), forward_context(context):
            output = function(batch.positions(), hidden[: batch.num_tokens])
        assert output.shape == (batch.num_tokens, 64)
        splits.add((batch.num_decode_tokens, batch.num_tokens))
    assert len(compilations) == ready == len(function.entries)
    assert counters["frames"]["total"] == frames
    assert len(splits) > 100
