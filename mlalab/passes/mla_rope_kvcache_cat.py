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
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.auto_functionalize import auto_functionalized
from torch.fx.experimental.symbolic_shapes import statically_known_true

import mlalab.ops  # noqa: F401  registers torch.ops.mlalab before its ops are named below
from mlalab.errors import InputError
from mlalab.passes.fusion import Fusion, Variant
from mlalab.rope import DeepseekScalingRotaryEmbedding, RotaryEmbedding

ops = torch.ops.mlalab
# Its stub promises two results whatever the op.
functionalized: Callable[..., Any] = auto_functionalized
Rope = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(positions, q_pe, k_pe_T1R, cos_sin_cache) → rotated q_pe and k_pe."""


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
        _check_contract(positions, q_pe, k_pe, kv_c, cos_sin_cache)
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


def _check_contract(
    positions: Tensor, q_pe: Tensor, k_pe: Tensor, kv_c: Tensor, cos_sin_cache: Tensor
) -> None:
    """Raise where plain RoPE would broadcast and a kernel would read out of bounds.

    Sizes must agree unless both are symbolic: the custom op does not tie the positions to the rest.
    """
    wanted = (("T",), ("T", "N", "R"), ("T", 1, "R"), ("T", "L"), ("M", "R"))
    shapes = [tuple(x.shape) for x in (positions, q_pe, k_pe, kv_c, cos_sin_cache)]
    sizes: dict[str | int, Any] = {1: 1}
    for letters, shape in zip(wanted, shapes, strict=True):
        same = len(letters) == len(shape) and not any(
            statically_known_true(sizes.setdefault(letter, size) != size)
            for letter, size in zip(letters, shape, strict=True)
        )
        if not same:
            raise InputError(
                f"the fused op takes positions [T], q_pe [T, N, R], k_pe [T, 1, R], kv_c [T, L] "
                f"and a table [M, R], not {', '.join(str(list(shape)) for shape in shapes)}"
            )


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


def _forms() -> Iterator[tuple[str, Rope, bool, bool, Callable[[], Sequence[Tensor]]]]:
    """Yield each form of RoPE: its name, itself, pairing, fp32 arithmetic and example tensors."""
    for pairing, is_neox in _PAIRINGS.items():
        examples = examples_of(torch.float32, torch.float32)
        yield f"custom op/{pairing}", custom_rope(is_neox), is_neox, True, examples
    for conversion, form, pairing in itertools.product(_CONVERSIONS, _FORMS, _PAIRINGS):
        activation, table, in_fp32 = _CONVERSIONS[conversion]
        rope = native_rope(_FORMS[form], _PAIRINGS[pairing], in_fp32)
        name, examples = f"{form}/{pairing} ({conversion})", examples_of(activation, table)
        yield name, rope, _PAIRINGS[pairing], in_fp32, examples


def _variants(flat_key: bool) -> list[Variant]:
    return [
        Variant(
            name=f"{name}, 2-D key" if flat_key else name,
            pattern=pattern_with(rope, flat_key),
            replacement=replacement_with(is_neox, in_fp32),
            examples=examples,
        )
        for name, rope, is_neox, in_fp32, examples in _forms()
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
