"""RoPE in place and the latent cache write in one launch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mlalab_kernels.launch import clamp_of, launch
from mlalab_kernels.triton_rows import (
    heads_of,
    heads_per_program,
    rotate_rows,
    unit_stride,
    write_latent,
)


def fused_rope_unified_mla_kv_cache_update(
    positions_T: Tensor,
    q_pe_TNR: Tensor,
    k_pe_TR: Tensor,
    kv_c_TL: Tensor,
    cos_sin_cache_MR: Tensor,
    is_neox: bool,
    kv_cache_SC: Tensor | None,
    slot_mapping: Tensor | None,
    k_scale: Tensor,
    rope_in_fp32: bool = True,
) -> None:
    """Rotate `q_pe` and `k_pe` in place and write `[kv_c | rotated k_pe]` into the cache.

    Shapes and rules are the reference's. Positions and slots may be int32 or int64; a slot outside
    the cache is skipped. Tensors that are only read are copied first where their last dimension is
    not contiguous.
    """
    if kv_cache_SC is None or slot_mapping is None:
        kv_cache_SC, slot_mapping = kv_c_TL[:0], positions_T[:0]
    tokens, heads, rotary_dim = q_pe_TNR.shape
    latent, padded = kv_c_TL.size(1), triton.next_power_of_2(rotary_dim)
    block = heads_per_program(heads, rotary_dim)
    blocks = triton.cdiv(heads, block)
    k_pe_TR = k_pe_TR.view(tokens, rotary_dim)
    table_MR, kv_c_TL = unit_stride(cos_sin_cache_MR), unit_stride(kv_c_TL)
    launch(
        _kernel,
        (tokens * (blocks + 1),),
        *(q_pe_TNR, k_pe_TR, kv_c_TL, kv_cache_SC, unit_stride(slot_mapping), k_scale),
        *(unit_stride(positions_T), table_MR),
        *(heads, blocks, slot_mapping.size(0), kv_cache_SC.size(0), table_MR.size(0)),
        *(*q_pe_TNR.stride(), *k_pe_TR.stride(), kv_c_TL.stride(0), *kv_cache_SC.stride()),
        *(table_MR.stride(0), latent, triton.next_power_of_2(latent), rotary_dim // 2, padded),
        *(block, is_neox, rope_in_fp32, clamp_of(kv_cache_SC)),
        enable_fp_fusion=False,
    )


@triton.jit(do_not_specialize=["N", "blocks", "num_mapped", "num_slots", "M"])
def _kernel(
    q_ptr, k_ptr, kv_c_ptr, cache_ptr, slots_ptr, scale_ptr, positions_ptr, table_ptr,
    N, blocks, num_mapped, num_slots, M,
    q_stride_t, q_stride_n, q_stride_r, k_stride_t, k_stride_r, kv_c_stride,
    cache_stride_s, cache_stride_c, table_stride,
    L: tl.constexpr, BLOCK_L: tl.constexpr, HALF: tl.constexpr, D: tl.constexpr, B: tl.constexpr,
    IS_NEOX: tl.constexpr, IN_FP32: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """Each token has one program for every B of its heads, and one for its key."""
    program = tl.program_id(0)
    token, block = (program // (blocks + 1)).to(tl.int64), program % (blocks + 1)
    sin_ptr = table_ptr + HALF
    if block < blocks:
        row_B, inside_B = heads_of(q_ptr, token, block, N, q_stride_t, q_stride_n, B)
        rotate_rows(
            row_B, q_stride_r, inside_B, token, positions_ptr, table_ptr, sin_ptr, table_stride,
            table_stride, M, HALF, D, IS_NEOX, IN_FP32, IN_PLACE=True,
        )  # fmt: skip
    else:
        write_latent(
            token, kv_c_ptr + token * kv_c_stride, k_ptr + token * k_stride_t, k_stride_r,
            cache_ptr, cache_stride_s, cache_stride_c, slots_ptr, num_mapped, num_slots, scale_ptr,
            positions_ptr, table_ptr, sin_ptr, table_stride, table_stride, M,
            0, L, L, BLOCK_L, HALF, D, IS_NEOX, IN_FP32, True, LARGEST,
        )  # fmt: skip
