"""Block-quantised FP8 weights, as DeepSeek-V3 is published, made by hand."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mlalab.errors import CheckpointError
from mlalab.layers.loading import load_attention
from tests.layers.test_loading import (
    NAME,
    check,
    edit_config,
    edit_tensors,
    make_model,
    oracle_of,
    refused,
)

FP8 = torch.float8_e4m3fn
BLOCK = 128


def quantize_by_hand(weight):
    """Return FP8 weights and one inverse scale per block, and what they stand for."""
    rows, columns = weight.shape
    scale = torch.empty(-(-rows // BLOCK), -(-columns // BLOCK))
    stored, meant = torch.empty_like(weight, dtype=FP8), torch.empty_like(weight)
    for i in range(scale.size(0)):
        for j in range(scale.size(1)):
            at = (slice(i * BLOCK, (i + 1) * BLOCK), slice(j * BLOCK, (j + 1) * BLOCK))
            scale[i, j] = weight[at].abs().max() / 448
            stored[at] = (weight[at] / scale[i, j]).to(FP8)
            meant[at] = stored[at].float() * scale[i, j]
    return stored, scale, meant


@pytest.fixture
def quantised(tmp_path):
    """A V3 model with sizes over one block and no multiple of it; returns (model, directory).

    Projections of layer 1 are stored in FP8 and the model gets the values they stand for. Blocks
    differ in magnitude, so that a scale used for the wrong block shows.
    """
    model = make_model("v3", q_lora_rank=132, kv_lora_rank=136, hidden_size=144)
    directory = tmp_path / "model"
    model.save_pretrained(directory)
    tensors = load_file(directory / "model.safetensors")
    attention = model.model.layers[1].self_attn
    for name, module in attention.named_children():
        if not name.endswith("_proj") and name != "kv_a_proj_with_mqa":
            continue
        key = f"{NAME}.{name}.weight"
        with torch.no_grad():
            module.weight[:BLOCK] *= 0.3
            tensors[key], tensors[f"{key}_scale_inv"], meant = quantize_by_hand(module.weight)
            module.weight.copy_(meant)
    save_file(tensors, directory / "model.safetensors")
    quantization = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]}
    edit_config(directory, quantization_config={**quantization, "activation_scheme": "dynamic"})
    return model, directory


def test_same_outputs_as_the_dequantised_model(quantised):
    model, directory = quantised
    layer = load_attention(directory, 1)
    attention = model.model.layers[1].self_attn
    for name, parameter in layer.named_parameters():
        assert torch.equal(parameter, attention.get_parameter(name)), name
    check(oracle_of(model, "v3"), layer)


def test_unquantised_layers_of_the_same_model_load(quantised):
    model, directory = quantised
    assert torch.equal(
        load_attention(directory, 2).o_proj.weight, model.model.layers[2].self_attn.o_proj.weight
    )


def test_ignored_scales_are_noticed(quantised):
    model, directory = quantised
    key = f"{NAME}.kv_b_proj.weight_scale_inv"
    edit_tensors(directory, lambda tensors: tensors.update({key: tensors[key].flip(0)}))
    with pytest.raises(AssertionError, match="outputs"):
        check(oracle_of(model, "v3"), load_attention(directory, 1))


def test_missing_scale(quantised):
    edit_tensors(quantised[1], lambda tensors: tensors.pop(f"{NAME}.o_proj.weight_scale_inv"))
    refused(quantised[1], r"tensor .*o_proj\.weight_scale_inv is missing")


def test_scale_of_the_wrong_size(quantised):
    edit_config(
        quantised[1], quantization_config={"quant_method": "fp8", "weight_block_size": [64, 64]}
    )
    refused(quantised[1], r"_scale_inv has size \[2, 2\] where config\.json says \[3, 3\]")


def test_fp8_without_a_word_in_the_config(quantised):
    edit_config(quantised[1], quantization_config=None)
    refused(quantised[1], r"is FP8, and config\.json has no quantization_config")


def test_nothing_is_built_when_refused(quantised, monkeypatch):
    built = []
    monkeypatch.setattr(
        "mlalab.layers.mla.MLAAttention.load_state_dict", lambda *a: built.append(a)
    )
    edit_tensors(quantised[1], lambda tensors: tensors.pop(f"{NAME}.o_proj.weight_scale_inv"))
    with pytest.raises(CheckpointError):
        load_attention(quantised[1], 1)
    assert built == []


def test_the_fixture_is_what_it_says(quantised):
    config = json.loads((quantised[1] / "config.json").read_text(encoding="utf-8"))
    tensors = load_file(quantised[1] / "model.safetensors")
    assert config["quantization_config"]["quant_method"] == "fp8"
    assert tensors[f"{NAME}.kv_b_proj.weight"].dtype == FP8
    assert tensors[f"{NAME}.kv_b_proj.weight"].shape[1] % BLOCK
    assert tensors[f"{NAME}.kv_b_proj.weight_scale_inv"].numel() > 1
