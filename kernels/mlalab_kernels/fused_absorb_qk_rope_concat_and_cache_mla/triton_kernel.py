"""The whole decode preparation of query and cache in one launch.

One grid holds programs of three kinds. Those of the first keep one tile of one head's W_UK and
multiply a run of token tiles by it; those of the second rotate rows of q_pe; those of the third
write rows of the cache. Nothing passes between them, so they run in any order.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents
from triton.tools.tensor_descriptor import TensorDescriptor

from mlalab_kernels.fused_absorb_qk_rope_concat_and_cache_mla.launch_config import (
    OP,
    Config,
    config_for,
    fitted,
)
from mlalab_kernels.fused_absorb_qk_rope_concat_and_cache_mla.triton_programs import (
    absorb_described,
    absorb_pointed,
    rotate_queries,
    write_cache,
)
from mlalab_kernels.fused_qk_rope_concat_and_cache_mla.reference import check_dtypes
from mlalab_kernels.launch import arch_of, clamp_of, launch
from mlalab_kernels.triton_rows import unit_stride

_CACHE_ROWS = 4


@triton.jit(do_not_specialize=["T", "N", "M", "num_mapped", "num_slots", "products", "rotations"])
def _kernel(
    q_desc, w_desc, out_desc,
    q_nope_ptr, q_pe_ptr, w_ptr, kv_c_ptr, k_pe_ptr, cache_ptr, out_ptr, q_rot_ptr, k_rot_ptr,
    slots_ptr, k_scale_ptr, q_scale_ptr, positions_ptr, table_ptr,
    T, N, M, num_mapped, num_slots, products, rotations,
    q_nope_stride_t, q_nope_stride_n, q_pe_stride_t, q_pe_stride_n, w_stride_n, w_stride_p,
    kv_c_stride, k_pe_stride, cache_stride, out_stride_t, out_stride_n, table_stride,
    P: tl.constexpr, L: tl.constexpr, HALF: tl.constexpr, D: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_L: tl.constexpr, LATENT: tl.constexpr,
    TILES: tl.constexpr, STAGES: tl.constexpr, TOKENS: tl.constexpr, HEADS: tl.constexpr,
    ROWS: tl.constexpr, DESCRIBED: tl.constexpr, IS_NEOX: tl.constexpr, IN_FP32: tl.constexpr,
    STAGED: tl.constexpr, Q_LARGEST: tl.constexpr, K_LARGEST: tl.constexpr, OVERLAP: tl.constexpr,
    ROTATIONS_FIRST: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    if ROTATIONS_FIRST:
        program = (program + products) % tl.num_programs(0)
    if OVERLAP:
        # Safe this early: the next launch may fetch its own W_UK, and waits before all else.
        gdc_launch_dependents()
    if program < products:
        tiles = tl.cdiv(T, BLOCK_T)
        runs = tl.cdiv(tiles, TILES)
        NUM_L: tl.constexpr = (L + BLOCK_L - 1) // BLOCK_L
        head, l_first = program // runs // NUM_L, (program // runs % NUM_L) * BLOCK_L
        first = program % runs * TILES
        last = tl.minimum(first + TILES, tiles)
        if DESCRIBED:
            absorb_described(
                head, l_first, first, last, q_desc, w_desc, out_desc, q_scale_ptr,
                P, BLOCK_T, BLOCK_L, STAGES, STAGED, Q_LARGEST, OVERLAP,
            )  # fmt: skip
        else:
            absorb_pointed(
                head, l_first, first, last, q_nope_ptr, w_ptr, out_ptr, q_scale_ptr,
                T, q_nope_stride_t, q_nope_stride_n, w_stride_n, w_stride_p,
                out_stride_t, out_stride_n,
                P, L, BLOCK_P, BLOCK_T, BLOCK_L, STAGES, STAGED, Q_LARGEST, OVERLAP,
            )  # fmt: skip
    elif program < products + rotations:
        rotate_queries(
            program - products, q_pe_ptr, out_ptr + L, q_rot_ptr, q_scale_ptr, positions_ptr,
            table_ptr, T, N, M, q_pe_stride_t, q_pe_stride_n, out_stride_t, out_stride_n,
            table_stride,
            HALF, D, TOKENS, HEADS, IS_NEOX, IN_FP32, STAGED, Q_LARGEST, OVERLAP,
        )  # fmt: skip
    else:
        write_cache(
            program - products - rotations, kv_c_ptr, k_pe_ptr, cache_ptr, k_rot_ptr, slots_ptr,
            k_scale_ptr, positions_ptr, table_ptr,
            T, M, num_mapped, num_slots, kv_c_stride, k_pe_stride, cache_stride, table_stride,
            L, HALF, D, LATENT, ROWS, IS_NEOX, IN_FP32, STAGED, K_LARGEST, OVERLAP,
        )  # fmt: skip


def fused_absorb_qk_rope_concat_and_cache_mla(
    q_nope_TNP: Tensor,
    q_pe_TNR: Tensor,
    w_uk_NPL: Tensor,
    kv_c_TL: Tensor,
    k_pe_TR: Tensor,
    kv_cache_SC: Tensor | None,
    q_out_TNC: Tensor,
    slot_mapping: Tensor | None,
    k_scale: Tensor,
    q_scale: Tensor,
    positions_T: Tensor,
    cos_sin_cache_MR: Tensor | None,
    is_neox: bool,
    rope_in_fp32: bool = True,
    q_pe_out: Tensor | None = None,
    k_pe_out: Tensor | None = None,
    staged: bool = True,
    config: Config | None = None,
) -> None:
    """Write the decode query and the cache rows in one launch; see the reference for shapes.

    On Hopper the launch may begin while the kernel before it in the stream still runs; until that
    one is done it reads nothing but `w_uk`, which no kernel of a decode step writes. After changing
    `w_uk`, synchronise once before the next call, or pass a `config` without `overlap`.

    Args:
        config: how to cut the work up; the measured table decides where it is None.

    Raises:
        RuntimeError: types as the reference refuses them, a layout that cannot be written, or a
            tuning table of the user's that cannot be used.
    """
    _check(kv_cache_SC, q_out_TNC, q_pe_out, k_pe_out)
    if q_nope_TNP.size(0) == 0:
        return
    cache, slots = kv_cache_SC, slot_mapping
    if cache is None or slots is None:
        cache, slots = q_out_TNC.new_empty(0, q_out_TNC.size(-1)), positions_T[:0]
    tensors = [q_nope_TNP, q_pe_TNR, w_uk_NPL, kv_c_TL, k_pe_TR.flatten(0, -2)]
    q_nope, q_pe, w_uk, kv_c, k_pe = (unit_stride(x) for x in tensors)
    T, N, P = q_nope.shape
    L, R = w_uk.size(-1), q_pe.size(-1)
    if config is None:
        config = config_for(arch_of(q_nope.device), N, T, q_out_TNC.dtype)
    # A copy of W_UK is written just before the launch, which then must not run ahead.
    config = replace(config, overlap=config.overlap and w_uk is w_uk_NPL)
    c = fitted(config, L, (q_nope, w_uk, q_out_TNC))
    heads = min(triton.next_power_of_2(N), c.rows)
    tokens = c.rows // heads
    runs = triton.cdiv(triton.cdiv(T, c.block_t), c.tiles)
    products = runs * N * triton.cdiv(L, c.block_l)
    rotations = triton.cdiv(T, tokens) * triton.cdiv(N, heads)
    table = None if cos_sin_cache_MR is None else unit_stride(cos_sin_cache_MR)
    launch(
        _kernel,
        (products + rotations + triton.cdiv(T, _CACHE_ROWS),),
        *_descriptors(c, q_nope, w_uk, q_out_TNC),
        *(q_nope, q_pe, w_uk, kv_c, k_pe, cache, q_out_TNC, q_pe_out, k_pe_out),
        *(unit_stride(slots), k_scale, q_scale, unit_stride(positions_T), table),
        *(T, N, 0 if table is None else table.size(0), min(slots.size(0), T), cache.size(0)),
        *(products, rotations, *q_nope.stride()[:2], *q_pe.stride()[:2], *w_uk.stride()[:2]),
        *(kv_c.stride(0), k_pe.stride(0), cache.stride(0), *q_out_TNC.stride()[:2]),
        *(0 if table is None else table.stride(0),),
        *(P, L, R // 2, triton.next_power_of_2(R)),
        *(max(16, triton.next_power_of_2(P)), c.block_t, c.block_l, triton.next_power_of_2(L)),
        *(c.tiles, c.stages, tokens, heads, _CACHE_ROWS, c.described, is_neox),
        *(rope_in_fp32 or not staged, staged, clamp_of(q_out_TNC), clamp_of(cache), c.overlap),
        *(c.rotations_first,),
        num_warps=c.warps,
        enable_fp_fusion=False,
        **({"launch_pdl": True} if c.overlap else {}),
    )


def _check(cache: Tensor | None, q_out: Tensor, *rotated: Tensor | None) -> None:
    check_dtypes(q_out.dtype if cache is None else cache.dtype, q_out.dtype)
    if cache is not None and (cache.dim() != 2 or cache.stride(-1) != 1):
        raise RuntimeError(
            f"{OP}: the kv cache must be [slots, L + R], contiguous in its last dimension, got "
            f"{list(cache.shape)} with strides {list(cache.stride())}; flatten its blocks."
        )
    outs = [x for x in rotated if x is not None]
    if q_out.stride(-1) != 1 or not all(x.is_contiguous() for x in outs):
        raise RuntimeError(
            f"{OP}: q_out must be contiguous in its last dimension, q_pe_out and k_pe_out in all; "
            f"pass new tensors and copy from them."
        )


def _descriptors(config: Config, q_nope: Tensor, w_uk: Tensor, out: Tensor) -> tuple[Any, ...]:
    if not config.described:
        return None, None, None
    (T, N, P), L = q_nope.shape, w_uk.size(-1)
    t, l = config.block_t, config.block_l
    return (
        TensorDescriptor(q_nope, [T, N, P], [*q_nope.stride()], [t, 1, P]),
        TensorDescriptor(w_uk, [N, P, L], [*w_uk.stride()], [1, P, l]),
        TensorDescriptor(out, [T, N, L], [*out.stride()], [t, 1, l]),
    )
