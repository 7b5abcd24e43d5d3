"""Against transformers: prefill, decode, chunks and mixed batches give the same numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mlalab.context import BatchMetadata, make_batch
from tests.layers.oracle import (
    BLOCK_SIZE,
    ROPES,
    Oracle,
    assert_close,
    run_request,
    run_step,
)

PREFILL_THEN_DECODE = [("prefill", 9), *[("decode", 1)] * 8]


def check(oracle, layer, chunks=PREFILL_THEN_DECODE):
    lengths = [length for _, length in chunks]
    hidden = torch.randn(sum(lengths), oracle.config.hidden_size)
    expected, expected_rows = oracle.run(hidden, lengths)
    outputs, rows = run_request(layer, hidden, chunks)
    assert_close("outputs", outputs, expected)
    assert_close("cache rows", rows, expected_rows)


@pytest.mark.parametrize("q_lora_rank", [None, 28])
@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("family", ["v2", "v3"])
def test_prefill_then_decode(family, rope, q_lora_rank):
    oracle = Oracle.random(family, rope=rope, q_lora_rank=q_lora_rank)
    check(oracle, oracle.twin())


@pytest.mark.parametrize("rope", ["default", "yarn"])
def test_half_split_pairing(rope):
    oracle = Oracle.random("v3", rope=rope, rope_interleave=False)
    check(oracle, oracle.twin())


@pytest.mark.parametrize("family", ["v2", "v3"])
def test_projections_with_bias(family):
    oracle = Oracle.random(family, attention_bias=True)
    check(oracle, oracle.twin())


def test_rms_norm_eps_of_the_config_is_not_the_latent_norms():
    oracle = Oracle.random("v2", rms_norm_eps=0.5)
    check(oracle, oracle.twin())


@pytest.mark.parametrize("rope", ["default", "yarn-mscales-differ"])
def test_custom_rotary_op(rope):
    oracle = Oracle.random("v2", rope=rope)
    check(oracle, oracle.twin(rope_custom_op=True))


@pytest.mark.parametrize(
    "chunks",
    [
        [("prefill", 4), ("prefill", 3), ("prefill", 9), ("prefill", 1)],
        [("prefill", 5), ("decode", 3), ("prefill", 7), ("decode", 2)],
        [("decode", 17)],
    ],
    ids=["prefill", "alternating", "decode"],
)
def test_chunks(chunks):
    oracle = Oracle.random("v2", rope="yarn-mscales-differ")
    check(oracle, oracle.twin(), chunks)


def mixed_batch() -> BatchMetadata:
    """Two decode requests, then a fresh prefill, a continued one and a single new token."""
    return make_batch([1, 1, 7, 4, 1], [9, 3, 0, 5, 0], num_decodes=2, block_size=BLOCK_SIZE)


def check_mixed(oracle, layer, batch):
    requests = [torch.randn(length, oracle.config.hidden_size) for length in batch.seq_lens]
    layer.allocate_cache(1 + int(batch.block_table.max()), BLOCK_SIZE)
    nothing = (0,) * len(requests)
    earlier = replace(batch, query_lens=batch.context_lens, context_lens=nothing, num_decodes=0)
    past = [x[:n] for x, n in zip(requests, batch.context_lens, strict=True)]
    new = [x[n:] for x, n in zip(requests, batch.context_lens, strict=True)]
    run_step(layer, earlier, torch.cat(past))
    outputs = run_step(layer, batch, torch.cat(new)).split(batch.query_lens)
    for request, (hidden, output) in enumerate(zip(requests, outputs, strict=True)):
        expected, _ = oracle.run(hidden, [len(hidden)])
        assert_close(f"request {request}", output, expected[-len(output) :])


@pytest.mark.parametrize("family", ["v2", "v3"])
def test_mixed_batch(family):
    oracle = Oracle.random(family, rope="yarn-mscales-differ")
    check_mixed(oracle, oracle.twin(), mixed_batch())


def negate_sin(layer, _monkeypatch):
    layer.rotary_emb.cos_sin_cache.chunk(2, dim=-1)[1].neg_()


def flip_pairing(layer, _monkeypatch):
    layer.rotary_emb.spec = replace(layer.rotary_emb.spec, is_neox=True)


def forget_yarn_softmax_scale(layer, _monkeypatch):
    layer.softmax_scale = layer.shape.qk_head_dim**-0.5


def forget_yarn_table_factor(layer, _monkeypatch):
    layer.rotary_emb.cos_sin_cache.div_(layer.rotary_emb.cos_sin_cache[0, 0].item())


def forget_kv_norm_weight(layer, _monkeypatch):
    layer.kv_a_layernorm.weight.fill_(1)


def swap_up_projections(layer, monkeypatch):
    swapped = layer._w_kv_b.flip(1)
    monkeypatch.setattr(type(layer), "_w_kv_b", swapped)


def shift_one_slot(_layer, monkeypatch):
    right = BatchMetadata.slot_mapping
    monkeypatch.setattr(BatchMetadata, "slot_mapping", lambda *a: (right(*a) - 1).clamp(min=0))


def shift_positions(_layer, monkeypatch):
    right = BatchMetadata.positions
    monkeypatch.setattr(BatchMetadata, "positions", lambda self: right(self) // 2)


BREAKAGES = [
    *(negate_sin, flip_pairing, forget_yarn_softmax_scale, forget_yarn_table_factor),
    *(forget_kv_norm_weight, swap_up_projections, shift_one_slot, shift_positions),
]


@pytest.mark.parametrize("run", [check, lambda o, x: check_mixed(o, x, mixed_batch())])
@pytest.mark.parametrize("break_it", BREAKAGES, ids=lambda f: f.__name__)
def test_a_broken_layer_is_noticed(break_it, run, monkeypatch):
    oracle = Oracle.random("v2", rope="yarn-mscales-differ")
    layer = oracle.twin()
    break_it(layer, monkeypatch)
    with pytest.raises(AssertionError):
        run(oracle, layer)


def test_a_forgotten_half_split_is_noticed(monkeypatch):
    oracle = Oracle.random("v3")
    monkeypatch.setattr(Oracle, "_unsplit", lambda self, k_pe: k_pe)
    with pytest.raises(AssertionError, match="cache rows"):
        check(oracle, oracle.twin())
