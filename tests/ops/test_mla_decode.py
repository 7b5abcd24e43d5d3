"""The decode query's ops: INVARIANT 1, profile runs, what is written, what attention does with it.

A graph allocates by what the fake promises, so as many rows come out as go in, always.
"""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mlalab.context import forward_context, make_batch
from mlalab.errors import InputError
from mlalab.ops import mla_decode
from tests.ops.cases import AITER, BLOCK_SIZE, SHAPE, arguments_of, bits, context_of, make_layer

ATTEND, PREP = "unified_mla_attention_with_output", "mla_decode_q_prep"
ops = torch.ops.mlalab
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def batches(tokens):
    """Yield all decodes, a prefill, both, fewer rows than the batch has, and a profile run."""
    one = {"block_size": BLOCK_SIZE}
    yield make_batch([1] * tokens, [2] * tokens, num_decodes=tokens, **one)
    yield make_batch([tokens], [0], num_decodes=0, **one)
    if tokens > 2:
        yield make_batch([1, tokens - 1], [4, 0], num_decodes=1, **one)
        yield make_batch([1], [4], num_decodes=1, **one)
    yield None


def promised_and_given(real, tokens, kv_cache_dtype, metadata):
    """Return what a fake says of the prepared query and what `real` gives."""
    layer = make_layer(kv_cache_dtype=kv_cache_dtype, dtype=torch.bfloat16)
    q = arguments_of(PREP, layer, tokens)["q"]
    with forward_context(context_of(layer, tokens, metadata=metadata)):
        given = real(q, layer.layer_name)
        with FakeTensorMode() as mode:
            promised = mla_decode.mla_decode_q_prep_fake(mode.from_tensor(q), layer.layer_name)
    return [(x.size(0), tuple(x.shape), x.dtype, x.stride(), x.device) for x in (promised, given)]


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8"])
@pytest.mark.parametrize("tokens", [0, 1, 16, 64, 256])
def test_invariant_1(tokens, kv_cache_dtype):
    for metadata in batches(tokens):
        promised, given = promised_and_given(
            ops.mla_decode_q_prep, tokens, kv_cache_dtype, metadata
        )
        assert promised == given
        assert given[0] == tokens
        assert (given[2] == torch.float8_e4m3fn) == (kv_cache_dtype == "fp8")


def lying(q, layer_name):
    """Prepare the decode rows of the batch only, as an earlier version of vLLM #41839 did."""
    metadata = mla_decode.current_context().metadata
    rows = q.size(0) if metadata is None else metadata.num_decode_tokens
    return ops.mla_decode_q_prep(q[:rows], layer_name)


def test_invariant_1_notices_an_op_that_slices_by_metadata():
    found = [promised_and_given(lying, 16, "fp8", batch) for batch in batches(16)]
    assert [promised == given for promised, given in found] == [True, False, False, False, True]


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [0, 1, 3, 63])
def test_fused_is_rope_with_cache_write_and_then_the_preparation(tokens, dtype, kv_cache_dtype):
    slots = torch.arange(tokens)
    for mapping in (slots, torch.where(slots % 2 == 1, -1, slots), slots[:1], None):
        layer = make_layer(kv_cache_dtype=kv_cache_dtype, dtype=dtype)
        layer.q_scale.fill_(0.61)
        q = torch.randn(tokens, SHAPE.num_heads, SHAPE.qk_head_dim).to(dtype)
        arguments = arguments_of(AITER, layer, tokens)
        nope = SHAPE.qk_nope_head_dim
        arguments |= {"q_nope": q[..., :nope], "q_pe": q[..., nope:]}
        before = {k: v.clone() for k, v in arguments.items() if isinstance(v, torch.Tensor)}
        found, results = [], []
        for op in (getattr(ops, AITER).default, getattr(ops, AITER).rotated):
            layer.kv_cache.storage_BKC.zero_()
            with forward_context(context_of(layer, tokens, slot_mapping=mapping)):
                results.append(op(**arguments))
            found.append(bits(layer.kv_cache.storage_BKC).clone())
        assert all(torch.equal(bits(arguments[k]), bits(v)) for k, v in before.items())
        layer.kv_cache.storage_BKC.zero_()
        rope = {k: v for k, v in arguments.items() if k not in ("q_nope", "k_scale")}
        with forward_context(context_of(layer, tokens, slot_mapping=mapping)):
            ops.fused_rope_unified_mla_kv_cache_update(**rope, kv_cache_scale=layer.k_scale)
            prepared = ops.mla_decode_q_prep(q, layer.layer_name)
        assert all(torch.equal(x, bits(layer.kv_cache.storage_BKC)) for x in found)
        plain, (again, q_rot, k_rot) = results
        wanted = (prepared, prepared, q[..., nope:], arguments["k_pe"])
        for a, b in zip((plain, again, q_rot, k_rot), wanted, strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(bits(a), bits(b))


def test_what_does_not_fit_is_refused_before_anything_is_written():
    layer = make_layer()
    arguments = arguments_of(AITER, layer, 3)
    before = layer.kv_cache.storage_BKC.view(torch.uint8).clone()
    wrong = [
        ({"k_pe": arguments["k_pe"].unsqueeze(1)}, r"squeeze k_pe's head dimension"),
        ({"kv_cache_dtype": "fp8"}, r"was called with 'fp8'"),
        ({"positions": torch.tensor([0, -1, 2])}, r"do not fit the rope table"),
    ]
    for change, message in wrong:
        with (
            forward_context(context_of(layer, 3)),
            pytest.raises(InputError, match=message),
        ):
            getattr(ops, AITER)(**{**arguments, **change})
    assert torch.equal(layer.kv_cache.storage_BKC.view(torch.uint8), before)


def attended(layer, arguments, tokens, metadata):
    arguments = {**arguments, "output": torch.full_like(arguments["output"], torch.nan)}
    with forward_context(context_of(layer, tokens, metadata=metadata)):
        getattr(ops, ATTEND)(**arguments)
    return arguments["output"]


def prepared(layer, q, rows):
    with forward_context(context_of(layer, q.size(0))):
        parts = [ops.mla_decode_q_prep(x, layer.layer_name) for x in (q[:rows], q[rows:])]
    return torch.cat([x.view(torch.uint8) for x in parts]).view(parts[0].dtype)


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8"])
@pytest.mark.parametrize("query_len", [1, 3])
def test_decode_rows_attend_with_the_prepared_query(query_len, kv_cache_dtype):
    layer = make_layer(kv_cache_dtype=kv_cache_dtype)
    layer.kv_cache.typed_BKC.copy_(torch.randn(layer.kv_cache.typed_BKC.shape))
    lengths = ([query_len] * 2, [5, 2])
    decodes = make_batch(*lengths, num_decodes=2, block_size=BLOCK_SIZE)
    tokens = decodes.num_tokens + 1
    arguments = arguments_of(ATTEND, layer, tokens)
    wanted = attended(layer, arguments, tokens, decodes)
    # A product's last bit may depend on how many rows it has: the batch's own, then the rest.
    mixed = make_batch(*lengths, num_decodes=1, block_size=BLOCK_SIZE)
    prepped = prepared(layer, arguments["q"], decodes.num_tokens)
    given = {**arguments, "q_prepped": prepped, "q": None, "k_pe": None}
    assert torch.equal(attended(layer, given, tokens, decodes), wanted)
    other = {**given, "q_prepped": torch.zeros_like(prepped)}
    assert not torch.equal(attended(layer, other, tokens, decodes), wanted)
    assert not attended(layer, given, tokens, None).any()
    prepped = prepared(layer, arguments["q"], query_len)
    both = attended(layer, {**arguments, "q_prepped": prepped}, tokens, mixed)
    assert torch.equal(both, attended(layer, arguments, tokens, mixed))


@pytest.mark.parametrize("missing", [("q",), ("k_pe",), ("q", "k_pe")])
def test_a_prefill_request_in_a_decode_only_graph_is_refused(missing):
    layer = make_layer()
    arguments = arguments_of(ATTEND, layer, 3)
    with forward_context(context_of(layer, 3)):
        prepped = ops.mla_decode_q_prep(arguments["q"], layer.layer_name)
    arguments |= {"q_prepped": prepped, **dict.fromkeys(missing)}
    mixed = make_batch([1, 2], [4, 0], num_decodes=1, block_size=BLOCK_SIZE)
    with pytest.raises(InputError, match=r"layers\.3\.self_attn.*uniform decode batches only; run"):
        attended(layer, arguments, 3, mixed)
