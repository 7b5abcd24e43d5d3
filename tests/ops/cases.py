"""Arguments for every op, as a layer passes them, and a context in which the ops can run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mlalab.context import ForwardContext, make_batch
from mlalab.layers.mla import MLAAttention, MLAOptions
from mlalab.shapes import preset

NAME = "model.layers.3.self_attn"
SHAPE = preset("tiny", num_heads=3)
AITER = "fused_aiter_qk_rope_kvcache_q_concat_quant_mla"
BLOCK_SIZE, NUM_BLOCKS = 16, 5
NUM_SLOTS = BLOCK_SIZE * NUM_BLOCKS
PATTERN = 0x55
"""Byte that fills a cache in which nothing has been written."""


def make_layer(**options: Any) -> MLAAttention:
    """Return a layer whose cache rows all hold PATTERN."""
    layer = MLAAttention(SHAPE, NAME, MLAOptions(**options))
    layer.allocate_cache(NUM_BLOCKS, BLOCK_SIZE)
    layer.kv_cache.storage_BKC.view(torch.uint8).fill_(PATTERN)
    layer.k_scale.fill_(0.37)
    return layer


def context_of(layer: MLAAttention, tokens: int, **changes: Any) -> ForwardContext:
    """Return a context in which `tokens` new tokens of one request are prefilled."""
    batch = make_batch([tokens], [0], num_decodes=0, block_size=BLOCK_SIZE)
    fields = {"metadata": batch, "slot_mapping": batch.slot_mapping(BLOCK_SIZE), **changes}
    return ForwardContext(layers={layer.layer_name: layer}, **fields)


def context_for(op: str, layer: MLAAttention, tokens: int) -> ForwardContext:
    """Return a context in which `op` has work to do: a prefill, or a decode for the op of those."""
    if op != "mla_attention_decode":
        return context_of(layer, tokens)
    batch = make_batch([tokens], [0], num_decodes=1, block_size=BLOCK_SIZE)
    return context_of(layer, tokens, metadata=batch)


def arguments_of(
    op: str, layer: MLAAttention, tokens: int, *, strided: bool = True, k_pe_2d: bool = False
) -> dict[str, Any]:
    """Return the arguments of `op` by name; strided ones are slices of wider tensors."""
    dtype, rope = layer.options.dtype, SHAPE.qk_rope_head_dim
    q = torch.randn(tokens, SHAPE.num_heads, SHAPE.qk_head_dim).to(dtype)
    latent = torch.randn(tokens, SHAPE.cache_dim).to(dtype)
    kv_c, k_pe = latent.split([SHAPE.kv_lora_rank, rope], dim=-1)
    q_pe = q[..., SHAPE.qk_nope_head_dim :]
    if not strided:
        kv_c, k_pe, q_pe = (x.contiguous() for x in (kv_c, k_pe, q_pe))
    k_pe_any = k_pe if k_pe_2d else k_pe.unsqueeze(1)
    positions = 1 + torch.randint(SHAPE.max_position_embeddings - 1, (tokens,))
    table = layer.rotary_emb.cos_sin_cache
    output = torch.full((tokens, SHAPE.num_heads * SHAPE.v_head_dim), torch.nan).to(dtype)
    given = {
        **{"q": q, "q_pe": q_pe, "kv_c": kv_c, "k_pe": k_pe, "positions": positions},
        **{"k_pe_any": k_pe_any, "table": table, "output": output},
    }
    return _by_op(layer, **given)[op]


def _by_op(
    layer: MLAAttention,
    *,
    q: Tensor,
    q_pe: Tensor,
    kv_c: Tensor,
    k_pe: Tensor,
    k_pe_any: Tensor,
    positions: Tensor,
    table: Tensor,
    output: Tensor,
) -> dict[str, dict[str, Any]]:
    rope, kv_cache_dtype = SHAPE.qk_rope_head_dim, layer.options.kv_cache_dtype
    every = {
        "rotary_embedding": {
            **{"positions": positions, "query": q_pe, "key": k_pe_any, "head_size": rope},
            **{"cos_sin_cache": table, "is_neox": False},
        },
        "unified_mla_kv_cache_update": {
            **{"kv_c": kv_c, "k_pe": k_pe_any, "layer_name": NAME},
            **{"kv_cache_dtype": kv_cache_dtype, "k_scale": layer.k_scale},
        },
        "unified_mla_attention_with_output": {
            **{"q": q, "kv_c": kv_c, "k_pe": k_pe_any, "output": output, "layer_name": NAME},
            "kv_cache_dummy_dep": kv_c.new_empty(0),
        },
        "fused_rope_unified_mla_kv_cache_update": {
            **{"positions": positions, "q_pe": q_pe, "k_pe": k_pe, "kv_c": kv_c},
            **{"cos_sin_cache": table, "is_neox": False, "kv_cache_dtype": kv_cache_dtype},
            **{"kv_cache_scale": layer.k_scale, "layer_name": NAME, "rope_in_fp32": True},
        },
    }
    every |= _by_exposed_op(layer, q, kv_c, k_pe_any)
    every["mla_decode_q_prep"] = {"q": q, "layer_name": NAME}
    every[AITER] = every[f"{AITER}.rotated"] = {
        **{"q_nope": q[..., : SHAPE.qk_nope_head_dim], "q_pe": q_pe, "k_pe": k_pe, "kv_c": kv_c},
        **{"positions": positions, "cos_sin_cache": table, "is_neox": False},
        **{"kv_cache_dtype": kv_cache_dtype, "k_scale": layer.k_scale, "layer_name": NAME},
    }
    return every


def _by_exposed_op(
    layer: MLAAttention, q: Tensor, kv_c: Tensor, k_pe: Tensor
) -> dict[str, dict[str, Any]]:
    prepared = q.new_zeros((*q.shape[:2], SHAPE.cache_dim)).to(layer.kv_cache.typed_dtype)
    return {
        "mla_split_batch": {"kv_c": kv_c, "layer_name": NAME},
        "mla_attention_decode": {"q": prepared, "layer_name": NAME},
        "mla_attention_prefill": {"q": q, "kv_c": kv_c, "k_pe": k_pe, "layer_name": NAME},
    }


def bits(x: Tensor) -> Tensor:
    """Return the bytes of a tensor, so that NaN equals NaN and -0 differs from 0."""
    return torch.atleast_1d(x).contiguous().view(torch.uint8)
