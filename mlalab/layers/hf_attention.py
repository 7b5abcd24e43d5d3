"""Put mlalab's attention into a transformers DeepSeek model, and generate text with it.

layers = replace_attention(model, options=LayerOptions(exposed=True))
texts = greedy(model, layers, [prompt, another], 64, chunk=16)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mlalab.context import BatchMetadata, ForwardContext, forward_context
from mlalab.errors import CheckpointError, InputError
from mlalab.layers.hf_config import HFConfig
from mlalab.layers.mla import MLAAttention
from mlalab.layers.options import LayerOptions
from mlalab.shapes import MLAShape


class HFAttention(nn.Module):
    """An MLA layer with the call signature of transformers; runs inside a forward context.

    It calls `run(positions, hidden_TD)`: the layer, or put there what was compiled from it.
    """

    def __init__(self, layer: MLAAttention) -> None:
        super().__init__()
        self.layer = layer
        self.run: Callable[[Tensor, Tensor], Tensor] = layer.__call__

    def forward(self, hidden_states: Tensor, position_ids: Tensor, **_: Any) -> tuple[Tensor, None]:
        """Return `[1, T, D]` and no attention weights; mask, cache and cos/sin are not needed.

        Args:
            hidden_states: `[1, T, D]`, the rows of all requests one after the other.
            position_ids: `[1, T]` int64.

        Raises:
            InputError: more than one row of requests.
        """
        if hidden_states.size(0) != 1:
            raise InputError(
                f"HFAttention takes the tokens of all requests as one row [1, T, D], "
                f"got {list(hidden_states.shape)}; flatten the batch."
            )
        return self.run(position_ids[0], hidden_states[0]).unsqueeze(0), None


def replace_attention(
    model: nn.Module, *, options: LayerOptions | None = None
) -> list[MLAAttention]:
    """Replace every `self_attn` of a transformers DeepSeek model and return the new layers.

    They share the model's weights, and take their dtype and device from them. The same model may be
    given again, with other options.

    Args:
        model: a `DeepseekV2ForCausalLM` or `DeepseekV3ForCausalLM`.

    Raises:
        CheckpointError: a model, rope or size that is not supported.
    """
    shape = _Config(model.config).shape()
    if not isinstance(shape, MLAShape):
        raise CheckpointError(f"{type(model).__name__} has no MLA layers; give a DeepSeek model.")
    layers = []
    for name, decoder in [x for x in model.named_modules() if hasattr(x[1], "self_attn")]:
        old: Any = getattr(decoder.self_attn, "layer", decoder.self_attn)
        weight = old.o_proj.weight
        own = replace(options or LayerOptions(), dtype=weight.dtype, device=weight.device)
        layer = MLAAttention(shape, f"{name}.self_attn", own)
        layer.load_state_dict(old.state_dict(), assign=True)
        decoder.self_attn = HFAttention(layer)
        layers.append(layer)
    return layers


class _Config(HFConfig):
    """The configuration of a model in memory."""

    def __init__(self, config: Any) -> None:
        self.path, self.values = Path(type(config).__name__), config.to_dict()


@torch.no_grad()
def greedy(
    model: nn.Module,
    layers: Sequence[MLAAttention],
    prompts: Sequence[Sequence[int]],
    num_tokens: int,
    *,
    block_size: int = 16,
    chunk: int | None = None,
) -> list[list[int]]:
    """Return `num_tokens` new tokens for each prompt, the most likely one at a time.

    All prompts run together: who has read its prompt decodes, one token a step, beside the others'
    prefill. Every layer gets a new cache, in which the blocks of the requests alternate.

    Args:
        model, layers: a model whose attention was replaced, and what `replace_attention` returned.
        chunk: the most tokens of a prompt to prefill in one step; None reads it at once.

    Raises:
        InputError: an empty prompt, or a chunk of less than one token.
    """
    if not all(map(len, prompts)) or (chunk is not None and chunk < 1):
        raise InputError("Prompts and chunks must have at least one token each.")
    texts = [list(prompt) for prompt in prompts]
    longest = max(map(len, prompts), default=0) + num_tokens
    blocks_each = -(-longest // block_size)
    blocks = torch.arange(blocks_each * len(texts), dtype=torch.int32)
    table = blocks.view(blocks_each, len(texts)).T
    for layer in layers:
        layer.allocate_cache(blocks.numel(), block_size)
    done = [0] * len(texts)
    while running := [r for r, x in enumerate(prompts) if len(texts[r]) < len(x) + num_tokens]:
        decodes = [r for r in running if done[r] >= len(prompts[r])]
        running = decodes + [r for r in running if r not in decodes]
        new = [texts[r][done[r] :][:chunk] for r in running]
        metadata = BatchMetadata(
            query_lens=tuple(map(len, new)),
            context_lens=tuple(done[r] for r in running),
            num_decodes=len(decodes),
            block_table=table[running].to(layers[0].kv_cache.storage.device),
        )
        following = _step(model, layers, [x for part in new for x in part], metadata)
        for request, tokens, token in zip(running, new, following, strict=True):
            done[request] += len(tokens)
            if done[request] == len(texts[request]):
                texts[request].append(token)
    return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]


def _step(
    model: nn.Module, layers: Sequence[MLAAttention], tokens: list[int], metadata: BatchMetadata
) -> list[int]:
    """Run one batch and return the most likely token after the last of each request."""
    context = ForwardContext(
        layers={layer.layer_name: layer for layer in layers},
        metadata=metadata,
        slot_mapping=metadata.slot_mapping(layers[0].kv_cache.block_size),
    )
    positions = metadata.positions()[None]
    ids = torch.tensor([tokens], device=positions.device)
    with forward_context(context):
        logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    last = torch.tensor(metadata.query_lens).cumsum(0) - 1
    return [int(token) for token in logits[0, last].argmax(-1)]
