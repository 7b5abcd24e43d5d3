"""The decode query's preparation in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from mlalab_kernels.numerics import absorb, quantize


def mla_decode_q_prep(
    q_TNH: Tensor, w_uk_NPL: Tensor, q_scale: Tensor, out_dtype: torch.dtype
) -> Tensor:
    """Return `[q_nope · W_UK | q_pe]`, `[T, N, L + R]` contiguous, in `out_dtype`.

    Staged rounding: the product rounds to the activation dtype before it is quantised.

    Args:
        q_TNH: `[T, N, P + R]` rotated query, any strides.
        w_uk_NPL: `[N, P, L]`.
        q_scale: fp32, one element, the dequantisation scale; not used unless `out_dtype` is FP8.
    """
    nope = w_uk_NPL.size(1)
    q_nope, q_pe = q_TNH.split([nope, q_TNH.size(-1) - nope], dim=-1)
    return mla_decode_q_prep_of_parts(q_nope, q_pe, w_uk_NPL, q_scale, out_dtype)


def mla_decode_q_prep_of_parts(
    q_nope_TNP: Tensor,
    q_pe_TNR: Tensor,
    w_uk_NPL: Tensor,
    q_scale: Tensor,
    out_dtype: torch.dtype,
) -> Tensor:
    """Do the same with `[q_nope | q_pe]` in two tensors."""
    q_TNC = torch.cat((absorb(q_nope_TNP, w_uk_NPL), q_pe_TNR), dim=-1)
    return quantize(q_TNC, q_scale, out_dtype)
