"""RoPE as a graph can hold it: what the patterns of every RoPE fusion are made of.

A form is the custom op, or a native form × pairing × arithmetic, where the dtypes of activation
and table decide which conversions stand between.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.auto_functionalize import auto_functionalized
from torch.fx.experimental.symbolic_shapes import statically_known_true

import mlalab.ops  # noqa: F401  registers torch.ops.mlalab before its ops are named below
from mlalab.errors import InputError
from mlalab.rope import RotaryEmbedding

ops = torch.ops.mlalab
# Its stub promises two results whatever the op.
functionalized: Callable[..., Any] = auto_functionalized
Rope = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(positions, query, key, cos_sin_cache) → rotated query and key."""
Examples = Callable[[], Sequence[Tensor]]


def custom_rope(is_neox: bool) -> Rope:
    """Return RoPE as the in-place op leaves it in the graph."""

    def rope(positions: Tensor, query: Tensor, key: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        _, q_rot, k_rot = functionalized(
            ops.rotary_embedding.default,
            positions=positions,
            query=query,
            key=key,
            head_size=table.size(-1),
            cos_sin_cache=table,
            is_neox=is_neox,
        )
        return q_rot, k_rot

    return rope


def native_rope(cls: type[RotaryEmbedding], is_neox: bool, in_fp32: bool) -> Rope:
    """Return RoPE as the layer's own native form computes it."""

    def rope(positions: Tensor, query: Tensor, key: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        return cls.forward_static(positions, query, key, table, is_neox, in_fp32)

    return rope


PAIRINGS = {"gptj": False, "neox": True}
_CONVERSIONS = {
    "half, fp32 table": (torch.bfloat16, torch.float32, True),
    "fp32": (torch.float32, torch.float32, True),
    "half, half table": (torch.bfloat16, torch.bfloat16, True),
    "rounding each step": (torch.bfloat16, torch.bfloat16, False),
    "rounding each step, fp32 table": (torch.bfloat16, torch.float32, False),
}
"""Which conversions the graph holds → example dtypes of activation and table, fp32 arithmetic."""


def forms(
    classes: Mapping[str, type[RotaryEmbedding]],
    examples_of: Callable[[torch.dtype, torch.dtype], Examples],
) -> Iterator[tuple[str, Rope, bool, bool, Examples]]:
    """Yield each form of RoPE: its name, itself, pairing, fp32 arithmetic and example tensors.

    Args:
        classes: the classes whose native form a graph may hold, by the name shown to the user.
        examples_of: makes example tensors from the dtypes of activation and table.
    """
    for pairing, is_neox in PAIRINGS.items():
        examples = examples_of(torch.float32, torch.float32)
        yield f"custom op/{pairing}", custom_rope(is_neox), is_neox, True, examples
    for conversion, form, pairing in itertools.product(_CONVERSIONS, classes, PAIRINGS):
        activation, table, in_fp32 = _CONVERSIONS[conversion]
        rope = native_rope(classes[form], PAIRINGS[pairing], in_fp32)
        name, examples = f"{form}/{pairing} ({conversion})", examples_of(activation, table)
        yield name, rope, PAIRINGS[pairing], in_fp32, examples


def check_contract(wanted: Mapping[str, Sequence[str | int]], tensors: Sequence[Tensor]) -> None:
    """Raise where plain RoPE would broadcast and a kernel would read out of bounds.

    Sizes must agree unless both are symbolic: the custom op does not tie the positions to the rest.

    Args:
        wanted: name of each tensor → the letters or numbers of its sizes.
    """
    sizes: dict[str | int, Any] = {1: 1}
    for letters, tensor in zip(wanted.values(), tensors, strict=True):
        same = len(letters) == tensor.dim() and not any(
            statically_known_true(sizes.setdefault(letter, size) != size)
            for letter, size in zip(letters, tensor.shape, strict=True)
        )
        if not same:
            takes = ", ".join(f"{name} [{', '.join(map(str, x))}]" for name, x in wanted.items())
            given = ", ".join(str(list(x.shape)) for x in tensors)
            raise InputError(f"the fused op takes {takes}, not {given}")
