"""RoPE in place and the key and value cache write in one launch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mlalab_kernels.launch import clamp_of, launch
from mlalab_kernels.triton_math import inverse_of, pair_columns
from mlalab_kernels.triton_rows import (
    heads_of,
    heads_per_program,
    paged_heads,
    put,
    rotate_rows,
    unit_stride,
    write_heads,
)


def fused_rope_and_unified_kv_cache_update(
    query_TNH: Tensor,
    key_TGH: Tensor,
    value_TGH: Tensor,
    positions_T: Tensor,
    cos_sin_cache_MR: Tensor,
    is_neox: bool,
    kv_cache: Tensor | None,
    slot_mapping: Tensor | None,
    k_scale: Tensor,
    v_scale: Tensor,
    rope_in_fp32: bool = True,
) -> None:
    """Rotate `query` and `key` in place and write rotated keys and values into the cache.

    Shapes and rules are the reference's; the cache may have any strides. Positions and slots may be
    int32 or int64; a slot outside the cache is skipped. Tensors that are only read are copied first
    where their last dimension is not contiguous.
    """
    tokens, q_heads, width = query_TNH.shape
    if kv_cache is None or slot_mapping is None:
        kv_cache = value_TGH.new_empty(2, 0, 1, *value_TGH.shape[1:])
        slot_mapping = positions_T[:0]
    heads = key_TGH.size(1)
    block = heads_per_program(max(q_heads, heads), width)
    q_blocks, blocks = triton.cdiv(q_heads, block), triton.cdiv(heads, block)
    _, num_blocks, block_size, *_ = kv_cache.shape
    table_MR, value = unit_stride(cos_sin_cache_MR), unit_stride(value_TGH)
    launch(
        _kernel,
        (tokens * (q_blocks + 2 * blocks),),
        *(query_TNH, key_TGH, value, *kv_cache, unit_stride(slot_mapping), k_scale, v_scale),
        *(unit_stride(positions_T), table_MR, q_heads, heads, q_blocks, blocks),
        *(slot_mapping.size(0), num_blocks * block_size, table_MR.size(0), block_size),
        *(*query_TNH.stride(), *key_TGH.stride(), *value.stride()[:2], *kv_cache.stride()[1:]),
        *(table_MR.stride(0), width, triton.next_power_of_2(width), block, is_neox, rope_in_fp32),
        clamp_of(kv_cache),
        enable_fp_fusion=False,
    )


@triton.jit(do_not_specialize=["N", "G", "q_blocks", "blocks", "num_mapped", "num_slots", "M"])
def _kernel(
    q_ptr, k_ptr, v_ptr, k_cache_ptr, v_cache_ptr, slots_ptr, k_scale_ptr, v_scale_ptr,
    positions_ptr, table_ptr, N, G, q_blocks, blocks, num_mapped, num_slots, M, block_size,
    q_stride_t, q_stride_n, q_stride_h, k_stride_t, k_stride_g, k_stride_h, v_stride_t, v_stride_g,
    stride_block, stride_slot, stride_g, stride_h, table_stride,
    H: tl.constexpr, D: tl.constexpr, B: tl.constexpr, IS_NEOX: tl.constexpr,
    IN_FP32: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """Each token has programs for B heads each of its query, then of its key, then of its value."""
    program = tl.program_id(0)
    programs = q_blocks + 2 * blocks
    token, block = (program // programs).to(tl.int64), program % programs
    HALF: tl.constexpr = H // 2
    sin_ptr = table_ptr + HALF
    if block < q_blocks:
        row_B, inside_B = heads_of(q_ptr, token, block, N, q_stride_t, q_stride_n, B)
        rotate_rows(
            row_B, q_stride_h, inside_B, token, positions_ptr, table_ptr, sin_ptr, table_stride,
            table_stride, M, HALF, D, IS_NEOX, IN_FP32, IN_PLACE=True,
        )  # fmt: skip
    elif block < q_blocks + blocks:
        block -= q_blocks
        to_B, mapped_B = paged_heads(
            k_cache_ptr, slots_ptr, token, block, G, num_mapped, num_slots, block_size,
            stride_block, stride_slot, stride_g, B,
        )  # fmt: skip
        row_B, inside_B = heads_of(k_ptr, token, block, G, k_stride_t, k_stride_g, B)
        new_BD = rotate_rows(
            row_B, k_stride_h, inside_B, token, positions_ptr, table_ptr, sin_ptr, table_stride,
            table_stride, M, HALF, D, IS_NEOX, IN_FP32, IN_PLACE=True,
        )  # fmt: skip
        d_D, there_D = pair_columns(D, HALF, IS_NEOX)
        mask_BD = mapped_B[:, None] & there_D[None, :]
        put(new_BD, to_B, d_D, stride_h, mask_BD, inverse_of(k_scale_ptr), LARGEST)
    else:
        write_heads(
            v_ptr, v_cache_ptr, v_scale_ptr, slots_ptr, token, block - q_blocks - blocks, G,
            num_mapped, num_slots, block_size, v_stride_t, v_stride_g, stride_block, stride_slot,
            stride_g, stride_h, H, D, B, LARGEST,
        )  # fmt: skip
