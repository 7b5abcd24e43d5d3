"""Why a graph of fused decode queries serves uniform decode batches only, whatever their size.

The seed gates by token count: a small batch with prefill rows gets the graph too, and its attention
takes the query and key that nothing rotated.
"""

from __future__ import annotations

import pytest
import torch

from mlalab.compile.config import PassConfig
from mlalab.compile.dispatch import CompiledModel
from mlalab.compile.settings import CompileConfig
from mlalab.context import make_batch
from mlalab.exercises import lift_lesson
from mlalab.workbench import BLOCK_SIZE
from tests.passes.models import assert_same, chain, stand

ON, OFF = (PassConfig(fuse_aiter_qk_rope_kvcache_mla=value) for value in (True, False))
BATCHES = {**lift_lesson.BATCHES, "decode of unlike lengths": ((2, 3), 2)}


def by_batch(bench, config):
    """Compile as this project does."""
    settings = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "mode": "display"}
    return CompiledModel(bench.module, CompileConfig(pass_config=config, **settings))


def run(bench, function):
    bench.randomise(1)
    given = [bench.positions.clone(), bench.hidden_TD.clone()]
    output = bench.run(function, *given)
    assert torch.equal(given[0], bench.positions)
    assert torch.equal(given[1], bench.hidden_TD)
    return {"output": output, "cache": bench.layers[0].kv_cache.storage.clone()}


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8"])
@pytest.mark.parametrize("name", BATCHES)
def test_by_size_prefill_rows_are_wrong_and_by_batch_all_are_right(name, kv_cache_dtype):
    lengths, decodes = BATCHES[name]
    bench = stand(chain, dtype=torch.bfloat16, kv_cache_dtype=kv_cache_dtype)
    batch = make_batch(lengths, [9] * len(lengths), num_decodes=decodes, block_size=BLOCK_SIZE)
    bench.metadata, bench.slot_mapping = batch, batch.slot_mapping(BLOCK_SIZE)
    bench.positions = batch.positions()

    expected = run(bench, bench.module)
    ours, off = by_batch(bench, ON), by_batch(bench, OFF)
    assert_same(expected, run(bench, ours))
    assert_same(run(bench, off), run(bench, ours))
    assert [key.decode_only for key in ours.entries] == [name == "decode"]

    seed = run(bench, lift_lesson.by_size(bench))
    rows = batch.num_decode_tokens
    assert torch.equal(seed["output"][:rows], expected["output"][:rows])
    wrong = (seed["output"] != expected["output"]).any(-1)
    assert wrong[rows:].all(), "every prefill row is wrong"
    assert torch.equal(seed["cache"], expected["cache"])
