"""The ops of an exposed layer: how many rows come out, of what, and which batches they refuse."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv, free_unbacked_symbols

from mlalab.context import forward_context, make_batch
from mlalab.errors import InputError
from tests.ops.cases import BLOCK_SIZE, NAME, SHAPE, arguments_of, bits, context_of, make_layer

ops = torch.ops.mlalab


def batch_of(*query_lens, decodes):
    past = [2] * len(query_lens)
    return make_batch(query_lens, past, num_decodes=decodes, block_size=BLOCK_SIZE)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (batch_of(1, 2, 5, decodes=2), 3),
        (batch_of(1, 1, decodes=2), 2),
        (batch_of(4, decodes=0), 0),
        (batch_of(decodes=0), 0),
        (None, 0),
    ],
)
def test_the_split_is_after_the_decode_rows(metadata, expected):
    layer = make_layer()
    with forward_context(context_of(layer, 8, metadata=metadata)):
        assert ops.mla_split_batch(torch.randn(8, SHAPE.kv_lora_rank), NAME) == expected


def test_tracing_knows_only_the_bounds_of_the_split():
    env = ShapeEnv()
    with FakeTensorMode(shape_env=env):
        rows = ops.mla_split_batch(torch.empty(8, SHAPE.kv_lora_rank), NAME)
    (symbol,) = free_unbacked_symbols(rows)
    assert (env.var_to_range[symbol].lower, env.var_to_range[symbol].upper) == (0, 8)


def test_metadata_of_another_batch_is_refused():
    layer = make_layer()
    with (
        forward_context(context_of(layer, 8, metadata=batch_of(1, 8, decodes=1))),
        pytest.raises(InputError, match=r"names 9 tokens .* got 8 rows"),
    ):
        ops.mla_split_batch(torch.randn(8, SHAPE.kv_lora_rank), NAME)


def attend_decode(layer, rows, metadata):
    q = arguments_of("mla_attention_decode", layer, rows)["q"]
    with forward_context(context_of(layer, rows, metadata=metadata)):
        return ops.mla_attention_decode(q, NAME)


def attend_prefill(layer, rows, metadata):
    arguments = arguments_of("mla_attention_prefill", layer, rows)
    with forward_context(context_of(layer, rows, metadata=metadata)):
        return ops.mla_attention_prefill(**arguments)


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8"])
def test_as_many_rows_come_out_as_go_in(kv_cache_dtype):
    layer = make_layer(kv_cache_dtype=kv_cache_dtype, dtype=torch.bfloat16)
    layer.kv_cache.storage_BKC.zero_()
    for rows, metadata in [(0, batch_of(5, decodes=0)), (3, batch_of(2, 1, decodes=2)), (2, None)]:
        latent = attend_decode(layer, rows, metadata)
        assert latent.shape == (rows, SHAPE.num_heads, SHAPE.kv_lora_rank)
        assert (latent.dtype, latent.is_contiguous()) == (torch.bfloat16, True)
    for rows, metadata in [(0, batch_of(5, decodes=1)), (3, batch_of(1, 3, decodes=1)), (2, None)]:
        out = attend_prefill(layer, rows, metadata)
        assert out.shape == (rows, SHAPE.num_heads, SHAPE.v_head_dim)


def test_padding_is_zero_and_changes_nothing():
    layer = make_layer()
    layer.kv_cache.storage_BKC.normal_()
    torch.manual_seed(1)
    padded = attend_prefill(layer, 6, batch_of(4, decodes=0))
    assert padded[:4].any(-1).all()
    assert not padded[4:].any()
    decode = batch_of(2, 1, decodes=2)
    padded = attend_decode(layer, 5, decode)
    assert torch.equal(bits(padded[:3]), bits(attend_decode(layer, 3, decode)))
    assert padded[:3].any(-1).all()
    assert not padded[3:].any()
    assert not attend_prefill(layer, 3, None).any()


@pytest.mark.parametrize("rows", [0, 2, 4])
def test_decode_rows_of_another_split_are_refused(rows):
    with pytest.raises(InputError, match=f"got {rows} rows and the batch decodes 3"):
        attend_decode(make_layer(), rows, batch_of(1, 2, 5, decodes=2))


def test_too_few_prefill_rows_are_refused():
    with pytest.raises(InputError, match=r"names 5 tokens .* got 4 rows"):
        attend_prefill(make_layer(), 4, batch_of(1, 5, decodes=1))


def test_a_prefill_without_query_is_refused():
    layer = make_layer()
    kv_c = torch.randn(3, SHAPE.kv_lora_rank)
    with forward_context(context_of(layer, 3, metadata=batch_of(1, decodes=1))):
        assert not ops.mla_attention_prefill(None, kv_c, None, NAME).any()
    with (
        forward_context(context_of(layer, 3)),
        pytest.raises(InputError, match="without q or k_pe"),
    ):
        ops.mla_attention_prefill(None, kv_c, None, NAME)
