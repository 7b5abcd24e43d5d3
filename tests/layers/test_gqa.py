"""Ordinary attention against transformers' Llama, from a checkpoint, through the paged cache."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from transformers import DynamicCache, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

from mlalab.context import ForwardContext, forward_context, make_batch
from mlalab.errors import CheckpointError, ConfigError, ContextError
from mlalab.layers.gqa import GQAAttention
from mlalab.layers.loading import load_attention
from mlalab.layers.mla import MLAAttention
from mlalab.layers.options import LayerOptions
from mlalab.shapes import preset
from mlalab.workbench import build
from tests.layers.oracle import BLOCK_SIZE, assert_close, randomize, run_step

YARN = {
    **{"rope_type": "yarn", "rope_theta": 500000.0, "factor": 8.0},
    "original_max_position_embeddings": 16,
}
ROPES = {"default": {"rope_type": "default", "rope_theta": 10000.0}, "yarn": YARN}
SIZES = {
    **{"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16},
    **{"max_position_embeddings": 128, "num_hidden_layers": 1},
}
D = SIZES["hidden_size"]


class Oracle:
    """One attention layer of transformers' Llama, and a directory that holds it."""

    def __init__(self, path, rope="default", **more):
        kept = {"rope_parameters": dict(ROPES[rope]), "attn_implementation": "eager"}
        self.config = LlamaConfig(**{**SIZES, **kept, **more})
        self.attention = LlamaAttention(self.config, layer_idx=0).eval()
        randomize(self.attention)
        self.path = path
        values = {**SIZES, **more, "model_type": "llama", "rope_parameters": ROPES[rope]}
        (path / "config.json").write_text(json.dumps(values))
        state = self.attention.state_dict()
        named = {f"model.layers.0.self_attn.{k}": v for k, v in state.items()}
        save_file(named, path / "model.safetensors")

    @torch.no_grad()
    def run(self, hidden):
        """Return outputs `[T, D]` and cached keys and values `[2, T, G, H]` of one request."""
        positions = torch.arange(len(hidden))
        rotary, cache = LlamaRotaryEmbedding(self.config), DynamicCache(config=self.config)
        future = torch.arange(len(hidden)) > positions[:, None]
        output, _ = self.attention(
            hidden[None],
            position_embeddings=rotary(hidden[None], positions[None]),
            attention_mask=future.float().masked_fill(future, -torch.inf)[None, None],
            past_key_values=cache,
        )
        layer = cache.layers[0]
        return output[0], torch.stack((layer.keys[0], layer.values[0])).transpose(1, 2)


def run_request(layer, hidden, chunks):
    """Return outputs and cached rows of one request, run in `chunks` of tokens."""
    layer.allocate_cache(-(-len(hidden) // BLOCK_SIZE), BLOCK_SIZE)
    outputs, start = [], 0
    for length in chunks:
        batch = make_batch([length], [start], num_decodes=0, block_size=BLOCK_SIZE)
        outputs.append(run_step(layer, batch, hidden[start : start + length]))
        start += length
    return torch.cat(outputs), layer.kv_cache.typed.flatten(1, 2)[:, : len(hidden)]


def check(oracle, layer, chunks=(9, *[1] * 8)):
    hidden = torch.randn(sum(chunks), D)
    expected, rows = oracle.run(hidden)
    outputs, found = run_request(layer, hidden, chunks)
    assert_close("outputs", outputs, expected, 1e-6)
    assert_close("cache rows", found, rows, 1e-6 * float(rows.abs().max()))


@pytest.mark.parametrize("custom_op", [False, True])
@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("bias", [False, True])
def test_prefill_then_decode(tmp_path, rope, bias, custom_op):
    oracle = Oracle(tmp_path, rope, attention_bias=bias)
    check(oracle, load_attention(tmp_path, options=LayerOptions(rope_custom_op=custom_op)))


def test_a_mixed_batch(tmp_path):
    oracle = Oracle(tmp_path, "yarn")
    layer, lengths = load_attention(tmp_path), ((1, 9), (4, 5), (3, 0))
    requests = [torch.randn(new + old, D) for new, old in lengths]
    new, old = zip(*lengths, strict=True)
    batch = make_batch(new, old, num_decodes=1, block_size=BLOCK_SIZE)
    earlier = replace(batch, query_lens=old, context_lens=(0, 0, 0), num_decodes=0)
    layer.allocate_cache(1 + int(batch.block_table.max()), BLOCK_SIZE)
    run_step(layer, earlier, torch.cat([x[:n] for x, n in zip(requests, old, strict=True)]))
    outputs = run_step(
        layer, batch, torch.cat([x[-n:] for x, n in zip(requests, new, strict=True)])
    )
    for hidden, output in zip(requests, outputs.split(new), strict=True):
        assert_close("request", output, oracle.run(hidden)[0][-len(output) :], 1e-6)


def negate_sin(layer):
    layer.rotary_emb.cos_sin_cache.chunk(2, dim=-1)[1].neg_()


def scale_scores(layer):
    layer.softmax_scale *= 1.1


def swap_rows(layer):
    layer.qkv_proj.weight.copy_(layer.qkv_proj.weight.roll(16, 0))


@pytest.mark.parametrize("break_it", [negate_sin, scale_scores, swap_rows])
def test_a_broken_layer_is_noticed(tmp_path, break_it):
    oracle = Oracle(tmp_path)
    layer = load_attention(tmp_path)
    break_it(layer)
    with pytest.raises(AssertionError):
        check(oracle, layer)


@pytest.mark.parametrize("missing", [{"head_dim": None}, {"num_key_value_heads": None}])
def test_sizes_that_old_files_leave_out(tmp_path, missing):
    sizes = {**SIZES, **missing, "num_attention_heads": 6}
    values = {k: v for k, v in sizes.items() if v is not None}
    oracle = Oracle(tmp_path, **missing)
    (tmp_path / "config.json").write_text(json.dumps({**values, "model_type": "llama"}))
    check(oracle, load_attention(tmp_path))


def test_other_rope_kinds_are_refused(tmp_path):
    Oracle(tmp_path)
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0}
    values = {**SIZES, "model_type": "llama", "rope_parameters": rope}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="rope kind 'llama3', which is not supported"):
        load_attention(tmp_path)


def test_fp8_cache_is_close_and_its_scales_are_used():
    layer, hidden = build("tiny-gqa", options=LayerOptions()).layers[0], torch.randn(9, 64)
    expected, rows = run_request(layer, hidden, [4, 5])
    fp8 = GQAAttention(layer.shape, options=LayerOptions(kv_cache_dtype="fp8"))
    fp8.load_state_dict(layer.state_dict())
    fp8.k_scale.fill_(0.01)
    fp8.v_scale.fill_(0.02)
    outputs, stored = run_request(fp8, hidden, [4, 5])
    scales = torch.tensor([0.01, 0.02])[:, None, None, None]
    torch.testing.assert_close(stored.float() * scales, rows, rtol=1 / 16, atol=1e-3)
    torch.testing.assert_close(outputs, expected, rtol=0, atol=0.1 * expected.abs().max().item())


def test_profile_run_padding_and_no_cache():
    layer = GQAAttention(preset("tiny-gqa"))
    with pytest.raises(ContextError, match=r"no cache yet; call layer\.allocate_cache"):
        _ = layer.kv_cache
    with forward_context(ForwardContext(layers={layer.layer_name: layer})):
        assert not layer(torch.arange(5), torch.randn(5, 64)).any()
    layer.allocate_cache(1)
    batch = make_batch([3], [0], num_decodes=0, block_size=16)
    padded = run_step(layer, batch, torch.randn(3, 64), pad_to=7)
    assert padded[:3].any()
    assert not padded[3:].any()
    nothing = make_batch([], [], num_decodes=0, block_size=16)
    assert run_step(layer, nothing, torch.randn(0, 64)).shape == (0, 64)
    assert not any(parameter.requires_grad for parameter in layer.parameters())


def test_kinds_and_scales_on_the_workbench():
    layer = build("tiny-gqa").layers[0]
    assert (layer.kind, MLAAttention.kind) == ("gqa", "mla")
    assert [round(float(x), 2) for x in (layer.k_scale, layer.v_scale)] == [0.37, 0.53]
    assert build(layer).layers[0] is layer
    assert build(layer.shape, num_layers=2).layers[1].shape == layer.shape
    with pytest.raises(ConfigError, match="A layer is traced as it is"):
        build(layer, num_layers=2)
