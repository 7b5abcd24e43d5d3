"""What the ops of an exposed MLA layer do: the split, and attention of either side of it.

Decode rows come first. Where they end is known when a batch is run, not when a graph is traced, so
the split is an op whose result is a size of its own, about which tracing assumes nothing but its
bounds. Both sides may be empty, so one graph serves decode, prefill, mixed and empty batches.
INVARIANT 1 holds here too: as many rows come out as go in.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mlalab.context import current_context
from mlalab.ops.exposed import inlined


def mla_split_batch(kv_c: Tensor, layer_name: str) -> int:
    """Return how many of the batch's first rows decode; 0 in a profile run.

    Args:
        kv_c: `[T, L]`; only its rows count.

    Raises:
        InputError: metadata of another batch.
    """
    rows: int = inlined(current_context().layer(layer_name), "split_batch")(kv_c)
    return rows


def mla_split_batch_fake(kv_c: Tensor, layer_name: str) -> int:
    """Return a size of its own, between 0 and the rows of the batch."""
    rows: Any = torch.library.get_ctx().new_dynamic_size()
    torch._check(rows >= 0)
    torch._check(rows <= kv_c.size(0))
    _expect_half(rows, kv_c.size(0))
    return rows


def _expect_half(rows: Any, total: Any) -> None:
    """Let Inductor plan for a batch of which half decodes; by itself it assumes 8192 rows do."""
    hints = rows.node.shape_env.var_to_hint_override
    known = total if isinstance(total, int) else hints.get(total.node.expr)
    half = (known or torch._inductor.config.unbacked_symint_fallback) // 2
    if half:  # torch 2.11 divides by it
        hints[rows.node.expr] = half


def mla_attention_decode(
    q: Tensor, layer_name: str, kv_cache_dummy_dep: Tensor | None = None
) -> Tensor:
    """Return the latent that decode rows attend to, `[n, N, L]` in the layer's dtype.

    Args:
        q: `[n, N, L + R]`, as `mla_decode_q_prep` returns it, of the decode rows.

    Raises:
        InputError: n is not what the batch's metadata says.
    """
    return inlined(current_context().layer(layer_name), "attend_decode")(q)


def mla_attention_decode_fake(
    q: Tensor, layer_name: str, kv_cache_dummy_dep: Tensor | None = None
) -> Tensor:
    """Return a latent for each row and head."""
    layer = current_context().layer(layer_name)
    shape = (*q.shape[:2], layer.shape.kv_lora_rank)
    return q.new_empty(shape, dtype=layer.kv_b_proj.weight.dtype)


def mla_attention_prefill(
    q: Tensor | None,
    kv_c: Tensor,
    k_pe: Tensor | None,
    layer_name: str,
    kv_cache_dummy_dep: Tensor | None = None,
) -> Tensor:
    """Return attention of the rows after the split, `[m, N, V]`; zeros for padding.

    Args:
        q: `[m, N, P + R]`, rotated; None in a graph for uniform decode batches only.
        kv_c: `[m, L]`; k_pe: `[m, 1, R]`, rotated, or None as `q`.

    Raises:
        InputError: fewer rows than the metadata names, or a request without `q` or `k_pe`.
    """
    layer = current_context().layer(layer_name)
    return inlined(layer, "attend_prefill")(q, kv_c, k_pe)


def mla_attention_prefill_fake(
    q: Tensor | None,
    kv_c: Tensor,
    k_pe: Tensor | None,
    layer_name: str,
    kv_cache_dummy_dep: Tensor | None = None,
) -> Tensor:
    """Return a value for each row and head."""
    shape = current_context().layer(layer_name).shape
    return kv_c.new_empty((kv_c.size(0), shape.num_heads, shape.v_head_dim))
