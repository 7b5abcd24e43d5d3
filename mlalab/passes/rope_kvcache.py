"""RoPE on query and key of ordinary attention + KV-cache update → one op (from vLLM).

Before:  index → split → … → q_rot ───────────────────────────────────► attention
                          └→ … → k_rot ─► unified_kv_cache_update(k_rot, value) → attention
After:   auto_functionalized(fused_rope_and_unified_kv_cache_update, query, key, value, …)
             [0] dummy dependency · [1] rotated query · [2] rotated key

The custom rotary op takes query and key flat, heads side by side, and the views as heads come after
it; every other form rotates heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mlalab.passes.fusion import Fusion, Variant
from mlalab.passes.rope_forms import Rope, check_contract, forms, functionalized, ops
from mlalab.rope import RotaryEmbedding

_CONTRACT: Mapping[str, Sequence[str | int]] = {
    **{"positions": ("T",), "query": ("T", "N", "H"), "key": ("T", "G", "H")},
    **{"value": ("T", "G", "H"), "cos_sin_cache": ("M", "H")},
}


def pattern_with(rope: Rope, flat: bool = False) -> Callable[..., Any]:
    """Return the pattern: `rope`, then the cache update with the rotated key.

    Query and key are `[T, heads, H]` or, with `flat`, `[T, heads · H]`; the value is as heads.
    """

    def pattern(
        positions: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cos_sin_cache: Tensor,
        *,
        layer_name: str,
    ) -> tuple[Tensor, ...]:
        q_rot, k_rot = rope(positions, query, key, cos_sin_cache)
        heads = k_rot.view(-1, *value.shape[1:]) if flat else k_rot
        dummy = ops.unified_kv_cache_update(heads, value, layer_name)
        # The matcher explores from the first output only, so the cache update must be it.
        return dummy, q_rot, k_rot

    return pattern


def replacement_with(is_neox: bool, rope_in_fp32: bool, flat: bool = False) -> Callable[..., Any]:
    """Return the replacement: the fused op, functionalised as AOTAutograd would."""

    def replacement(
        positions: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cos_sin_cache: Tensor,
        *,
        layer_name: str,
    ) -> tuple[Tensor, ...]:
        if flat:
            query, key = (x.unflatten(-1, (-1, value.size(-1))) for x in (query, key))
        check_contract(_CONTRACT, (positions, query, key, value, cos_sin_cache))
        dummy, q_rot, k_rot = functionalized(
            ops.fused_rope_and_unified_kv_cache_update.default,
            query=query,
            key=key,
            value=value,
            positions=positions,
            cos_sin_cache=cos_sin_cache,
            is_neox=is_neox,
            layer_name=layer_name,
            rope_in_fp32=rope_in_fp32,
        )
        return (dummy, q_rot.flatten(1), k_rot.flatten(1)) if flat else (dummy, q_rot, k_rot)

    return replacement


def examples_of(activation: torch.dtype, table: torch.dtype) -> Callable[[], Sequence[Tensor]]:
    """Return a maker of example tensors; sizes are arbitrary, distinct and larger than one."""

    def examples() -> Sequence[Tensor]:
        return (
            torch.empty(5, dtype=torch.int64),
            torch.empty(5, 6, 8, dtype=activation),
            torch.empty(5, 3, 8, dtype=activation),
            torch.empty(5, 3, 8, dtype=activation),
            torch.empty(7, 8, dtype=table),
        )

    return examples


def flat_examples_of(activation: torch.dtype, table: torch.dtype) -> Callable[[], Sequence[Tensor]]:
    """Return the same, query and key flat."""

    def examples() -> Sequence[Tensor]:
        positions, query, key, *rest = examples_of(activation, table)()
        return (positions, query.flatten(1), key.flatten(1), *rest)

    return examples


def _variants(flat: bool) -> list[Variant]:
    made = forms(
        {} if flat else {"plain": RotaryEmbedding}, flat_examples_of if flat else examples_of
    )
    return [
        Variant(
            name=f"{name}, flat" if flat else name,
            pattern=pattern_with(rope, flat),
            replacement=replacement_with(is_neox, in_fp32, flat),
            examples=examples,
        )
        for name, rope, is_neox, in_fp32, examples in made
    ]


RopeKVCacheFusionPass = Fusion(
    name="RopeKVCacheFusionPass",
    note="RoPE on query and key and the key/value cache write become one op.",
    flags=("fuse_rope_kvcache",),
    max_tokens="rope_kvcache_fusion_max_token_num",
    after=("ScatterSplitReplacementPass",),
    serves="gqa",
    tensors=("positions", "query", "key", "value", "cos_sin_cache"),
    wildcards=("layer_name",),
    anchor=ops.unified_kv_cache_update.default,
    variants=(*_variants(flat=True), *_variants(flat=False)),
)
