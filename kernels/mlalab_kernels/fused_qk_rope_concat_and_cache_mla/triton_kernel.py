"""RoPE, latent cache write, concatenation and quantisation of an absorbed query in one launch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mlalab_kernels.fused_qk_rope_concat_and_cache_mla.reference import check_dtypes
from mlalab_kernels.launch import clamp_of, launch
from mlalab_kernels.triton_math import pair_columns, reciprocal
from mlalab_kernels.triton_rows import (
    columns_of,
    heads_of,
    put,
    rotate_rows,
    unit_stride,
    write_latent,
)

_SIZES = ((1024, 1, 1), (8192, 4, 4))
"""Up to so many rows of all heads: heads of one program, and its warps."""
_LARGE = (8, 4)


def fused_qk_rope_concat_and_cache_mla(
    q_nope: Tensor,
    q_pe: Tensor,
    kv_c: Tensor,
    k_pe: Tensor,
    kv_cache: Tensor,
    q_out: Tensor,
    slot_mapping: Tensor,
    k_scale: Tensor,
    q_scale: Tensor,
    positions: Tensor,
    cos_cache: Tensor,
    sin_cache: Tensor,
    is_neox: bool,
    is_nope_first: bool,
    rope_in_fp32: bool = True,
) -> None:
    """Write `[q_nope | rope(q_pe)]` to `q_out` and `[kv_c | rope(k_pe)]` to the cache.

    Shapes, rules and errors are the reference's. Positions and slots may be int32 or int64; a slot
    outside the cache is skipped. Inputs are copied first where their last dimension is not
    contiguous.
    """
    check_dtypes(kv_cache.dtype, q_out.dtype)
    cache_SC = kv_cache.view(-1, kv_cache.size(-1))
    tokens, heads, latent = q_nope.shape
    rotary_dim = q_pe.size(-1)
    size = next((size for rows, *size in _SIZES if tokens * heads <= rows), _LARGE)
    block, warps = min(size[0], triton.next_power_of_2(max(heads, 1))), size[1]
    blocks = triton.cdiv(heads, block)
    inputs = (q_nope, q_pe, kv_c, k_pe.flatten(1), cos_cache, sin_cache)
    read = tuple(unit_stride(x) for x in inputs)
    strides = tuple(stride for x in read for stride in x.stride()[:-1])
    launch(
        _kernel,
        (tokens * (blocks + 1),),
        *(*read, unit_stride(positions), unit_stride(slot_mapping), q_scale, k_scale),
        *(q_out, cache_SC, heads, blocks, slot_mapping.size(0), cache_SC.size(0)),
        *(cos_cache.size(0), *strides, *q_out.stride(), *cache_SC.stride()),
        *(0, latent) if is_nope_first else (rotary_dim, 0),
        *(latent, triton.next_power_of_2(latent)),
        *(rotary_dim // 2, triton.next_power_of_2(rotary_dim), block),
        *(is_neox, rope_in_fp32, clamp_of(q_out), clamp_of(cache_SC)),
        num_warps=warps,
        enable_fp_fusion=False,
    )


@triton.jit(do_not_specialize=["N", "blocks", "num_mapped", "num_slots", "M"])
def _kernel(
    q_nope_ptr, q_pe_ptr, kv_c_ptr, k_pe_ptr, cos_ptr, sin_ptr, positions_ptr, slots_ptr,
    q_scale_ptr, k_scale_ptr, out_ptr, cache_ptr,
    N, blocks, num_mapped, num_slots, M,
    nope_stride_t, nope_stride_n, pe_stride_t, pe_stride_n, kv_c_stride, k_pe_stride,
    cos_stride, sin_stride, out_stride_t, out_stride_n, out_stride_c,
    cache_stride_s, cache_stride_c,
    NOPE_AT: tl.constexpr, PE_AT: tl.constexpr, L: tl.constexpr, BLOCK_L: tl.constexpr,
    HALF: tl.constexpr, D: tl.constexpr, B: tl.constexpr, IS_NEOX: tl.constexpr,
    IN_FP32: tl.constexpr, Q_LARGEST: tl.constexpr, K_LARGEST: tl.constexpr,
):  # fmt: skip
    """Each token has one program for every B of its heads, and one for its cache row."""
    program = tl.program_id(0)
    token, block = (program // (blocks + 1)).to(tl.int64), program % (blocks + 1)
    if block < blocks:
        # As in `write_latent`, everything is read before anything is used.
        nope_B, inside_B = heads_of(q_nope_ptr, token, block, N, nope_stride_t, nope_stride_n, B)
        pe_B, _ = heads_of(q_pe_ptr, token, block, N, pe_stride_t, pe_stride_n, B)
        out_B, _ = heads_of(out_ptr, token, block, N, out_stride_t, out_stride_n, B)
        l_L = tl.arange(0, BLOCK_L)
        mask_BL = inside_B[:, None] & (l_L < L)[None, :]
        nope_BL = tl.load(columns_of(nope_B, l_L, 1), mask=mask_BL, other=0.0)
        scale = tl.load(q_scale_ptr)
        pe_BD = rotate_rows(
            pe_B, 1, inside_B, token, positions_ptr, cos_ptr, sin_ptr, cos_stride, sin_stride, M,
            HALF, D, IS_NEOX, IN_FP32, IN_PLACE=False,
        )  # fmt: skip
        inverse = reciprocal(scale)
        nope_BL = nope_BL.to(tl.float32)
        put(nope_BL, out_B, NOPE_AT + l_L, out_stride_c, mask_BL, inverse, Q_LARGEST)
        d_D, there_D = pair_columns(D, HALF, IS_NEOX)
        mask_BD = inside_B[:, None] & there_D[None, :]
        put(pe_BD, out_B, PE_AT + d_D, out_stride_c, mask_BD, inverse, Q_LARGEST)
    else:
        write_latent(
            token, kv_c_ptr + token * kv_c_stride, k_pe_ptr + token * k_pe_stride, 1,
            cache_ptr, cache_stride_s, cache_stride_c, slots_ptr, num_mapped, num_slots,
            k_scale_ptr, positions_ptr, cos_ptr, sin_ptr, cos_stride, sin_stride, M,
            NOPE_AT, PE_AT, L, BLOCK_L, HALF, D, IS_NEOX, IN_FP32, False, K_LARGEST,
        )  # fmt: skip
