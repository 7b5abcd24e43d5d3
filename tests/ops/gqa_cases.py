"""The same as `cases`, for the ops of ordinary attention."""

from __future__ import annotations

from typing import Any

import torch

from mlalab.layers.gqa import GQAAttention
from mlalab.layers.options import LayerOptions
from mlalab.shapes import preset
from tests.ops.cases import BLOCK_SIZE, NAME, NUM_BLOCKS, PATTERN

SHAPE = preset("tiny-gqa")
SIZES = [SHAPE.q_size, SHAPE.kv_size, SHAPE.kv_size]


def make_layer(**options: Any) -> GQAAttention:
    """Return a layer whose cache rows all hold PATTERN."""
    layer = GQAAttention(SHAPE, NAME, LayerOptions(**options))
    layer.allocate_cache(NUM_BLOCKS, BLOCK_SIZE)
    layer.kv_cache.storage.view(torch.uint8).fill_(PATTERN)
    layer.k_scale.fill_(0.37)
    layer.v_scale.fill_(0.53)
    return layer


def arguments_of(
    op: str, layer: GQAAttention, tokens: int, *, strided: bool = True, **_: Any
) -> dict[str, Any]:
    """Return the arguments of `op` by name; strided ones are slices of one projection."""
    dtype = layer.options.dtype
    heads = torch.randn(tokens, sum(SIZES)).to(dtype).split(SIZES, dim=-1)
    query, key, value = (x.unflatten(-1, (-1, SHAPE.head_dim)) for x in heads)
    if not strided:
        query, key, value = (x.contiguous() for x in (query, key, value))
    positions = 1 + torch.randint(SHAPE.max_position_embeddings - 1, (tokens,))
    output = torch.full((tokens, SHAPE.q_size), torch.nan).to(dtype)
    every = {
        "unified_kv_cache_update": {"key": key, "value": value, "layer_name": NAME},
        "unified_attention_with_output": {
            **{"query": query, "key": key, "value": value, "output": output, "layer_name": NAME},
            "kv_cache_dummy_dep": key.new_empty(0),
        },
        "fused_rope_and_unified_kv_cache_update": {
            **{"query": query, "key": key, "value": value, "positions": positions},
            **{"cos_sin_cache": layer.rotary_emb.cos_sin_cache, "is_neox": True},
            **{"layer_name": NAME, "rope_in_fp32": True},
        },
    }
    return every[op]
