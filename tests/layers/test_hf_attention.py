"""Text of a transformers model is the same to the last token with our attention in it."""

from __future__ import annotations

import functools

import pytest
import torch
from transformers import (
    DeepseekV2ForCausalLM,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from mlalab.errors import CheckpointError, InputError
from mlalab.layers.hf_attention import greedy, replace_attention
from mlalab.layers.options import LayerOptions
from mlalab.shapes import RopeSpec
from tests.compile.batches import compiled, flags
from tests.layers.oracle import make_config, randomize

MODELS = {"v2": DeepseekV2ForCausalLM, "v3": DeepseekV3ForCausalLM}
TOKENS, VOCABULARY = 64, 97
# A dense layer, then one of experts. No token ends a text.
SMALL = {
    **{"num_hidden_layers": 2, "first_k_dense_replace": 1, "vocab_size": VOCABULARY},
    **{"intermediate_size": 36, "moe_intermediate_size": 24, "n_shared_experts": 1},
    **{"n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1},
    **{"bos_token_id": None, "eos_token_id": None},
}
LENGTHS = (1, 17, 6)
BLOCK = 8


class Case:
    """A random model, prompts, and the texts of transformers' own `generate`."""

    def __init__(self, family):
        torch.manual_seed(3)
        self.model = MODELS[family](make_config(family, **SMALL)).eval()
        randomize(self.model)
        self.prompts = [torch.randint(VOCABULARY, (n,)).tolist() for n in LENGTHS]
        self.expected, self.margins = zip(*map(self._generate, self.prompts), strict=True)

    def _generate(self, prompt):
        """Return the text and by how much the best logit was the best, at least."""
        made = self.model.generate(
            torch.tensor([prompt]),
            do_sample=False,
            max_new_tokens=TOKENS,
            use_cache=True,
            output_logits=True,
            return_dict_in_generate=True,
        )
        best, second = torch.cat(made.logits).topk(2).values.unbind(-1)
        return made.sequences[0, len(prompt) :].tolist(), (best - second).min()

    def replace(self, **options):
        return replace_attention(self.model, options=LayerOptions(**options))

    def greedy(self, layers, *which, tokens=TOKENS, **options):
        prompts = [self.prompts[i] for i in which]
        return greedy(self.model, layers, prompts, tokens, block_size=BLOCK, **options)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tensors are so small that threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def case_of(family):
    return Case(family)


@pytest.fixture(params=MODELS)
def case(request):
    return case_of(request.param)


@pytest.fixture
def v2():
    return case_of("v2")


def test_the_texts_can_tell(case):
    assert all(len(text) == TOKENS for text in case.expected)
    assert all(len(set(text)) > 20 for text in case.expected)
    # So far apart that rounding cannot decide.
    assert min(case.margins) > 1e-3


@pytest.mark.parametrize("exposed", [False, True])
def test_same_text(case, exposed):
    layers = case.replace(exposed=exposed)
    assert case.greedy(layers, 0) == [case.expected[0]]
    assert case.greedy(layers, 1) == [case.expected[1]]


@pytest.mark.parametrize("exposed", [False, True])
def test_same_text_of_a_prompt_in_chunks_beside_others(case, exposed):
    # Prompts of 1, 17 and 6 tokens end after 1, 4 and 2 steps, so decode joins prefill.
    assert case.greedy(case.replace(exposed=exposed), 0, 1, 2, chunk=5) == [*case.expected]


@pytest.mark.parametrize("chunk", [1, 16])
def test_same_text_of_a_prompt_in_chunks(v2, chunk):
    assert v2.greedy(v2.replace(exposed=True), 1, chunk=chunk) == [v2.expected[1]]


def test_same_text_when_each_layer_is_compiled(v2):
    layers = v2.replace(exposed=True)
    functions = [compiled(x, verify=False, pass_config=flags(x, aiter=False)) for x in layers]
    for decoder, function in zip(v2.model.model.layers, functions, strict=True):
        decoder.self_attn.run = function
    assert v2.greedy(layers, 1) == [v2.expected[1]]
    assert all(function.entries for function in functions)


def another_scale(layer):
    layer.softmax_scale *= 1.05


def no_rope(layer):
    layer.rotary_emb = None


def another_rope(layer):
    layer.rotary_emb = type(layer.rotary_emb)(RopeSpec(), layer.shape.qk_rope_head_dim, 128)


@pytest.mark.parametrize("harm", [another_scale, no_rope, another_rope])
@pytest.mark.parametrize("layer", [0, 1])
def test_another_attention_has_another_text(v2, harm, layer):
    layers = v2.replace(exposed=True)
    assert v2.greedy(layers, 1, tokens=16) == [v2.expected[1][:16]]
    harm(layers[layer])
    assert v2.greedy(layers, 1, tokens=16) != [v2.expected[1][:16]]


def test_nothing_to_generate(v2):
    layers = v2.replace()
    assert greedy(v2.model, layers, [], TOKENS) == []
    assert greedy(v2.model, layers, [[5], [5, 6]], 0) == [[], []]


@pytest.mark.parametrize(("prompts", "chunk"), [([[5], []], None), ([[5]], 0)])
def test_prompts_and_chunks_have_tokens(v2, prompts, chunk):
    with pytest.raises(InputError, match="must have at least one token"):
        greedy(v2.model, v2.replace(), prompts, 1, chunk=chunk)


def test_requests_are_not_rows_of_a_batch(v2):
    v2.replace()
    with pytest.raises(InputError, match=r"as one row \[1, T, D\], got \[2, 3, 48\]"):
        v2.model(torch.ones((2, 3), dtype=torch.int64), use_cache=False)


def test_weights_are_the_models_own(v2):
    layer = v2.replace()[1]
    weights = dict(v2.model.named_parameters())
    name = "model.layers.1.self_attn"
    assert layer.layer_name == name
    assert layer.kv_b_proj.weight is weights[f"{name}.layer.kv_b_proj.weight"]
    again = v2.replace(kv_cache_dtype="fp8")[1]
    assert again.options.kv_cache_dtype == "fp8"
    assert again.kv_b_proj.weight.data_ptr() == layer.kv_b_proj.weight.data_ptr()


def test_dtype_is_the_models():
    model = DeepseekV2ForCausalLM(make_config("v2", **SMALL)).bfloat16()
    layers = replace_attention(model)
    assert {layer.options.dtype for layer in layers} == {torch.bfloat16}
    assert len(greedy(model, layers, [[5, 6]], 3)[0]) == 3


TINY = {
    **{"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 7},
    **{"num_attention_heads": 2, "num_key_value_heads": 2},
}


@pytest.mark.parametrize(
    ("model", "config", "message"),
    [
        (LlamaForCausalLM, LlamaConfig, "LlamaForCausalLM has no MLA layers; give a DeepSeek"),
        (Qwen2ForCausalLM, Qwen2Config, "'Qwen2Config': model_type 'qwen2' is not supported"),
    ],
)
def test_a_model_without_mla_is_refused(model, config, message):
    with pytest.raises(CheckpointError, match=message):
        replace_attention(model(config(**TINY)))
