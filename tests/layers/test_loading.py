"""A layer loaded from disk computes what transformers computes with the saved model."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DeepseekV2ForCausalLM, DeepseekV3ForCausalLM

from mlalab.errors import CheckpointError
from mlalab.layers.loading import dequantize_blocks, load_attention, read_shape
from mlalab.layers.mla import MLAOptions
from tests.layers.oracle import Oracle, assert_close, make_config, randomize, run_request

MODELS = {"v2": DeepseekV2ForCausalLM, "v3": DeepseekV3ForCausalLM}
LAYER = 1
NAME = f"model.layers.{LAYER}.self_attn"
CHUNKS = [("prefill", 5), ("decode", 1), ("decode", 1)]
SMALL_MLP = {
    **{"num_hidden_layers": 3, "first_k_dense_replace": 3, "vocab_size": 7},
    **{"intermediate_size": 8, "moe_intermediate_size": 8, "n_routed_experts": 2},
    **{"num_experts_per_tok": 1, "n_group": 1, "topk_group": 1, "eos_token_id": 2},
}


def make_model(family, **config):
    model = MODELS[family](make_config(family, **SMALL_MLP, **config)).eval()
    randomize(model)
    return model


def oracle_of(model, family):
    return Oracle(family, model.config, model.model.layers[LAYER].self_attn)


def check(oracle, layer):
    lengths = [length for _, length in CHUNKS]
    hidden = torch.randn(sum(lengths), oracle.config.hidden_size)
    expected, expected_rows = _run_at_layer_zero(oracle, hidden, lengths)
    outputs, rows = run_request(layer, hidden, CHUNKS)
    assert_close("outputs", outputs, expected)
    assert_close("cache rows", rows, expected_rows)


def _run_at_layer_zero(oracle, hidden, lengths):
    oracle.attention.layer_idx = 0
    return oracle.run(hidden, lengths)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny model of 3 layers, saved in one file and in shards; returns (model, directory)."""
    torch.manual_seed(1)
    model = make_model("v2", rope="yarn-mscales-differ")
    root = tmp_path_factory.mktemp("checkpoints")
    model.save_pretrained(root / "single")
    model.save_pretrained(root / "sharded", max_shard_size="16KB")
    return model, root


@pytest.fixture
def single(saved, tmp_path):
    return shutil.copytree(saved[1] / "single", tmp_path / "model")


@pytest.fixture
def sharded(saved, tmp_path):
    return shutil.copytree(saved[1] / "sharded", tmp_path / "model")


@pytest.mark.parametrize("form", ["single", "sharded"])
def test_same_outputs_as_the_saved_model(saved, form):
    model, root = saved
    layer = load_attention(root / form, LAYER)
    assert layer.layer_name == NAME
    check(oracle_of(model, "v2"), layer)


def test_another_layer_is_noticed(saved):
    model, root = saved
    with pytest.raises(AssertionError, match="outputs"):
        check(oracle_of(model, "v2"), load_attention(root / "single", LAYER + 1))


@pytest.mark.parametrize("q_lora_rank", [None, 28])
@pytest.mark.parametrize("interleave", [True, False])
def test_v3(tmp_path, q_lora_rank, interleave):
    model = make_model("v3", q_lora_rank=q_lora_rank, rope_interleave=interleave)
    model.save_pretrained(tmp_path)
    check(oracle_of(model, "v3"), load_attention(tmp_path, LAYER))


def test_biases_are_loaded(tmp_path):
    model = make_model("v2", attention_bias=True)
    model.save_pretrained(tmp_path)
    check(oracle_of(model, "v2"), load_attention(tmp_path, LAYER))


def test_a_model_without_its_head_has_shorter_names(saved, tmp_path):
    model = saved[0]
    model.model.save_pretrained(tmp_path)
    layer = load_attention(tmp_path, LAYER)
    assert layer.layer_name == NAME
    check(oracle_of(model, "v2"), layer)


def test_options_are_honoured(saved):
    options = MLAOptions(dtype=torch.bfloat16, kv_cache_dtype="fp8", rope_custom_op=True)
    layer = load_attention(saved[1] / "single", LAYER, options=options)
    assert layer.options == options
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
    expected = saved[0].model.layers[LAYER].self_attn.o_proj.weight.bfloat16()
    assert torch.equal(layer.o_proj.weight, expected)


def test_shape_is_the_configs(saved):
    root = saved[1]
    assert read_shape(root / "single") == load_attention(root / "sharded").shape
    assert read_shape(root / "single").num_layers == 3
    assert read_shape(root / "single").rope.mscale == 1.3


def edit_config(directory, **changes):
    path = directory / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(config), encoding="utf-8")


def edit_tensors(directory, change):
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def refused(directory, message, layer=LAYER):
    with pytest.raises(CheckpointError, match=message) as caught:
        load_attention(directory, layer)
    assert str(directory) in str(caught.value)


@pytest.mark.parametrize("layer", [-1, 3, 61])
def test_layer_out_of_range(single, layer):
    refused(single, rf"the model has no layer {layer}; its 3 layers are 0\.\.2", layer)


def test_missing_tensor(single):
    edit_tensors(single, lambda t: t.pop(f"{NAME}.kv_b_proj.weight"))
    refused(single, rf"tensor {NAME}\.kv_b_proj\.weight is missing; check that config\.json")


def test_missing_layer_names_the_usual_tensor(single):
    edit_config(single, num_hidden_layers=9)
    refused(single, r"tensor model\.layers\.7\.self_attn\.\w+\.weight is missing", 7)


def test_wrong_shape(single):
    edit_config(single, v_head_dim=21)
    refused(single, r"kv_b_proj\.weight has size \[132, 40\] where config\.json says \[135, 40\]")


def test_wrong_type(single):
    def to_int(tensors):
        tensors[f"{NAME}.o_proj.weight"] = tensors[f"{NAME}.o_proj.weight"].to(torch.int8)

    edit_tensors(single, to_int)
    refused(single, r"o_proj\.weight has type torch\.int8, which is not supported")


def test_unsupported_model_type(single):
    edit_config(single, model_type="gemma")
    refused(single, r"model_type 'gemma' is not supported; supported: deepseek_v2, deepseek_v3, ki")


def test_unknown_rope(single):
    edit_config(single, rope_parameters={"rope_type": "longrope"})
    refused(single, r"rope kind 'longrope', which is not supported")


def test_other_quantisation(single):
    edit_config(single, quantization_config={"quant_method": "awq"})
    refused(single, r"quantization_config .*'awq'.* is not supported")


def test_no_weights(single):
    (single / "model.safetensors").unlink()
    refused(single, r"has neither model\.safetensors nor .*index\.json\. Download the weights too")
    (single / "pytorch_model.bin").touch()
    refused(single, r"It has pytorch_model\.bin: convert it with transformers")


def test_corrupt_file(single):
    path = single / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(single, r"model\.safetensors' cannot be read \(.+\); download it again")
    path.write_bytes(b"<html>404</html>")
    refused(single, r"model\.safetensors' cannot be read")


def shards_of(directory):
    return json.loads((directory / "model.safetensors.index.json").read_text(encoding="utf-8"))


def test_missing_shard(sharded):
    shard = shards_of(sharded)["weight_map"][f"{NAME}.o_proj.weight"]
    (sharded / shard).unlink()
    refused(sharded, rf"{shard}' is missing, and 'model\.safetensors\.index\.json' next to it")


def test_only_the_needed_shards_are_opened(sharded):
    shards = shards_of(sharded)["weight_map"]
    needed = {shard for name, shard in shards.items() if name.startswith(NAME)}
    for shard in set(shards.values()) - needed:
        (sharded / shard).unlink()
    assert 0 < len(needed) < len(set(shards.values()))
    load_attention(sharded, LAYER)


def test_index_that_lies(sharded):
    index = shards_of(sharded)
    name, shard = f"{NAME}.o_proj.weight", index["weight_map"]["lm_head.weight"]
    index["weight_map"][name] = shard
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    refused(sharded, rf"tensor {name} is missing from '{shard}'")


def test_index_without_a_map(sharded):
    (sharded / "model.safetensors.index.json").write_text("{}", encoding="utf-8")
    refused(sharded, r"index\.json' has no weight_map")


def test_dequantize_blocks_cuts_the_last_block_short():
    weight = torch.randn(5, 7).to(torch.float8_e4m3fn)
    scale = torch.rand(3, 3) + 0.5
    expected = torch.empty(5, 7)
    for row in range(5):
        for column in range(7):
            expected[row, column] = weight[row, column].float() * scale[row // 2, column // 3]
    assert torch.equal(dequantize_blocks(weight, scale, (2, 3)), expected)
