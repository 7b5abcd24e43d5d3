"""Key and value cache write in one launch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mlalab_kernels.launch import clamp_of, launch
from mlalab_kernels.triton_rows import heads_per_program, unit_stride, write_heads


def unified_kv_cache_update(
    key_TGH: Tensor,
    value_TGH: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
) -> None:
    """Write key and value of each token into its cache row, in place.

    Shapes and rules are the reference's; the cache may have any strides. Slots may be int32 or
    int64; one outside the cache is skipped. Key and value are copied first where their last
    dimension is not contiguous.
    """
    key, value = unit_stride(key_TGH), unit_stride(value_TGH)
    tokens, heads, width = key.shape
    block = heads_per_program(heads, width)
    blocks = triton.cdiv(heads, block)
    _, num_blocks, block_size, *_ = kv_cache.shape
    mapped = min(slot_mapping.size(0), tokens)
    launch(
        _kernel,
        (mapped * 2 * blocks,),
        *(key, value, *kv_cache, unit_stride(slot_mapping), k_scale, v_scale),
        *(heads, blocks, mapped, num_blocks * block_size, block_size),
        *(*key.stride()[:2], *value.stride()[:2], *kv_cache.stride()[1:]),
        *(width, triton.next_power_of_2(width), block, clamp_of(kv_cache)),
        enable_fp_fusion=False,
    )


@triton.jit(do_not_specialize=["G", "blocks", "num_mapped", "num_slots"])
def _kernel(
    k_ptr, v_ptr, k_cache_ptr, v_cache_ptr, slots_ptr, k_scale_ptr, v_scale_ptr,
    G, blocks, num_mapped, num_slots, block_size, k_stride_t, k_stride_g, v_stride_t, v_stride_g,
    stride_block, stride_slot, stride_g, stride_h,
    H: tl.constexpr, D: tl.constexpr, B: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """Each token has one program for every B heads of its key, and as many for its value."""
    program = tl.program_id(0)
    token, block = (program // (2 * blocks)).to(tl.int64), program % (2 * blocks)
    if block < blocks:
        write_heads(
            k_ptr, k_cache_ptr, k_scale_ptr, slots_ptr, token, block, G, num_mapped, num_slots,
            block_size, k_stride_t, k_stride_g, stride_block, stride_slot, stride_g, stride_h,
            H, D, B, LARGEST,
        )  # fmt: skip
    else:
        write_heads(
            v_ptr, v_cache_ptr, v_scale_ptr, slots_ptr, token, block - blocks, G, num_mapped,
            num_slots, block_size, v_stride_t, v_stride_g, stride_block, stride_slot, stride_g,
            stride_h, H, D, B, LARGEST,
        )  # fmt: skip
