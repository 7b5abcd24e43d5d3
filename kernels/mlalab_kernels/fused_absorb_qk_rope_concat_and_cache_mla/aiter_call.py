"""The whole decode preparation by AITER in two launches: a batched matmul, and its fused kernel."""

from __future__ import annotations

from torch import Tensor

from mlalab_kernels.fused_qk_rope_concat_and_cache_mla.aiter_call import (
    check_served,
    fused_qk_rope_concat_and_cache_mla,
    table_halves,
)
from mlalab_kernels.numerics import absorb, gather_cos_sin, rotate
from mlalab_kernels.refusal import RefusedError


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
) -> None:
    """Do what the reference of this name does, but for rounding; see the kernel that is called.

    AITER gives no rotated query or key back: each that is asked for is rotated in plain torch. It
    rounds in an order of its own, whatever `staged` says.

    Raises:
        RefusedError: AITER has no kernel for these arguments.
        RuntimeError: AITER is missing or not AMD's.
    """
    if cos_sin_cache_MR is None:
        raise RefusedError(
            "AITER's fused kernel always rotates: a model without RoPE needs the Triton kernel."
        )
    k_pe_TR = k_pe_TR.flatten(1)
    cache, slots = kv_cache_SC, slot_mapping
    if cache is None or slots is None:
        # One row that no slot names.
        cache, slots = q_out_TNC.new_empty(1, q_out_TNC.size(-1)), positions_T.new_empty(0)
    # Before the product, which would be for nothing.
    check_served(q_pe_TNR, w_uk_NPL.size(-1), cache, q_out_TNC, True, rope_in_fp32)
    fused_qk_rope_concat_and_cache_mla(
        *(absorb(q_nope_TNP, w_uk_NPL), q_pe_TNR, kv_c_TL, k_pe_TR, cache, q_out_TNC, slots),
        *(k_scale, q_scale, positions_T, *table_halves(cos_sin_cache_MR, q_pe_TNR.dtype)),
        is_neox,
        is_nope_first=True,
        rope_in_fp32=rope_in_fp32,
    )
    for x, out in ((q_pe_TNR, q_pe_out), (k_pe_TR.unsqueeze(1), k_pe_out)):
        if out is not None:
            cos_TH, sin_TH = gather_cos_sin(cos_sin_cache_MR, positions_T)
            out.copy_(rotate(x, cos_TH, sin_TH, is_neox, rope_in_fp32).view(out.shape))
