"""The op table: schema, fake and real implementation tell the same story."""

from __future__ import annotations

import inspect
from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mlalab.context import forward_context
from mlalab.errors import ContextError
from mlalab.ops import OPS, Op
from tests.ops import cases, gqa_cases
from tests.ops.cases import bits, context_for

NAMES = [op.name for op in OPS]
TOKENS = [0, 1, 3, 63]
BY_LAYER = [name for name in NAMES if name.startswith(("mla_decode", "mla_att", "fused_aiter"))]
"""Ops whose results depend on the layer, so that even a fake needs a context."""


def cases_of(name):
    return cases if name == "rotary_embedding" or "mla" in name else gqa_cases


def overload(name):
    packet, _, which = name.partition(".")
    return getattr(getattr(torch.ops.mlalab, packet), which or "default")


def written_by_schema(name):
    arguments = overload(name)._schema.arguments
    return {a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write}


def test_the_ops_are_these():
    assert NAMES == [
        "rotary_embedding",
        "unified_mla_kv_cache_update",
        "unified_mla_attention_with_output",
        "fused_rope_unified_mla_kv_cache_update",
        "mla_decode_q_prep",
        "fused_aiter_qk_rope_kvcache_q_concat_quant_mla",
        "fused_aiter_qk_rope_kvcache_q_concat_quant_mla.rotated",
        "mla_split_batch",
        "mla_attention_decode",
        "mla_attention_prefill",
        "unified_kv_cache_update",
        "unified_attention_with_output",
        "fused_rope_and_unified_kv_cache_update",
    ]
    assert all(isinstance(op, Op) for op in OPS)


@pytest.mark.parametrize("op", OPS, ids=NAMES)
def test_schema_fake_and_real_have_one_signature(op):
    schema = overload(op.name)._schema
    assert str(schema) == f"mlalab::{op.schema}"
    real, fake = (inspect.signature(function) for function in (op.real, op.fake))
    assert real == fake
    assert list(real.parameters) == [a.name for a in schema.arguments]
    for argument in schema.arguments:
        default = real.parameters[argument.name].default
        assert (default is inspect.Parameter.empty) == (not argument.has_default_value())
        assert default is inspect.Parameter.empty or default == argument.default_value


def describe(value):
    """Return what a fake must get right."""
    if isinstance(value, tuple):
        return [describe(item) for item in value]
    if not isinstance(value, torch.Tensor):
        return value
    return (tuple(value.shape), value.dtype, value.stride(), value.device)


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8"])
@pytest.mark.parametrize("strided", [True, False])
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "mla_split_batch"])
def test_fake_is_like_real(name, tokens, strided, kv_cache_dtype):
    layer = cases_of(name).make_layer(kv_cache_dtype=kv_cache_dtype, dtype=torch.bfloat16)
    arguments = cases_of(name).arguments_of(name, layer, tokens, strided=strided)
    with forward_context(context_for(name, layer, tokens)):
        real = overload(name)(**arguments)
    with FakeTensorMode() as mode:
        fakes = {
            key: mode.from_tensor(value) if isinstance(value, torch.Tensor) else value
            for key, value in arguments.items()
        }
        # Otherwise no context: a fake must not look at one.
        context = (
            forward_context(context_for(name, layer, tokens)) if name in BY_LAYER else nullcontext()
        )
        with context:
            fake = overload(name)(**fakes)
    assert describe(fake) == describe(real)
    assert {k: describe(v) for k, v in fakes.items()} == {
        k: describe(v) for k, v in arguments.items()
    }


def changed_by(function, arguments, context):
    """Return the names of the tensors in which `function` changes a bit."""
    tensors = {k: v for k, v in arguments.items() if isinstance(v, torch.Tensor)}
    before = {k: v.clone() for k, v in tensors.items()}
    with forward_context(context):
        function(**arguments)
    return {k for k, v in tensors.items() if not torch.equal(bits(v), bits(before[k]))}


@pytest.mark.parametrize("k_pe_2d", [False, True])
@pytest.mark.parametrize("tokens", [1, 3, 63])
@pytest.mark.parametrize("name", NAMES)
def test_exactly_the_declared_arguments_change(name, tokens, k_pe_2d):
    layer = cases_of(name).make_layer()
    arguments = cases_of(name).arguments_of(name, layer, tokens, k_pe_2d=k_pe_2d)
    changed = changed_by(overload(name), arguments, context_for(name, layer, tokens))
    assert changed == written_by_schema(name)


@pytest.mark.parametrize("name", NAMES)
def test_an_undeclared_write_is_noticed(name):
    layer = cases_of(name).make_layer()
    arguments = cases_of(name).arguments_of(name, layer, 3)
    read_only = next(x for x in ("positions", "kv_c", "value", "q") if x in arguments)

    def writes_too_much(**arguments):
        overload(name)(**arguments)
        arguments[read_only][-1] += 1

    changed = changed_by(writes_too_much, arguments, context_for(name, layer, 3))
    assert changed == written_by_schema(name) | {read_only}


@pytest.mark.parametrize("name", [n for n in NAMES if "cos_sin_cache" in str(overload(n)._schema)])
def test_a_rotation_that_turns_nothing_is_noticed(name):
    """With cos 1 and sin 0 nothing changes: what is declared written is seen only if it is."""
    layer = cases_of(name).make_layer()
    arguments = cases_of(name).arguments_of(name, layer, 3)
    half = arguments["cos_sin_cache"].size(-1) // 2
    arguments["cos_sin_cache"][:, :half], arguments["cos_sin_cache"][:, half:] = 1, 0
    assert changed_by(overload(name), arguments, context_for(name, layer, 3)) == set()


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name, tokens):
    layer = cases_of(name).make_layer()
    arguments = cases_of(name).arguments_of(name, layer, tokens, strided=False)
    with forward_context(context_for(name, layer, tokens)):
        torch.library.opcheck(overload(name), (), arguments)


@pytest.mark.parametrize("name", NAMES[1:])
def test_ops_that_need_a_context_say_so(name):
    layer = cases_of(name).make_layer()
    with pytest.raises(ContextError, match="found no forward context"):
        overload(name)(**cases_of(name).arguments_of(name, layer, 3))


def test_rotation_needs_no_context():
    layer = cases.make_layer()
    arguments = cases.arguments_of("rotary_embedding", layer, 3)
    before = arguments["query"].clone()
    assert overload("rotary_embedding")(**arguments) is None
    assert not torch.equal(arguments["query"], before)


@pytest.mark.parametrize("name", NAMES[1:])
def test_an_unknown_layer_is_named(name):
    layer = cases_of(name).make_layer()
    arguments = {
        **cases_of(name).arguments_of(name, layer, 3),
        "layer_name": "model.layers.9.self_attn",
    }
    with (
        forward_context(context_for(name, layer, 3)),
        pytest.raises(ContextError, match=r"no layer 'model\.layers\.9\.self_attn'; it has: "),
    ):
        overload(name)(**arguments)
