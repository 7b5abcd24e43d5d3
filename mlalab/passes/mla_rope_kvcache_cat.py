"""RoPE on q_pe and k_pe + latent cache write → one op (seed 003).

Before:  index → split → … → q_rot ─────────────────────────► copy → slice_scatter → attention
                          └→ … → k_rot ─► unified_mla_kv_cache_update(kv_c, k_rot) → attention
After:   auto_functionalized(fused_rope_unified_mla_kv_cache_update, q_pe, k_pe, kv_c, …)
             [0] dummy dependency · [1] rotated q_pe · [2] rotated k_pe

The copy into q and the slice_scatter stay; `FixFunctionalizationPass` folds them. A variant is a
form of RoPE as a graph can hold it: the custom op, or a native form × pairing × arithmetic, where
the dtypes of activation and table decide which conversions stand between.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.auto_functionalize import auto_functionalized

import mlalab.ops  # noqa: F401  registers torch.ops.mlalab before its ops are named below
from mlalab.passes.fusion import Fusion, Variant
from mlalab.rope import DeepseekScalingRotaryEmbedding, RotaryEmbedding

ops = torch.ops.mlalab
# Its stub promises two results whatever the op.
functionalized: Callable[..., Any] = auto_functionalized
Rope = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(positions, q_pe, k_pe_T1R, cos_sin_cache) → rotated q_pe and k_pe."""


def pattern_with(rope: Rope) -> Callable[..., Any]:
    """Return the pattern: `rope`, then the cache update with the rotated key."""

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
        dummy = ops.unified_mla_kv_cache_update(kv_c, k_rot, layer_name, kv_cache_dtype, k_scale)
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


def custom_rope(is_neox: bool) -> Rope:
    """Return RoPE as the in-place op leaves it in the graph."""

    def rope(positions: Tensor, q_pe: Tensor, k_pe: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        _, q_rot, k_rot = functionalized(
            ops.rotary_embedding.default,
            positions=positions,
            query=q_pe,
            key=k_pe,
            head_size=table.size(-1),
            cos_sin_cache=table,
            is_neox=is_neox,
        )
        return q_rot, k_rot

    return rope


def native_rope(cls: type[RotaryEmbedding], is_neox: bool, in_fp32: bool) -> Rope:
    """Return RoPE as the layer's own native form computes it."""

    def rope(positions: Tensor, q_pe: Tensor, k_pe: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        return cls.forward_static(positions, q_pe, k_pe, table, is_neox, in_fp32)

    return rope


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


_FORMS = {"deepseek_scaling": DeepseekScalingRotaryEmbedding, "plain": RotaryEmbedding}
_PAIRINGS = {"gptj": False, "neox": True}
_CONVERSIONS = {
    "half, fp32 table": (torch.bfloat16, torch.float32, True),
    "fp32": (torch.float32, torch.float32, True),
    "half, half table": (torch.bfloat16, torch.bfloat16, True),
    "rounding each step": (torch.bfloat16, torch.bfloat16, False),
    "rounding each step, fp32 table": (torch.bfloat16, torch.float32, False),
}
"""Which conversions the graph holds → example dtypes of activation and table, fp32 arithmetic."""


def _native_variants() -> list[Variant]:
    return [
        Variant(
            name=f"{form}/{pairing} ({conversion})",
            pattern=pattern_with(native_rope(_FORMS[form], _PAIRINGS[pairing], in_fp32)),
            replacement=replacement_with(_PAIRINGS[pairing], in_fp32),
            examples=examples_of(activation, table),
        )
        for (conversion, (activation, table, in_fp32)), form, pairing in itertools.product(
            _CONVERSIONS.items(), _FORMS, _PAIRINGS
        )
    ]


def _custom_variants() -> list[Variant]:
    return [
        Variant(
            name=f"custom op/{pairing}",
            pattern=pattern_with(custom_rope(is_neox)),
            replacement=replacement_with(is_neox, rope_in_fp32=True),
            examples=examples_of(torch.float32, torch.float32),
        )
        for pairing, is_neox in _PAIRINGS.items()
    ]


MLARoPEKVCacheCatFusionPass = Fusion(
    name="MLARoPEKVCacheCatFusionPass",
    note="RoPE on query and key and the latent cache write become one op.",
    flag="fuse_rope_kvcache_cat_mla",
    tensors=("positions", "q_pe", "k_pe", "kv_c", "cos_sin_cache", "k_scale"),
    wildcards=("layer_name", "kv_cache_dtype"),
    anchor=ops.unified_mla_kv_cache_update.default,
    variants=(*_custom_variants(), *_native_variants()),
)
