"""The decode query's absorption, concatenation and quantisation in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlalab_kernels.launch import clamp_of, launch
from mlalab_kernels.triton_math import inverse_of, rounded
from mlalab_kernels.triton_rows import columns_of, copy_columns, put, unit_stride


def mla_decode_q_prep(
    q_TNH: Tensor, w_uk_NPL: Tensor, q_scale: Tensor, out_dtype: torch.dtype
) -> Tensor:
    """Return `[q_nope · W_UK | q_pe]`, `[T, N, L + R]` contiguous, in `out_dtype`.

    Shapes and rules are the reference's. The product is summed in fp32 in an order of its own, so
    it may round to the neighbour of the reference's now and then. `q_TNH` is copied first where its
    last dimension is not contiguous.
    """
    q_TNH = unit_stride(q_TNH)
    tokens, heads, width = q_TNH.shape
    nope, latent = w_uk_NPL.shape[1:]
    out_TNC = q_TNH.new_empty((tokens, heads, latent + width - nope), dtype=out_dtype)
    block_t, block_l, block_p = _tile(tokens, nope, latent, q_TNH.dtype)
    tiles = triton.cdiv(tokens, block_t)
    launch(
        _kernel,
        (tiles * triton.cdiv(latent, block_l) * heads,),
        *(q_TNH, w_uk_NPL, out_TNC, q_scale, tokens, tiles, *q_TNH.stride()[:2]),
        *(*w_uk_NPL.stride(), *out_TNC.stride()[:2], nope, latent, width - nope),
        *(
            triton.next_power_of_2(max(width - nope, 1)),
            block_t,
            block_l,
            block_p,
            clamp_of(out_TNC),
        ),
        enable_fp_fusion=False,
    )
    return out_TNC


def _tile(tokens: int, nope: int, latent: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Return tokens, latent and nope columns of one step; no matrix unit takes less than 16."""
    wide = dtype == torch.float32
    limits = (32, 32, 32) if wide else (64, 128, 128)
    sizes = (
        max(16, min(triton.next_power_of_2(max(size, 1)), limit))
        for size, limit in zip((tokens, latent, nope), limits, strict=True)
    )
    return tuple(sizes)


@triton.jit(do_not_specialize=["T", "tiles"])
def _kernel(
    q_ptr, w_ptr, out_ptr, scale_ptr, T, tiles,
    q_stride_t, q_stride_n, w_stride_n, w_stride_p, w_stride_l, out_stride_t, out_stride_n,
    P: tl.constexpr, L: tl.constexpr, R: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_P: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """One program multiplies one tile; that of the first latent columns also copies q_pe.

    Programs that share a tile of W_UK are neighbours.
    """
    program = tl.program_id(0)
    NUM_L: tl.constexpr = (L + BLOCK_L - 1) // BLOCK_L
    head, tile_l = (program // tiles // NUM_L).to(tl.int64), program // tiles % NUM_L
    t_T = (program % tiles).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    l_L = tile_l * BLOCK_L + tl.arange(0, BLOCK_L)
    from_T = q_ptr + t_T * q_stride_t + head * q_stride_n
    to_T = out_ptr + t_T * out_stride_t + head * out_stride_n
    inverse = inverse_of(scale_ptr)
    sum_TL = tl.zeros((BLOCK_T, BLOCK_L), tl.float32)
    for first in range(0, P, BLOCK_P):
        p_P = first + tl.arange(0, BLOCK_P)
        q_mask_TP = (t_T < T)[:, None] & (p_P < P)[None, :]
        q_TP = tl.load(columns_of(from_T, p_P, 1), mask=q_mask_TP, other=0.0)
        w_P = w_ptr + head * w_stride_n + p_P.to(tl.int64) * w_stride_p
        w_mask_PL = (p_P < P)[:, None] & (l_L < L)[None, :]
        w_PL = tl.load(columns_of(w_P, l_L, w_stride_l), mask=w_mask_PL, other=0.0)
        sum_TL = tl.dot(q_TP, w_PL, sum_TL, input_precision="ieee")
    product_TL = rounded(sum_TL, q_ptr.dtype.element_ty)
    put(product_TL, to_T, l_L, 1, (t_T < T)[:, None] & (l_L < L)[None, :], inverse, LARGEST)
    if tile_l == 0:
        copy_columns(from_T + P, to_T + L, 1, t_T < T, inverse, R, BLOCK_R, LARGEST)
