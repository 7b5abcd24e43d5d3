"""RoPE and the latent cache write: what the fused op does, when it may be used, which form fires.

Each exercise asks for a function; the references below are what it is compared with. Letters are
those of `mlalab.shapes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from mlalab.layers.options import LayerOptions
from mlalab.rope import cos_sin_table
from mlalab.shapes import RopeKind, RopeSpec
from mlalab.teach import Case, Exercise, same_as
from mlalab_kernels.fused_rope_unified_mla_kv_cache_update.reference import (
    fused_rope_unified_mla_kv_cache_update,
)

N, R, L, SLOTS = 3, 6, 10, 8
HALF, FULL = torch.bfloat16, torch.float32
Reads = Mapping[str, tuple[str, ...]]
"""Node → the nodes that it reads."""


def update(
    positions: Tensor,
    q_pe: Tensor,
    k_pe: Tensor,
    kv_c: Tensor,
    table: Tensor,
    cache: Tensor,
    slots: Tensor,
) -> None:
    """Rotate `q_pe` and `k_pe` in place, neighbours paired, and write `[kv_c | k_pe]` by slot.

    Args:
        positions: `[T]` int64; q_pe: `[T, N, R]`; k_pe: `[T, R]`; kv_c: `[T, L]`.
        table: `[M, R]` fp32, cos half then sin half; cache: `[slots, L + R]`.
        slots: `[S]` int64, S <= T; a negative one writes nothing.
    """
    fused_rope_unified_mla_kv_cache_update(
        *(positions, q_pe, k_pe, kv_c, table, False, cache, slots), torch.ones(())
    )


def may_fuse(reads: Reads, returns_key: bool) -> bool:
    """Return whether `k_rot` and `update` may become one node.

    Args:
        reads: every node of a graph; what is no key of it is an input of the graph.
        returns_key: the fused op returns the rotated key, beside the dummy.
    """
    if "k_rot" not in reads["update"]:
        return False
    if any(_needs(reads, name, "k_rot") for name in reads["update"] if name != "k_rot"):
        return False
    readers = [name for name, inputs in reads.items() if "k_rot" in inputs]
    return returns_key or readers == ["update"]


def _needs(reads: Reads, node: str, wanted: str) -> bool:
    return node == wanted or any(_needs(reads, name, wanted) for name in reads.get(node, ()))


def variant(rope: RopeSpec, options: LayerOptions) -> str | None:
    """Return the name of the variant that matches such an MLA layer, or None where none does."""
    if rope.kind == "none":
        return None
    pairing = "neox" if rope.is_neox else "gptj"
    if options.rope_custom_op:
        return f"custom op/{pairing}"
    form = "deepseek_scaling" if rope.kind == "yarn" else "plain"
    wide_table = (options.rope_cache_dtype or options.dtype) == FULL
    if options.dtype == FULL:
        conversion = "fp32"
    elif options.rope_in_fp32:
        conversion = "half, fp32 table" if wide_table else "half, half table"
    else:
        conversion = "rounding each step" + (", fp32 table" if wide_table else "")
    return f"{form}/{pairing} ({conversion})"


def _table() -> Tensor:
    return cos_sin_table(RopeSpec(), R, 20)


def _rows(
    label: str,
    slots: list[int],
    tokens: int,
    dtype: torch.dtype = FULL,
    sliced: bool = False,
) -> Case:
    """One call of `update`; `sliced` takes its tensors out of wider ones, as the layer does."""
    margin = 4 if sliced else 0
    q_pe = torch.randn(tokens, N, margin + R).to(dtype)[..., margin:]
    latent = torch.randn(tokens, L + R).to(dtype)
    kv_c, k_pe = latent[:, :L], latent[:, L:]
    if not sliced:
        kv_c, k_pe = kv_c.clone(), k_pe.clone()
    cache = torch.randn(SLOTS, L + R + margin).to(dtype)[:, : L + R]
    positions = torch.randint(0, 20, (tokens,))
    return Case(label, (positions, q_pe, k_pe, kv_c, _table(), cache, torch.tensor(slots).long()))


_ROWS: list[Callable[[], Case]] = [
    partial(_rows, "1 token", [3], 1),
    partial(_rows, "5 tokens", [2, 7, 0, 5, 1], 5),
    partial(_rows, "0 tokens", [], 0),
    partial(_rows, "a slot of -1", [2, -1, 0], 3),
    partial(_rows, "nothing but slots of -1", [-1, -1, -1], 3),
    partial(_rows, "3 slots for 5 tokens", [6, -1, 4], 5),
    partial(_rows, "5 tokens and no slot", [], 5),
    partial(_rows, "q_pe as a slice of q, k_pe and kv_c of one latent", [1, 4, 6], 3, sliced=True),
    partial(_rows, "bfloat16, which has to be rounded once", [1, 5, 3, 0, 7], 5, HALF, sliced=True),
]

_LAYER = {"k_rot": ("k_pe", "table"), "update": ("kv_c", "k_rot")}
_GRAPHS: Mapping[str, Reads] = {
    "the layer of this notebook": {**_LAYER, "attention": ("q_rot", "k_rot", "update")},
    "nobody else reading the rotated key": {**_LAYER, "attention": ("q_rot", "update")},
    "a key that is scaled before it is cached": {
        **{"k_rot": ("k_pe", "table"), "scaled": ("k_rot",), "update": ("kv_c", "scaled")},
        "attention": ("q_rot", "update"),
    },
    "a reader that runs before the update": {
        **{"k_rot": ("k_pe", "table"), "statistics": ("k_rot",), "update": ("kv_c", "k_rot")},
        "attention": ("q_rot", "update"),
    },
    "a latent that needs the rotated key": {
        **{"k_rot": ("k_pe", "table"), "kv_c": ("latent", "k_rot"), "update": ("kv_c", "k_rot")},
        "attention": ("q_rot", "update"),
    },
    "a latent that needs the rotated key, by a detour": {
        **{"k_rot": ("k_pe", "table"), "mean": ("k_rot",), "gate": ("hidden", "mean")},
        **{"kv_c": ("latent", "gate"), "update": ("kv_c", "k_rot")},
        "attention": ("q_rot", "update"),
    },
    "a latent that needs the key before its rotation": {
        **{"kv_c": ("latent", "k_pe"), "k_rot": ("k_pe", "table"), "update": ("kv_c", "k_rot")},
        "attention": ("q_rot", "update"),
    },
    "a cache that gets the key as it was": {
        **{"k_rot": ("k_pe", "table"), "update": ("kv_c", "k_pe")},
        "attention": ("q_rot", "k_rot", "update"),
    },
}


def _graph(label: str, returns_key: bool) -> Case:
    op = "returns" if returns_key else "does not return"
    return Case(f"{label}, and an op that {op} the key", (dict(_GRAPHS[label]), returns_key))


def _layer(label: str, kind: RopeKind, is_neox: bool = False, **options: object) -> Case:
    return Case(label, (RopeSpec(kind=kind, is_neox=is_neox), LayerOptions(**options)))  # type: ignore[arg-type]


_LAYERS: list[Callable[[], Case]] = [
    partial(_layer, "DeepSeek's layer in bfloat16", "yarn", dtype=HALF),
    partial(_layer, "the same in float16", "yarn", dtype=torch.float16),
    partial(_layer, "the same in float32", "yarn", dtype=FULL),
    partial(_layer, "halves paired", "yarn", is_neox=True, dtype=HALF),
    partial(_layer, "plain RoPE", "default", dtype=HALF),
    partial(_layer, "plain RoPE, halves paired", "default", is_neox=True, dtype=HALF),
    partial(_layer, "the custom op", "yarn", dtype=HALF, rope_custom_op=True),
    partial(_layer, "the custom op in float32", "default", is_neox=True, rope_custom_op=True),
    partial(_layer, "a table like the layer", "yarn", dtype=HALF, rope_cache_dtype=None),
    partial(_layer, "arithmetic in bfloat16", "default", dtype=HALF, rope_in_fp32=False),
    partial(
        _layer,
        "arithmetic and table in bfloat16",
        "yarn",
        dtype=HALF,
        rope_in_fp32=False,
        rope_cache_dtype=None,
    ),
    partial(_layer, "float32, arithmetic in the layer's dtype", "yarn", rope_in_fp32=False),
    partial(_layer, "float32, a table like the layer", "default", rope_cache_dtype=None),
    partial(_layer, "no RoPE", "none", dtype=HALF),
]

EXERCISES = {
    "04.update": Exercise(
        same_as(update, _ROWS, rtol=1e-5, atol=1e-6),
        "Every row is rotated, and only rows with a slot are cached.",
    ),
    "04.may_fuse": Exercise(
        same_as(
            may_fuse,
            [partial(_graph, label, returns) for label in _GRAPHS for returns in (True, False)],
        ),
        "Whoever reads the rotated key must still get it, and nothing may wait for itself.",
    ),
    "04.variant": Exercise(
        same_as(variant, _LAYERS),
        "The graph decides, not the model's name: which conversions stand in it.",
    ),
}
"""The exercises on `notebooks/04_mla_rope_kv_cache_cat.ipynb`."""
