"""What the MLA ops do when a graph runs, and what their results look like while it is traced.

The paged cache is fetched from the forward context by layer name, so writing it is invisible to
the graph. An op that writes it returns an empty tensor, the dummy dependency, which attention
takes as `kv_cache_dummy_dep`: without that edge nothing would keep the write, or order it.
"""

from __future__ import annotations

from torch import Tensor

from mlalab.cache import PagedLatentCache
from mlalab.context import ForwardContext, current_context, optional_context
from mlalab.errors import InputError
from mlalab.kernels import pick
from mlalab.ops.checks import check_positions, check_query, check_slots


def rotary_embedding(
    positions: Tensor,
    query: Tensor,
    key: Tensor | None,
    head_size: int,
    cos_sin_cache: Tensor,
    is_neox: bool,
) -> None:
    """Rotate query and key in place; see the kernel's reference for shapes."""
    context = optional_context()
    if context is not None and context.checked:
        check_positions(positions, cos_sin_cache.size(0))
    kernel = pick("rotary_embedding", query.device)
    kernel(positions, query, key, head_size, cos_sin_cache, is_neox)


def rotary_embedding_fake(
    positions: Tensor,
    query: Tensor,
    key: Tensor | None,
    head_size: int,
    cos_sin_cache: Tensor,
    is_neox: bool,
) -> None:
    """Write in place only: no result."""


def unified_mla_kv_cache_update(
    kv_c: Tensor, k_pe: Tensor, layer_name: str, kv_cache_dtype: str, k_scale: Tensor
) -> Tensor:
    """Write `[kv_c | k_pe]` rows into the layer's cache; returns the dummy dependency.

    Args:
        kv_c: `[T, L]` normalised latent.
        k_pe: `[T, 1, R]` or `[T, R]`, rotated.
        k_scale: fp32, one element.
    """
    context = current_context()
    if context.slot_mapping is not None:
        cache = cache_of(context, layer_name, kv_cache_dtype, kv_c.size(0))
        kernel = pick("unified_mla_kv_cache_update", kv_c.device)
        kernel(kv_c, k_pe, cache.rows_SC, context.slot_mapping, k_scale)
    return kv_c.new_empty(0)


def unified_mla_kv_cache_update_fake(
    kv_c: Tensor, k_pe: Tensor, layer_name: str, kv_cache_dtype: str, k_scale: Tensor
) -> Tensor:
    """Return the dummy dependency: empty, kv_c's dtype and device."""
    return kv_c.new_empty(0)


def unified_mla_attention_with_output(
    q: Tensor | None,
    kv_c: Tensor,
    k_pe: Tensor | None,
    output: Tensor,
    layer_name: str,
    kv_cache_dummy_dep: Tensor | None = None,
    q_prepped: Tensor | None = None,
) -> None:
    """Attend, prefill rows as MHA and decode rows as absorbed MQA, into `output`.

    Rows that belong to no request (padding), and all rows of a profile run, become zero.

    Args:
        q: `[T, N, P + R]`, rotated; None in a graph for uniform decode batches only.
        kv_c: `[T, L]`; k_pe: `[T, 1, R]`, rotated, or None as `q`.
        output: `[T, N · V]`, written in place.
        q_prepped: `[T, N, L + R]`, what `mla_decode_q_prep` returns: decode rows attend with it.

    Raises:
        InputError: metadata of another batch, or a prefill request without `q` or `k_pe`.
    """
    context = current_context()
    if context.metadata is None:
        output.zero_()
        return
    check_query(q, k_pe, q_prepped is None, layer_name)
    start = 0
    for part in context.layer(layer_name).attend(q, kv_c, k_pe, q_prepped):
        output[start : start + part.size(0)].copy_(part.flatten(1))
        start += part.size(0)


def unified_mla_attention_with_output_fake(
    q: Tensor | None,
    kv_c: Tensor,
    k_pe: Tensor | None,
    output: Tensor,
    layer_name: str,
    kv_cache_dummy_dep: Tensor | None = None,
    q_prepped: Tensor | None = None,
) -> None:
    """Write in place only: no result."""


def fused_rope_unified_mla_kv_cache_update(
    positions: Tensor,
    q_pe: Tensor,
    k_pe: Tensor,
    kv_c: Tensor,
    cos_sin_cache: Tensor,
    is_neox: bool,
    kv_cache_dtype: str,
    kv_cache_scale: Tensor,
    layer_name: str,
    rope_in_fp32: bool = True,
) -> Tensor:
    """Rotate `q_pe` and `k_pe` in place and write the cache; returns the dummy dependency.

    Unlike vLLM's op it rotates every row even in a profile run (no slot mapping).

    Args:
        positions: `[T]` int64.
        q_pe: `[T, N, R]`, written; k_pe: `[T, R]`, written.
        kv_c: `[T, L]` normalised latent.
        cos_sin_cache: `[M, R]`.
        kv_cache_scale: fp32, one element.
    """
    # Everything is checked before anything is written.
    if q_pe.dim() != 3 or k_pe.dim() != 2:
        raise InputError(
            f"q_pe must be [T, N, R] and k_pe [T, R], got {list(q_pe.shape)} and "
            f"{list(k_pe.shape)}; squeeze k_pe's head dimension."
        )
    context = current_context()
    rows = None
    if context.slot_mapping is not None:
        rows = cache_of(context, layer_name, kv_cache_dtype, kv_c.size(0)).rows_SC
    if context.checked:
        check_positions(positions, cos_sin_cache.size(0))
    pick("fused_rope_unified_mla_kv_cache_update", q_pe.device)(
        *(positions, q_pe, k_pe, kv_c, cos_sin_cache, is_neox),
        *(rows, context.slot_mapping, kv_cache_scale, rope_in_fp32),
    )
    return kv_c.new_empty(0)


def fused_rope_unified_mla_kv_cache_update_fake(
    positions: Tensor,
    q_pe: Tensor,
    k_pe: Tensor,
    kv_c: Tensor,
    cos_sin_cache: Tensor,
    is_neox: bool,
    kv_cache_dtype: str,
    kv_cache_scale: Tensor,
    layer_name: str,
    rope_in_fp32: bool = True,
) -> Tensor:
    """Return the dummy dependency: empty, kv_c's dtype and device."""
    return kv_c.new_empty(0)


def cache_of(
    context: ForwardContext, layer_name: str, kv_cache_dtype: str, num_tokens: int
) -> PagedLatentCache:
    """Return the layer's cache, once it is known that this step may write it."""
    cache: PagedLatentCache = context.layer(layer_name).kv_cache
    if kv_cache_dtype != cache.kv_cache_dtype:
        raise InputError(
            f"Layer {layer_name!r} has a cache of kv_cache_dtype {cache.kv_cache_dtype!r}, the op "
            f"was called with {kv_cache_dtype!r}."
        )
    check_slots(context, cache, num_tokens)
    return cache
