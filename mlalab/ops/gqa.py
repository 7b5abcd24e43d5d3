"""What the ops of ordinary attention do when a graph runs, and their results while it is traced.

As in `mlalab.ops.mla` the cache is found by layer name, and an op that writes it returns the dummy
dependency: empty, the key's dtype and device, whatever the cache holds.
"""

from __future__ import annotations

from torch import Tensor

from mlalab.context import ForwardContext, current_context
from mlalab.errors import InputError
from mlalab.kernels import pick
from mlalab.ops.checks import check_positions, check_rows, check_slots


def unified_kv_cache_update(key: Tensor, value: Tensor, layer_name: str) -> Tensor:
    """Write keys and values into the layer's cache; returns the dummy dependency.

    Args:
        key: `[T, G, H]`, rotated; value: `[T, G, H]`.
    """
    context = current_context()
    if context.slot_mapping is not None:
        kernel = pick("unified_kv_cache_update", key.device)
        kernel(key, value, *_cache_and_scales(context, layer_name, key.size(0)))
    return key.new_empty(0)


def unified_kv_cache_update_fake(key: Tensor, value: Tensor, layer_name: str) -> Tensor:
    """Return the dummy dependency: empty, key's dtype and device."""
    return key.new_empty(0)


def unified_attention_with_output(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    layer_name: str,
    kv_cache_dummy_dep: Tensor | None = None,
) -> None:
    """Attend to the cached keys and values, new ones included, into `output`.

    Rows that belong to no request (padding), and all rows of a profile run, become zero.

    Args:
        query: `[T, N, H]`, rotated.
        key, value: `[T, G, H]`, in the cache already.
        output: `[T, N · H]`, written in place.
    """
    context = current_context()
    if context.metadata is None:
        output.zero_()
        return
    used = context.metadata.num_tokens
    check_rows(used, query.size(0), layer_name)
    attended = context.layer(layer_name, "gqa").attend(query[:used], context.metadata)
    output[:used].copy_(attended.flatten(1))
    output[used:].zero_()


def unified_attention_with_output_fake(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    layer_name: str,
    kv_cache_dummy_dep: Tensor | None = None,
) -> None:
    """Write in place only: no result."""


def fused_rope_and_unified_kv_cache_update(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    cos_sin_cache: Tensor,
    is_neox: bool,
    layer_name: str = "",
    rope_in_fp32: bool = True,
) -> Tensor:
    """Rotate `query` and `key` in place and write the cache; returns the dummy dependency.

    Args:
        query: `[T, N, H]`, written; key: `[T, G, H]`, written; value: `[T, G, H]`.
        positions: `[T]` int64.
        cos_sin_cache: `[M, R]`, R = H.
    """
    # Everything is checked before anything is written.
    if query.dim() != 3 or key.dim() != 3:
        raise InputError(
            f"query must be [T, N, H] and key [T, G, H], got {list(query.shape)} and "
            f"{list(key.shape)}; view them as heads."
        )
    context = current_context()
    target = _cache_and_scales(context, layer_name, key.size(0))
    if context.checked:
        check_positions(positions, cos_sin_cache.size(0))
    pick("fused_rope_and_unified_kv_cache_update", key.device)(
        *(query, key, value, positions, cos_sin_cache, is_neox, *target, rope_in_fp32)
    )
    return key.new_empty(0)


def fused_rope_and_unified_kv_cache_update_fake(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    cos_sin_cache: Tensor,
    is_neox: bool,
    layer_name: str = "",
    rope_in_fp32: bool = True,
) -> Tensor:
    """Return the dummy dependency: empty, key's dtype and device."""
    return key.new_empty(0)


def _cache_and_scales(
    context: ForwardContext, layer_name: str, num_tokens: int
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
    """Return the layer's cache, the slots to write, and the scales of keys and of values.

    A profile run has no slots and needs no cache.
    """
    layer, slots = context.layer(layer_name, "gqa"), context.slot_mapping
    if slots is None:
        return None, None, layer.k_scale, layer.v_scale
    check_slots(context, layer.kv_cache, num_tokens)
    return layer.kv_cache.typed, slots, layer.k_scale, layer.v_scale
