"""RoPE on q_pe and k_pe + latent cache write → one op (vLLM #40392).

Before:  index → split → … → q_rot ─────────────────────────► copy → slice_scatter → attention
                          └→ … → k_rot ─► unified_mla_kv_cache_update(kv_c, k_rot) → attention
After:   auto_functionalized(fused_rope_unified_mla_kv_cache_update, q_pe, k_pe, kv_c, …)
             [0] dummy dependency · [1] rotated q_pe · [2] rotated k_pe

The copy into q and the slice_scatter stay; `FixFunctionalizationPass` folds them. A variant is a
form of RoPE as a graph can hold it: the custom op, or a native form × pairing × arithmetic, where
the dtypes of activation and table decide which conversions stand between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mlalab.passes.fusion import Fusion, Variant
from mlalab.passes.rope_forms import Rope, check_contract, forms, functionalized, ops
from mlalab.rope import DeepseekScalingRotaryEmbedding, RotaryEmbedding

_CONTRACT: Mapping[str, Sequence[str | int]] = {
    **{"positions": ("T",), "q_pe": ("T", "N", "R"), "k_pe": ("T", 1, "R")},
    **{"kv_c": ("T", "L"), "cos_sin_cache": ("M", "R")},
}
_CLASSES = {"deepseek_scaling": DeepseekScalingRotaryEmbedding, "plain": RotaryEmbedding}


def pattern_with(rope: Rope, flat_key: bool = False) -> Callable[..., Any]:
    """Return the pattern: `rope`, then the cache update with the rotated key.

    The update takes the key as `[T, 1, R]` or, with `flat_key`, squeezed to `[T, R]`.
    """

    def pattern(
        positions: Tensor,
        q_pe: Tensor,
        k_pe: Tensor,
        kv_c: Tensor,
        cos_sin_cache: Tensor,
        k_scale: Tensor,
        *,
        layer_name: str,
        kv_cache_dtype: str,
    ) -> tuple[Tensor, ...]:
        q_rot, k_rot = rope(positions, q_pe, k_pe, cos_sin_cache)
        key = k_rot.squeeze(1) if flat_key else k_rot
        dummy = ops.unified_mla_kv_cache_update(kv_c, key, layer_name, kv_cache_dtype, k_scale)
        # The matcher explores from the first output only, so the cache update must be it.
        return dummy, q_rot, k_rot

    return pattern


def replacement_with(is_neox: bool, rope_in_fp32: bool) -> Callable[..., Any]:
    """Return the replacement: the fused op, functionalised as AOTAutograd would."""

    def replacement(
        positions: Tensor,
        q_pe: Tensor,
        k_pe: Tensor,
        kv_c: Tensor,
        cos_sin_cache: Tensor,
        k_scale: Tensor,
        *,
        layer_name: str,
        kv_cache_dtype: str,
    ) -> tuple[Tensor, ...]:
        check_contract(_CONTRACT, (positions, q_pe, k_pe, kv_c, cos_sin_cache))
        dummy, q_rot, k_rot = functionalized(
            ops.fused_rope_unified_mla_kv_cache_update.default,
            positions=positions,
            q_pe=q_pe,
            k_pe=k_pe.squeeze(1),
            kv_c=kv_c,
            cos_sin_cache=cos_sin_cache,
            is_neox=is_neox,
            kv_cache_dtype=kv_cache_dtype,
            kv_cache_scale=k_scale,
            layer_name=layer_name,
            rope_in_fp32=rope_in_fp32,
        )
        return dummy, q_rot, k_rot.unsqueeze(1)

    return replacement


def examples_of(activation: torch.dtype, table: torch.dtype) -> Callable[[], Sequence[Tensor]]:
    """Return a maker of example tensors; sizes are arbitrary, distinct and larger than one."""

    def examples() -> Sequence[Tensor]:
        return (
            torch.empty(5, dtype=torch.int64),
            torch.empty(5, 3, 8, dtype=activation),
            torch.empty(5, 1, 8, dtype=activation),
            torch.empty(5, 16, dtype=activation),
            torch.empty(7, 8, dtype=table),
            torch.empty((), dtype=torch.float32),
        )

    return examples


def _variants(flat_key: bool) -> list[Variant]:
    return [
        Variant(
            name=f"{name}, 2-D key" if flat_key else name,
            pattern=pattern_with(rope, flat_key),
            replacement=replacement_with(is_neox, in_fp32),
            examples=examples,
        )
        for name, rope, is_neox, in_fp32, examples in forms(_CLASSES, examples_of)
    ]


MLARoPEKVCacheCatFusionPass = Fusion(
    name="MLARoPEKVCacheCatFusionPass",
    note="RoPE on query and key and the latent cache write become one op.",
    flags=("fuse_rope_kvcache_cat_mla",),
    serves="mla",
    tensors=("positions", "q_pe", "k_pe", "kv_c", "cos_sin_cache", "k_scale"),
    wildcards=("layer_name", "kv_cache_dtype"),
    anchor=ops.unified_mla_kv_cache_update.default,
    variants=(*_variants(flat_key=False), *_variants(flat_key=True)),
)
