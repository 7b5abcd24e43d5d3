"""Rope tables against transformers; the native forms, the op and the variants of arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import DeepseekV3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RotaryEmbedding

from mlalab.errors import ConfigError
from mlalab.rope import (
    ROPE_CLASSES,
    DeepseekScalingRotaryEmbedding,
    RotaryEmbedding,
    attention_factor,
    cos_sin_table,
    inverse_frequencies,
    softmax_scale,
)
from mlalab.shapes import RopeSpec, preset

R, M = 16, 67
YARN = RopeSpec(kind="yarn", factor=8.0, original_max_position_embeddings=16)
SPECS = {
    "default": RopeSpec(theta=500.0),
    "v3": preset("deepseek-v3").rope,
    "v2-lite": preset("deepseek-v2-lite").rope,
    "kimi-k2": preset("kimi-k2").rope,
    "tiny": preset("tiny").rope,
    "mscales-differ": replace(YARN, mscale=1.3, mscale_all_dim=0.707),
    "no-mscale": YARN,
    "explicit-factor": replace(YARN, attention_factor=0.75, mscale=1.0, mscale_all_dim=1.0),
    "no-truncate": replace(YARN, truncate=False),
    "one-point-ramp": replace(YARN, beta_fast=1.0, beta_slow=1.0, truncate=False),
    "factor-one": replace(YARN, factor=1.0, mscale=1.0, mscale_all_dim=2.0),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CLASSES = [RotaryEmbedding, DeepseekScalingRotaryEmbedding]


def hf_config(spec: RopeSpec, rotary_dim: int = R) -> DeepseekV3Config:
    parameters = {"rope_type": spec.kind, "rope_theta": spec.theta}
    if spec.kind == "yarn":
        keys = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale")
        for key in (*keys, "mscale_all_dim", "attention_factor", "truncate"):
            parameters[key] = getattr(spec, key)
    return DeepseekV3Config(
        qk_rope_head_dim=rotary_dim, qk_nope_head_dim=24, rope_parameters=parameters
    )


@pytest.mark.parametrize("rotary_dim", [16, 64])
@pytest.mark.parametrize("name", SPECS)
def test_table_is_transformers_table(name, rotary_dim):
    spec, config = SPECS[name], hf_config(SPECS[name], rotary_dim)
    if spec.kind == "yarn":
        frequencies, factor = ROPE_INIT_FUNCTIONS["yarn"](config)
        assert torch.equal(inverse_frequencies(spec, rotary_dim), frequencies)
        assert attention_factor(spec) == factor
    cos, sin = DeepseekV3RotaryEmbedding(config)(torch.zeros(1), torch.arange(M)[None])
    half = rotary_dim // 2
    expected = torch.cat((cos[0, :, :half], sin[0, :, :half]), dim=-1)
    assert torch.equal(cos_sin_table(spec, rotary_dim, M), expected)


@pytest.mark.parametrize("field", ["theta", "factor", "beta_fast", "beta_slow", "mscale"])
def test_a_wrong_table_is_noticed(field):
    spec = SPECS["v3"]
    wrong = replace(spec, **{field: getattr(spec, field) * 1.5})
    assert not torch.equal(cos_sin_table(wrong, 64, M), cos_sin_table(spec, 64, M))


def test_yarn_scales():
    v3, v2 = SPECS["v3"], SPECS["v2-lite"]
    assert attention_factor(v3) == attention_factor(v2) == 1.0
    assert softmax_scale(v3, 192) == pytest.approx(192**-0.5 * (0.1 * 3.688879454 + 1) ** 2)
    assert softmax_scale(SPECS["no-mscale"], 192) == softmax_scale(SPECS["default"], 192)
    assert softmax_scale(SPECS["factor-one"], 192) == 192**-0.5


def inputs(dtype, tokens=5, heads=3):
    """Return positions, query and key, the latter two slices of wider tensors as in the layer."""
    positions = torch.randint(M, (tokens,))
    query = torch.randn(tokens, heads, 24 + R).to(dtype)[..., 24:]
    key = torch.randn(tokens, 40 + R).to(dtype)[:, 40:].unsqueeze(1)
    return positions, query, key


def table(dtype=torch.float32):
    return cos_sin_table(SPECS["mscales-differ"], R, M).to(dtype)


def rounded_loop(x, cos, sin, is_neox):
    """Rotate one pair at a time, rounding after each product and each sum."""
    out = torch.empty_like(x)
    half = x.size(-1) // 2
    for t in range(x.size(0)):
        for i in range(half):
            first, second = (i, i + half) if is_neox else (2 * i, 2 * i + 1)
            c, s = cos[t, i].to(x.dtype), sin[t, i].to(x.dtype)
            a, b = x[t, :, first], x[t, :, second]
            ac, bs, bc, as_ = (a * c), (b * s), (b * c), (a * s)
            assert {v.dtype for v in (ac, bs, bc, as_)} == {x.dtype}
            out[t, :, first], out[t, :, second] = ac - bs, bc + as_
    return out


def complex_rotation(x, cos, sin, is_neox):
    """Rotate as complex numbers in fp64."""
    pairs = x.double().unflatten(-1, (2, -1)).mT if is_neox else x.double().unflatten(-1, (-1, 2))
    turn = torch.complex(cos.double(), sin.double())[:, None]
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn)
    return (turned.mT if is_neox else turned).flatten(-2)


@pytest.mark.parametrize("is_neox", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
class TestRotation:
    @pytest.mark.parametrize("tokens", [0, 1, 3, 63])
    @pytest.mark.parametrize("in_fp32", [True, False])
    @pytest.mark.parametrize("table_dtype", [torch.float32, None])
    def test_native_forms_are_equal(self, dtype, is_neox, tokens, in_fp32, table_dtype):
        arguments = (*inputs(dtype, tokens), table(table_dtype or dtype), is_neox, in_fp32)
        halves = RotaryEmbedding.forward_static(*arguments)
        full = DeepseekScalingRotaryEmbedding.forward_static(*arguments)
        for a, b, like in zip(halves, full, arguments[1:3], strict=True):
            assert torch.equal(a, b)
            assert (a.shape, a.dtype) == (like.shape, dtype)

    @pytest.mark.parametrize("cls", CLASSES)
    def test_op_is_the_native_form(self, dtype, is_neox, cls):
        spec = replace(SPECS["mscales-differ"], is_neox=is_neox)
        native, op = (cls(spec, R, M, custom_op=custom) for custom in (False, True))
        positions, query, key = inputs(dtype)
        expected = native(positions, query, key)
        before = query.clone()
        result = op(positions, query, key)
        assert result[0] is query
        assert result[1] is key
        assert torch.equal(query, expected[0])
        assert torch.equal(key, expected[1])
        assert not torch.equal(query, before)

    def test_rotates_by_the_angle(self, dtype, is_neox):
        positions, query, key = inputs(dtype)
        cos, sin = table()[positions].chunk(2, dim=-1)
        result, _ = RotaryEmbedding.forward_static(positions, query, key, table(), is_neox, True)
        expected = complex_rotation(query, cos, sin, is_neox)
        torch.testing.assert_close(result, expected.float().to(dtype))
        wrong = complex_rotation(query, cos, -sin, is_neox)
        with pytest.raises(AssertionError):
            torch.testing.assert_close(result, wrong.float().to(dtype))

    def test_activation_arithmetic_rounds_three_times(self, dtype, is_neox):
        positions, query, key = inputs(dtype, tokens=7)
        cos, sin = table()[positions].chunk(2, dim=-1)
        arguments = (positions, query, key, table(), is_neox)
        rounded, _ = RotaryEmbedding.forward_static(*arguments, False)
        assert torch.equal(rounded, rounded_loop(query, cos, sin, is_neox))
        upcast, _ = RotaryEmbedding.forward_static(*arguments, True)
        assert torch.equal(rounded, upcast) == (dtype == torch.float32)


@pytest.mark.parametrize("cls", CLASSES)
def test_pairings_differ(cls):
    arguments = (*inputs(torch.float32), table())
    neox, gptj = (cls.forward_static(*arguments, is_neox, True)[0] for is_neox in (True, False))
    assert not torch.equal(neox, gptj)


@pytest.mark.parametrize("cls", CLASSES)
def test_position_zero_only_scales(cls):
    _, query, key = inputs(torch.float32)
    rope = cls(SPECS["default"], R, M)
    result, _ = rope(torch.zeros(5, dtype=torch.int64), query, key)
    assert torch.equal(result, query)


def test_the_op_computes_in_fp32_only():
    with pytest.raises(ConfigError, match="drop custom_op or keep in_fp32=True"):
        RotaryEmbedding(SPECS["default"], R, M, custom_op=True, in_fp32=False)


def test_table_is_a_buffer_that_no_checkpoint_holds():
    rope = RotaryEmbedding(SPECS["default"], R, M, cache_dtype=torch.bfloat16)
    assert rope.cos_sin_cache.dtype == torch.bfloat16
    assert rope.cos_sin_cache.shape == (M, R)
    assert not rope.state_dict()


def test_every_kind_that_rotates_has_a_class():
    assert set(ROPE_CLASSES) == {"default", "yarn"}
