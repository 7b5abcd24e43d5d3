"""config.json: what it means, what is refused and with which words."""

from __future__ import annotations

import json

import pytest

from mlalab.errors import CheckpointError
from mlalab.layers.hf_config import HFConfig, read_json
from mlalab.layers.loading import read_shape
from mlalab.shapes import MLAShape, RopeSpec, preset

V3 = {
    **{"model_type": "deepseek_v3", "hidden_size": 7168, "num_attention_heads": 128},
    **{"num_key_value_heads": 128, "num_hidden_layers": 61, "q_lora_rank": 1536},
    **{"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128},
    **{"max_position_embeddings": 163840, "rms_norm_eps": 1e-06, "attention_bias": False},
    "rope_theta": 10000,
    "rope_scaling": {
        **{"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0},
        **{"original_max_position_embeddings": 4096, "type": "yarn"},
    },
}
V2_LITE = {
    **V3,
    **{"model_type": "deepseek_v2", "hidden_size": 2048, "num_attention_heads": 16},
    **{"num_hidden_layers": 27, "q_lora_rank": None},
    "rope_scaling": {**V3["rope_scaling"], "mscale": 0.707, "mscale_all_dim": 0.707},
}
KIMI_K2 = {
    **V3,
    **{"model_type": "kimi_k2", "num_attention_heads": 64, "max_position_embeddings": 131072},
    "rope_theta": 50000.0,
    "rope_scaling": {**V3["rope_scaling"], "factor": 32.0, "beta_fast": 1.0},
}
YARN = V3["rope_scaling"]


@pytest.fixture
def write(tmp_path):
    def write(config):
        text = config if isinstance(config, str) else json.dumps(config)
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
        return tmp_path

    return write


def without(config, key):
    return {k: v for k, v in config.items() if k != key}


@pytest.mark.parametrize(
    ("config", "name"),
    [(V3, "deepseek-v3"), (V2_LITE, "deepseek-v2-lite"), (KIMI_K2, "kimi-k2")],
)
def test_published_configs_are_the_presets(write, config, name):
    assert read_shape(write(config)) == preset(name)
    assert read_shape(str(write(config))) == preset(name)


def test_new_and_old_rope_names_mean_the_same(write):
    old = read_shape(write({**V3, "rope_theta": 500.0}))
    parameters = {**without(YARN, "type"), "rope_type": "yarn", "rope_theta": 500.0}
    new = without(without(V3, "rope_scaling"), "rope_theta") | {"rope_parameters": parameters}
    assert old == read_shape(write(new))
    assert old.rope.theta == 500.0
    both = {**new, "rope_scaling": parameters}
    assert old == read_shape(write(both))


def test_theta_inside_the_rope_object_wins(write):
    config = {**V3, "rope_theta": 1.5, "rope_scaling": {**YARN, "rope_theta": 700}}
    assert read_shape(write(config)).rope.theta == 700.0


@pytest.mark.parametrize("rope", [None, {}, {"rope_type": "default"}, {"type": "default"}])
def test_plain_rope(write, rope):
    shape = read_shape(write({**V3, "rope_scaling": rope, "rope_theta": 123.0}))
    assert shape.rope == RopeSpec(kind="default", theta=123.0)


def test_theta_defaults_to_ten_thousand(write):
    config = without(without(V3, "rope_scaling"), "rope_theta")
    assert read_shape(write(config)).rope == RopeSpec(kind="default", theta=10000.0)


def test_every_yarn_field_is_read(write):
    rope = {
        **{"rope_type": "deepseek_yarn", "factor": 3.0, "original_max_position_embeddings": 5},
        **{"beta_fast": 7, "beta_slow": 2, "mscale": 0.5, "mscale_all_dim": 0.25},
        **{"attention_factor": 0.75, "truncate": False, "rope_theta": 11.0},
    }
    expected = RopeSpec(
        kind="yarn",
        **{k: v for k, v in rope.items() if k not in ("rope_type", "rope_theta")},
        theta=11.0,
    )
    assert read_shape(write({**V3, "rope_scaling": rope})).rope == expected


def test_null_yarn_fields_take_the_defaults(write):
    rope = {**YARN, "beta_fast": None, "mscale": None, "attention_factor": None}
    spec = read_shape(write({**V3, "rope_scaling": rope})).rope
    assert (spec.beta_fast, spec.mscale, spec.attention_factor) == (32.0, None, None)


@pytest.mark.parametrize(
    ("config", "is_neox"),
    [
        (V3, False),
        ({**V3, "rope_interleave": True}, False),
        ({**V3, "rope_interleave": False}, True),
        ({**V2_LITE, "rope_interleave": False}, False),
    ],
)
def test_pairing(write, config, is_neox):
    assert read_shape(write(config)).rope.is_neox is is_neox


def test_eps_of_the_latent_norms_is_not_the_configs(write):
    assert read_shape(write({**V3, "rms_norm_eps": 0.5})).rms_norm_eps == 1e-6


def test_attention_bias(write):
    assert read_shape(write({**V3, "attention_bias": True})).attention_bias
    assert not read_shape(write(without(V3, "attention_bias"))).attention_bias


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{nope", r"config\.json' is not valid JSON \(.+\); download it again"),
        ("[1]", r"config\.json' holds no JSON object"),
        (
            {**V3, "model_type": "gemma"},
            r"'gemma' is not supported; supported: deepseek_v2, deep",
        ),
        (without(V3, "model_type"), r"model_type None is not supported"),
        (without(V3, "kv_lora_rank"), r"key 'kv_lora_rank' is missing"),
        (without(V3, "q_lora_rank"), r"key 'q_lora_rank' is missing"),
        ({**V3, "hidden_size": "7168"}, r"hidden_size must be a positive integer, got '7168'"),
        ({**V3, "v_head_dim": 0}, r"v_head_dim must be a positive integer, got 0"),
        ({**V3, "qk_rope_head_dim": 63}, r"qk_rope_head_dim must be even .* got 63"),
        ({**V3, "attention_bias": 1}, r"attention_bias must be true or false, got 1"),
        ({**V3, "rope_interleave": None}, r"rope_interleave must be true or false, got None"),
        ({**V3, "rope_theta": "big"}, r"rope_theta must be a positive number, got 'big'"),
    ],
)
def test_refused_configs(write, config, message):
    with pytest.raises(CheckpointError, match=message):
        read_shape(write(config))


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ("yarn", r"rope_scaling must be an object or null, got 'yarn'"),
        ({**YARN, "type": "llama3"}, r"kind 'llama3', which is not supported; supported: default,"),
        ({**YARN, "finetuned": True}, r"key 'finetuned', which rope kind 'yarn' does not know"),
        ({"type": "default", "factor": 2.0}, r"key 'factor', which rope kind 'default' does not"),
        (without(YARN, "factor"), r"lacks 'factor', which rope kind 'yarn' needs"),
        (without(YARN, "original_max_position_embeddings"), r"lacks 'original_max_position_embed"),
        ({**YARN, "factor": -1}, r"factor must be a positive number, got -1"),
        ({**YARN, "mscale": "1"}, r"mscale must be a number, got '1'"),
        ({**YARN, "beta_fast": float("nan")}, r"beta_fast must be a positive number, got nan"),
        ({**YARN, "truncate": "no"}, r"truncate must be true or false, got 'no'"),
        ({**YARN, "partial_rotary_factor": 0.5}, r"partial_rotary_factor other than 1"),
    ],
)
def test_refused_ropes(write, rope, message):
    with pytest.raises(CheckpointError, match=message):
        read_shape(write({**V3, "rope_scaling": rope}))


def test_disagreeing_ropes_are_refused(write):
    with pytest.raises(CheckpointError, match="rope_parameters and rope_scaling disagree"):
        read_shape(write({**V3, "rope_parameters": {**YARN, "factor": 2}}))


def test_every_refusal_names_the_file(write):
    with pytest.raises(CheckpointError) as caught:
        read_shape(write({**V3, "v_head_dim": 0}))
    assert str(caught.value).startswith(f"'{write(V3) / 'config.json'}': ")


def test_missing_directory_and_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"No model directory at '.*gone'; .* hf download"):
        read_shape(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"has no config\.json; point at the directory"):
        read_shape(tmp_path)


FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 64]}


def test_fp8_block(write):
    assert HFConfig(write(V3)).fp8_block() is None
    assert HFConfig(write({**V3, "quantization_config": FP8})).fp8_block() == (128, 64)


@pytest.mark.parametrize(
    "quantization",
    [
        *({"quant_method": "gptq", "bits": 4}, without(FP8, "weight_block_size"), "fp8"),
        *({**FP8, "weight_block_size": [128]}, {**FP8, "weight_block_size": [128, 0]}),
    ],
)
def test_other_quantisations_are_refused(write, quantization):
    config = HFConfig(write({**V3, "quantization_config": quantization}))
    with pytest.raises(CheckpointError, match=r"is not supported: only quant_method 'fp8' with"):
        config.fp8_block()
    assert isinstance(config.shape(), MLAShape)


def test_unreadable_json(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(CheckpointError, match="is not valid JSON"):
        read_json(tmp_path / "x.json")
