"""Latent cache write in one launch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mlalab_kernels.launch import clamp_of, launch
from mlalab_kernels.triton_math import inverse_of
from mlalab_kernels.triton_rows import copy_columns, slot_of, unit_stride

_ROWS = 4


def unified_mla_kv_cache_update(
    kv_c_TL: Tensor, k_pe: Tensor, kv_cache_SC: Tensor, slot_mapping: Tensor, k_scale: Tensor
) -> None:
    """Write `[kv_c | k_pe]` of each token into its cache row, in place.

    Shapes and rules are the reference's. Slots may be int32 or int64; one outside the cache is
    skipped. Inputs are copied first where their last dimension is not contiguous.
    """
    kv_c_TL, k_pe_TR = unit_stride(kv_c_TL), unit_stride(k_pe.flatten(1))
    mapped = min(slot_mapping.size(0), kv_c_TL.size(0))
    latent, rotary_dim = kv_c_TL.size(1), k_pe_TR.size(1)
    launch(
        _kernel,
        (triton.cdiv(mapped, _ROWS),),
        *(kv_c_TL, k_pe_TR, kv_cache_SC, unit_stride(slot_mapping), k_scale),
        *(mapped, kv_cache_SC.size(0), kv_c_TL.stride(0), k_pe_TR.stride(0)),
        *(*kv_cache_SC.stride(), latent, triton.next_power_of_2(latent)),
        *(rotary_dim, triton.next_power_of_2(rotary_dim), _ROWS, clamp_of(kv_cache_SC)),
        enable_fp_fusion=False,
    )


@triton.jit(do_not_specialize=["num_mapped", "num_slots"])
def _kernel(
    kv_c_ptr, k_pe_ptr, cache_ptr, slots_ptr, scale_ptr, num_mapped, num_slots,
    kv_c_stride, k_pe_stride, cache_stride_s, cache_stride_c,
    L: tl.constexpr, BLOCK_L: tl.constexpr, R: tl.constexpr, BLOCK_R: tl.constexpr,
    B: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    token_B = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    slot_B, inside_B = slot_of(slots_ptr, token_B, num_mapped, num_slots)
    inverse = inverse_of(scale_ptr)
    to_B = cache_ptr + slot_B * cache_stride_s
    copy_columns(
        kv_c_ptr + token_B * kv_c_stride, to_B, cache_stride_c, inside_B, inverse,
        L, BLOCK_L, LARGEST,
    )  # fmt: skip
    copy_columns(
        k_pe_ptr + token_B * k_pe_stride, to_B + L * cache_stride_c, cache_stride_c, inside_B,
        inverse, R, BLOCK_R, LARGEST,
    )  # fmt: skip
