"""The layer against itself: two paths, one batch or many, any cache layout, any padding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlalab.context import BatchMetadata, ForwardContext, forward_context, make_batch
from mlalab.errors import ContextError
from mlalab.layers.mla import MLAAttention, MLAOptions
from mlalab.shapes import RopeSpec, preset
from mlalab_kernels.numerics import dequantize
from tests.layers.oracle import BLOCK_SIZE, assert_close, randomize, run_request, run_step

SHAPE = preset("tiny", num_heads=3, v_head_dim=20)
D = SHAPE.hidden_size
NOPE = replace(SHAPE, rope=RopeSpec(kind="none"))


def make_layer(shape=SHAPE, **options):
    layer = MLAAttention(shape, options=MLAOptions(**options))
    torch.manual_seed(5)
    randomize(layer)
    return layer


def run_batch(layer, batch, requests, shuffle=False):
    """Fill the cache with each request's context, run the batch, return one output per request."""
    if shuffle:
        table = 1 + torch.randperm(40)[: batch.block_table.numel()].to(torch.int32)
        batch = replace(batch, block_table=table.view_as(batch.block_table))
    layer.allocate_cache(41, BLOCK_SIZE)
    nothing = (0,) * len(requests)
    earlier = replace(batch, query_lens=batch.context_lens, context_lens=nothing, num_decodes=0)
    past = [x[:n] for x, n in zip(requests, batch.context_lens, strict=True)]
    new = [x[n:] for x, n in zip(requests, batch.context_lens, strict=True)]
    run_step(layer, earlier, torch.cat([*past, torch.empty(0, D)]))
    return run_step(layer, batch, torch.cat([*new, torch.empty(0, D)])).split(batch.query_lens)


def compare_with_each_alone(layer, batch, shuffle=False):
    requests = [torch.randn(length, D) for length in batch.seq_lens]
    together = run_batch(layer, batch, requests, shuffle)
    for index, (hidden, output) in enumerate(zip(requests, together, strict=True)):
        if len(output):
            alone, _ = run_request(layer, hidden, [("prefill", len(hidden))])
            assert_close(f"request {index}", output, alone[-len(output) :])


@st.composite
def batches(draw):
    """Draw up to five requests: decodes of 1 to 4 new tokens, then prefills of 0 to 9."""
    decodes = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 13)), max_size=3))
    prefills = draw(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 6)), max_size=2))
    new, past = zip(*decodes, *prefills, strict=True) if decodes or prefills else ((), ())
    return make_batch(new, past, num_decodes=len(decodes), block_size=BLOCK_SIZE)


@given(batch=batches(), seed=st.integers(0, 9))
def test_a_mixed_batch_is_its_requests_alone(batch, seed):
    layer = make_layer()
    torch.manual_seed(seed)
    compare_with_each_alone(layer, batch, shuffle=True)


def roll_when_mixed(method):
    """Return a method of BatchMetadata that mixes requests up, and is right for one alone."""
    return lambda batch, *a: method(batch, *a).roll(1 if len(batch.query_lens) > 1 else 0)


BROKEN = {
    "slots": (BatchMetadata, "slot_mapping", roll_when_mixed(BatchMetadata.slot_mapping)),
    "positions": (BatchMetadata, "positions", roll_when_mixed(BatchMetadata.positions)),
    "decode mask": (torch.Tensor, "masked_fill_", lambda scores, mask, value: scores),
}


@pytest.mark.parametrize("wrong", BROKEN)
def test_a_broken_batch_is_noticed(wrong, monkeypatch):
    batch = make_batch([1, 2, 5], [6, 3, 2], num_decodes=2, block_size=BLOCK_SIZE)
    compare_with_each_alone(make_layer(), batch)
    monkeypatch.setattr(*BROKEN[wrong])
    with pytest.raises(AssertionError, match="request"):
        compare_with_each_alone(make_layer(), batch)


@pytest.mark.parametrize("query_len", [1, 2, 4, 5])
@pytest.mark.parametrize("options", [{}, {"rope_custom_op": True}], ids=["native", "op"])
def test_decode_path_is_the_prefill_path(query_len, options):
    layer, hidden = make_layer(**options), torch.randn(20, D)
    expected, expected_rows = run_request(layer, hidden, [("prefill", 20)])
    outputs, rows = run_request(layer, hidden, [("decode", query_len)] * (20 // query_len))
    assert_close("outputs", outputs, expected)
    assert_close("rows", rows, expected_rows)


def test_a_batch_of_nothing():
    layer = make_layer()
    layer.allocate_cache(1)
    batch = make_batch([], [], num_decodes=0, block_size=16)
    assert run_step(layer, batch, torch.randn(0, D)).shape == (0, D)
    assert not layer.kv_cache.storage_BKC.any()


@pytest.mark.parametrize("num_decodes", [0, 1, 2])
def test_padding_rows_are_zero_and_change_nothing(num_decodes):
    layer = make_layer()
    batch = make_batch([1, 2], [0, 0], num_decodes=num_decodes, block_size=BLOCK_SIZE)
    hidden = torch.randn(3, D)
    layer.allocate_cache(2, BLOCK_SIZE)
    expected, rows = run_step(layer, batch, hidden), layer.kv_cache.storage_BKC.clone()
    layer.allocate_cache(2, BLOCK_SIZE)
    padded = run_step(layer, batch, hidden, pad_to=7)
    assert_close("outputs", padded[:3], expected)
    assert_close("cache", layer.kv_cache.storage_BKC, rows)
    assert padded.shape == (7, D)
    assert not padded[3:].any()


def test_a_profile_run_needs_no_cache_and_returns_zeros():
    layer = make_layer()
    with forward_context(ForwardContext(layers={layer.layer_name: layer})):
        output = layer(torch.arange(5), torch.randn(5, D))
    assert output.shape == (5, D)
    assert not output.any()


def test_a_layer_without_cache_says_how_to_get_one():
    layer = make_layer()
    with pytest.raises(ContextError, match=r"no cache yet; call layer\.allocate_cache"):
        _ = layer.kv_cache


@pytest.mark.parametrize("chunks", [[("prefill", 9)], [("prefill", 4), ("decode", 5)]])
def test_fp8_cache_is_close(chunks):
    hidden = torch.randn(9, D)
    plain, fp8 = make_layer(), make_layer(kv_cache_dtype="fp8")
    expected, expected_rows = run_request(plain, hidden, chunks)
    fp8.k_scale.fill_(0.01)
    fp8.q_scale.fill_(0.05)
    outputs, rows = run_request(fp8, hidden, chunks)
    assert fp8.kv_cache.storage_BKC.dtype == torch.uint8
    rows = dequantize(rows, fp8.k_scale, torch.float32)
    torch.testing.assert_close(rows, expected_rows, rtol=1 / 16, atol=1e-4)
    tolerance = 0.1 * expected.abs().max().item()
    assert_close("outputs", outputs, expected, tolerance)
    if ("decode", 5) in chunks:
        fp8.softmax_scale *= 4
        with pytest.raises(AssertionError):
            assert_close("outputs", run_request(fp8, hidden, chunks)[0], expected, tolerance)


def test_fp8_saturates_when_the_scale_is_too_small():
    layer = make_layer(kv_cache_dtype="fp8")
    layer.k_scale.fill_(1e-5)
    _, rows = run_request(layer, torch.randn(5, D), [("prefill", 5)])
    assert rows.float().abs().max() == 448


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(dtype):
    hidden, chunks = torch.randn(9, D), [("prefill", 4), ("decode", 1), ("prefill", 4)]
    full = make_layer()
    expected, _ = run_request(full, hidden, chunks)
    half = make_layer(dtype=dtype)
    # Random numbers drawn in another dtype are other numbers.
    half.load_state_dict(full.state_dict())
    outputs, rows = run_request(half, hidden.to(dtype), chunks)
    assert (outputs.dtype, rows.dtype) == (dtype, dtype)
    assert_close("outputs", outputs.float(), expected, 0.05)


@pytest.mark.parametrize("path", ["prefill", "decode"])
def test_without_rope_order_does_not_matter(path):
    layer, hidden = make_layer(NOPE), torch.randn(6, D)
    assert layer.rotary_emb is None
    reordered = torch.cat((hidden[:5].flip(0), hidden[5:]))
    last, swapped = (run_request(layer, x, [(path, 6)])[0][-1] for x in (hidden, reordered))
    assert_close("last token", last, swapped)
    rotated = make_layer()
    last, swapped = (run_request(rotated, x, [(path, 6)])[0][-1] for x in (hidden, reordered))
    with pytest.raises(AssertionError):
        assert_close("last token", last, swapped)


def test_without_rope_rows_are_the_projection_itself():
    layer, hidden = make_layer(NOPE), torch.randn(3, D)
    _, rows = run_request(layer, hidden, [("prefill", 3)])
    kv_c, k_pe = layer.kv_a_proj_with_mqa(hidden).split([SHAPE.kv_lora_rank, 16], -1)
    assert torch.equal(rows, torch.cat((layer.kv_a_layernorm(kv_c), k_pe), -1))


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8"])
def test_the_decode_query_is_absorbed(kv_cache_dtype):
    layer = make_layer(kv_cache_dtype=kv_cache_dtype)
    layer.allocate_cache(1)
    layer.q_scale.fill_(0.5)
    q = torch.randn(5, SHAPE.num_heads, SHAPE.qk_head_dim)
    prepared = layer.prepare_decode_query(q)
    assert prepared.dtype == layer.kv_cache.typed_dtype
    nope, rope = q.split([SHAPE.qk_nope_head_dim, SHAPE.qk_rope_head_dim], -1)
    absorbed = torch.einsum("tnp,npl->tnl", nope, layer.w_uk_NPL)
    expected = torch.cat((absorbed, rope), -1)
    if kv_cache_dtype == "fp8":
        expected = (expected * 2).to(prepared.dtype)
    torch.testing.assert_close(prepared.float(), expected.float(), rtol=1 / 8, atol=1e-5)
    assert layer.prepare_decode_query(q[:0]).shape == (0, SHAPE.num_heads, SHAPE.cache_dim)


def test_weights_are_views_and_want_no_gradient():
    layer = make_layer()
    assert layer.w_uk_NPL.shape == (3, SHAPE.qk_nope_head_dim, SHAPE.kv_lora_rank)
    assert layer.w_uv_NVL.shape == (3, SHAPE.v_head_dim, SHAPE.kv_lora_rank)
    assert layer.w_uk_NPL.data_ptr() == layer.kv_b_proj.weight.data_ptr()
    assert not any(parameter.requires_grad for parameter in layer.parameters())


def test_two_layers_keep_their_rows_apart():
    layers = [MLAAttention(SHAPE, name) for name in ("a", "b")]
    batch, hidden = make_batch([3], [0], num_decodes=0, block_size=16), torch.randn(3, D)
    for layer in layers:
        layer.allocate_cache(1)
    context = ForwardContext(
        layers={layer.layer_name: layer for layer in layers},
        metadata=batch,
        slot_mapping=batch.slot_mapping(16),
    )
    with forward_context(context):
        layers[1](batch.positions(), hidden)
    assert not layers[0].kv_cache.storage_BKC.any()
    assert layers[1].kv_cache.storage_BKC.any()
