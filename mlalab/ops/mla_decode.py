"""What the decode query's ops do: prepared alone, or together with RoPE and the cache write.

INVARIANT 1: as many rows come out as go in, for every token count, whatever the batch metadata
says. A compiled graph allocates by what the fake promises.
"""

from __future__ import annotations

from torch import Tensor

from mlalab.context import current_context
from mlalab.errors import InputError
from mlalab.kernels import pick
from mlalab.ops.checks import check_positions
from mlalab.ops.mla import cache_of


def mla_decode_q_prep(q: Tensor, layer_name: str) -> Tensor:
    """Return the decode query `[q_nope · W_UK | q_pe]`, `[T, N, L + R]` contiguous.

    Its dtype is that of the layer's cache: FP8 exactly when that is.

    Args:
        q: `[T, N, P + R]`, rotated.
    """
    return current_context().layer(layer_name).prepare_decode_query(q)


def mla_decode_q_prep_fake(q: Tensor, layer_name: str) -> Tensor:
    """Return what the layer makes of so many rows and heads."""
    return _empty_query(q, layer_name)


def fused_aiter_qk_rope_kvcache_q_concat_quant_mla(
    q_nope: Tensor,
    q_pe: Tensor,
    k_pe: Tensor,
    kv_c: Tensor,
    positions: Tensor,
    cos_sin_cache: Tensor,
    is_neox: bool,
    kv_cache_dtype: str,
    k_scale: Tensor,
    layer_name: str,
    rope_in_fp32: bool = True,
) -> Tensor:
    """Prepare the decode query and write the cache; no argument is written.

    All rows are prepared, in a profile run too; the cache is written where slots are given.

    Args:
        q_nope: `[T, N, P]`; q_pe: `[T, N, R]`, not rotated.
        k_pe: `[T, R]`, not rotated; kv_c: `[T, L]` normalised latent.
        positions: `[T]` int64.
        cos_sin_cache: `[M, R]`.
        k_scale: fp32, one element.

    Returns:
        `[T, N, L + R]` contiguous, in the dtype that `mla_decode_q_prep` gives.
    """
    return _fused(
        *(q_nope, q_pe, k_pe, kv_c, positions, cos_sin_cache, is_neox, kv_cache_dtype, k_scale),
        *(layer_name, rope_in_fp32),
    )


def fused_aiter_qk_rope_kvcache_q_concat_quant_mla_fake(
    q_nope: Tensor,
    q_pe: Tensor,
    k_pe: Tensor,
    kv_c: Tensor,
    positions: Tensor,
    cos_sin_cache: Tensor,
    is_neox: bool,
    kv_cache_dtype: str,
    k_scale: Tensor,
    layer_name: str,
    rope_in_fp32: bool = True,
) -> Tensor:
    """Return what the layer makes of so many rows and heads."""
    return _empty_query(q_nope, layer_name)


def fused_aiter_qk_rope_kvcache_q_concat_quant_mla_rotated(
    q_nope: Tensor,
    q_pe: Tensor,
    k_pe: Tensor,
    kv_c: Tensor,
    positions: Tensor,
    cos_sin_cache: Tensor,
    is_neox: bool,
    kv_cache_dtype: str,
    k_scale: Tensor,
    layer_name: str,
    rope_in_fp32: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Do the same and return rotated `q_pe` and `k_pe` as well, for whatever else reads them."""
    rotated = _empty_rotated(q_pe, k_pe)
    query = _fused(
        *(q_nope, q_pe, k_pe, kv_c, positions, cos_sin_cache, is_neox, kv_cache_dtype, k_scale),
        *(layer_name, rope_in_fp32, *rotated),
    )
    return query, *rotated


def fused_aiter_qk_rope_kvcache_q_concat_quant_mla_rotated_fake(
    q_nope: Tensor,
    q_pe: Tensor,
    k_pe: Tensor,
    kv_c: Tensor,
    positions: Tensor,
    cos_sin_cache: Tensor,
    is_neox: bool,
    kv_cache_dtype: str,
    k_scale: Tensor,
    layer_name: str,
    rope_in_fp32: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the query and two contiguous tensors of the shapes of `q_pe` and `k_pe`."""
    return _empty_query(q_nope, layer_name), *_empty_rotated(q_pe, k_pe)


def _fused(
    q_nope: Tensor,
    q_pe: Tensor,
    k_pe: Tensor,
    kv_c: Tensor,
    positions: Tensor,
    cos_sin_cache: Tensor,
    is_neox: bool,
    kv_cache_dtype: str,
    k_scale: Tensor,
    layer_name: str,
    rope_in_fp32: bool,
    q_pe_out: Tensor | None = None,
    k_pe_out: Tensor | None = None,
) -> Tensor:
    # Everything is checked before anything is written.
    if (q_nope.dim(), q_pe.dim(), k_pe.dim()) != (3, 3, 2):
        raise InputError(
            f"q_nope must be [T, N, P], q_pe [T, N, R] and k_pe [T, R], got {list(q_nope.shape)}, "
            f"{list(q_pe.shape)} and {list(k_pe.shape)}; squeeze k_pe's head dimension."
        )
    context = current_context()
    layer, rows = context.layer(layer_name), None
    if context.slot_mapping is not None:
        # Typed: a kernel must never see the raw bytes of an FP8 cache.
        rows = cache_of(context, layer_name, kv_cache_dtype, kv_c.size(0)).rows_SC
    if context.checked:
        check_positions(positions, cos_sin_cache.size(0))
    query = _empty_query(q_nope, layer_name)
    pick("fused_absorb_qk_rope_concat_and_cache_mla", q_nope.device)(
        *(q_nope, q_pe, layer.w_uk_NPL, kv_c, k_pe, rows, query, context.slot_mapping),
        *(k_scale, layer.q_scale, positions, cos_sin_cache, is_neox, rope_in_fp32),
        *(q_pe_out, k_pe_out),
    )
    return query


def _empty_query(q: Tensor, layer_name: str) -> Tensor:
    cache = current_context().layer(layer_name).kv_cache
    return q.new_empty((*q.shape[:2], cache.storage_BKC.size(-1)), dtype=cache.typed_dtype)


def _empty_rotated(q_pe: Tensor, k_pe: Tensor) -> tuple[Tensor, Tensor]:
    return q_pe.new_empty(q_pe.shape), k_pe.new_empty(k_pe.shape)
