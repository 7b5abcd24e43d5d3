"""The decoder that is served: its sizes, its parts, its weights."""

from __future__ import annotations

import pytest
import torch
from transformers.models.deepseek_v2.configuration_deepseek_v2 import DeepseekV2Config
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2MLP

from mlalab.context import ForwardContext, forward_context, make_batch
from mlalab.errors import ConfigError
from mlalab.layers.options import LayerOptions
from mlalab.serving.model import Decoder, DecoderShape, GatedMLP, decoder_shape
from mlalab.shapes import PRESETS, MLAShape, preset
from tests.serving.decoders import decoder


def test_every_mla_preset_has_a_decoder_and_no_other():
    for name in PRESETS:
        if isinstance(preset(name), MLAShape):
            assert decoder_shape(name).num_layers == preset(name).num_layers
        else:
            with pytest.raises(ConfigError, match=f"'{name}' has no decoder to serve; one of tiny"):
                decoder_shape(name)


def test_deepseek_v2_lite_has_its_widths():
    shape = decoder_shape("deepseek-v2-lite", 3)
    assert (shape.num_layers, shape.intermediate_size, shape.vocab_size) == (3, 10944, 102400)
    assert shape.attention.hidden_size == 2048


@pytest.mark.parametrize("name", ["num_layers", "intermediate_size", "vocab_size"])
def test_sizes_that_cannot_be(name):
    sizes = {"num_layers": 1, "intermediate_size": 1, "vocab_size": 1} | {name: 0}
    with pytest.raises(ConfigError, match=f"{name} must be a whole number, 1 or more, got 0"):
        DecoderShape(attention=preset("tiny"), **sizes)


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_the_mlp_is_that_of_transformers(rows):
    config = DeepseekV2Config(hidden_size=12, intermediate_size=20, num_attention_heads=4)
    theirs, ours = DeepseekV2MLP(config), GatedMLP(12, 20)
    ours.load_state_dict(theirs.state_dict())
    hidden = torch.randn(rows, 12)
    assert torch.equal(ours(hidden), theirs(hidden))


def test_a_layer_adds_attention_and_mlp_to_the_residual_stream():
    model = decoder()
    layer = model.stack.layers[1]
    metadata = make_batch([3], [0], num_decodes=0, block_size=4)
    context = ForwardContext(
        layers=model.attention_layers,
        metadata=metadata,
        slot_mapping=metadata.slot_mapping(4),
    )
    hidden, positions = torch.randn(3, 64), metadata.positions()
    with torch.no_grad(), forward_context(context):
        output = layer(positions, hidden)
        attended = hidden + layer.self_attn(positions, layer.input_layernorm(hidden))
        expected = attended + layer.mlp(layer.post_attention_layernorm(attended))
        stacked = model.stack(positions, hidden)
        assert torch.equal(stacked, layer(positions, model.stack.layers[0](positions, hidden)))
    assert torch.equal(output, expected)


def test_names_tell_layers_apart():
    model = decoder()
    assert list(model.attention_layers) == [
        "model.layers.0.self_attn",
        "model.layers.1.self_attn",
    ]
    assert {layer.layer_name for layer in model.attention_layers.values()} == {
        *model.attention_layers
    }


def test_the_seed_gives_the_weights():
    shape, options = decoder_shape("tiny", 1), LayerOptions()
    first, again, other = (Decoder(shape, options, seed).state_dict() for seed in (4, 4, 5))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    assert all(weight.isfinite().all() for weight in first.values())


def test_weights_are_shared_and_not_copied():
    source, face = decoder(), decoder(exposed=True)
    face.share_weights(source)
    theirs = dict(source.named_parameters())
    for name, parameter in face.named_parameters():
        assert parameter.data_ptr() == theirs[name].data_ptr(), name
        assert not parameter.requires_grad
    assert all(layer.options.exposed for layer in face.attention_layers.values())
    assert not any(layer.options.exposed for layer in source.attention_layers.values())


def test_the_next_token_is_the_likeliest_of_the_normalised_row():
    model = decoder()
    hidden = torch.randn(3, 64)
    scores = model.lm_head(model.norm(hidden))
    assert model.logits(hidden).argmax(-1).tolist() == [int(row.argmax()) for row in scores]
    assert model.logits(hidden[:0]).argmax(-1).tolist() == []
