"""Sizes and presets."""

from __future__ import annotations

import re

import pytest

from mlalab.errors import ConfigError
from mlalab.shapes import PRESETS, GQAShape, MLAShape, preset

GQA = ("tiny-gqa", "llama-3-8b")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_shapes(name):
    shape = preset(name)
    assert type(shape) is (GQAShape if name in GQA else MLAShape)
    if name in GQA:
        assert shape.q_size == shape.num_heads * shape.head_dim
        assert shape.kv_size == shape.num_kv_heads * shape.head_dim
        return
    assert shape.qk_head_dim == shape.qk_nope_head_dim + shape.qk_rope_head_dim
    assert shape.cache_dim == shape.kv_lora_rank + shape.qk_rope_head_dim


@pytest.mark.parametrize(
    ("name", "heads", "q_lora_rank", "layers"),
    [
        ("deepseek-v2-lite", 16, None, 27),
        ("deepseek-v3", 128, 1536, 61),
        ("deepseek-v3-tp8", 16, 1536, 61),
        ("kimi-k2", 64, 1536, 61),
    ],
)
def test_published_sizes(name, heads, q_lora_rank, layers):
    shape = preset(name)
    assert (shape.num_heads, shape.q_lora_rank, shape.num_layers) == (heads, q_lora_rank, layers)
    assert (shape.qk_head_dim, shape.cache_dim, shape.v_head_dim) == (192, 576, 128)


def test_published_sizes_of_llama():
    shape = preset("llama-3-8b")
    assert (shape.num_heads, shape.num_kv_heads, shape.head_dim) == (32, 8, 128)
    assert (shape.rope.theta, shape.rope.is_neox) == (500000.0, True)


def test_tp8_differs_from_v3_in_heads_only():
    assert preset("deepseek-v3-tp8") == preset("deepseek-v3", num_heads=16)


def test_overrides_win_over_the_preset():
    shape = preset("tiny", num_heads=3, q_lora_rank=None)
    assert (shape.num_heads, shape.q_lora_rank) == (3, None)
    assert shape.hidden_size == preset("tiny").hidden_size


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"'deepseek-v9'; known presets: tiny, deepseek-v2-lite,"):
        preset("deepseek-v9")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("hidden_size", 0), ("num_heads", -1), ("v_head_dim", 2.0), ("num_layers", "3")),
        *(("q_lora_rank", 0), ("kv_lora_rank", None), ("max_position_embeddings", 0)),
    ],
)
def test_sizes_must_be_positive_integers(field, value):
    message = rf"{field} must be a positive integer, got {re.escape(repr(value))}"
    with pytest.raises(ConfigError, match=message):
        preset("tiny", **{field: value})
    if field in ("hidden_size", "num_heads", "num_layers", "max_position_embeddings"):
        with pytest.raises(ConfigError, match=message):
            preset("tiny-gqa", **{field: value})


def test_rope_dim_must_be_even():
    with pytest.raises(ConfigError, match=r"must be even .* got 15"):
        preset("tiny", qk_rope_head_dim=15)
    with pytest.raises(ConfigError, match=r"head_dim must be even .* got 15"):
        preset("tiny-gqa", head_dim=15)


def test_query_heads_are_shared_out_evenly():
    assert preset("tiny-gqa", num_kv_heads=3).num_kv_heads == 3
    with pytest.raises(ConfigError, match=r"a multiple of num_kv_heads, got 6 and 4"):
        preset("tiny-gqa", num_kv_heads=4)


def test_shapes_are_values():
    assert MLAShape(hidden_size=8, num_heads=2) == MLAShape(hidden_size=8, num_heads=2)
    assert len({preset("tiny"), preset("tiny"), preset("kimi-k2")}) == 2
