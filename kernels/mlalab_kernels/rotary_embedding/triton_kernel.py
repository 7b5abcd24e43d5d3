"""In-place RoPE on query and key as one Triton launch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mlalab_kernels.launch import launch
from mlalab_kernels.triton_rows import heads_of, heads_per_program, rotate_rows


def rotary_embedding(
    positions_T: Tensor,
    query: Tensor,
    key: Tensor | None,
    head_size: int,
    cos_sin_cache_MR: Tensor,
    is_neox: bool,
) -> None:
    """Rotate the first R columns of every head of `query` and `key`, in place.

    Args:
        positions_T: `[T]` int32 or int64; one outside the table reads the nearest row.
        query, key: `[T, heads, head_size]` or `[T, heads · head_size]`, any strides; written. Fast
            where the last dimension is contiguous.
        head_size: width of one head, at least R.
        cos_sin_cache_MR: `[M, R]`, cos half then sin half, fp32 or the activation dtype.
        is_neox: see `mlalab_kernels.numerics.rotate`. Arithmetic in fp32, one rounding.
    """
    tokens, (num_rows, rotary_dim) = positions_T.size(0), cos_sin_cache_MR.shape
    q_TNH = _heads_of(query, head_size)
    k_TNH = q_TNH[:, :0] if key is None else _heads_of(key, head_size)
    q_heads, k_heads = q_TNH.size(1), k_TNH.size(1)
    padded = triton.next_power_of_2(rotary_dim)
    block = heads_per_program(max(q_heads, k_heads), padded)
    q_blocks = triton.cdiv(q_heads, block)
    positions_T, table_MR = positions_T.contiguous(), cos_sin_cache_MR.contiguous()
    launch(
        _rotate_heads,
        (tokens, q_blocks + triton.cdiv(k_heads, block)),
        *(q_TNH, k_TNH, positions_T, table_MR),
        *(*q_TNH.stride(), *k_TNH.stride(), table_MR.stride(0)),
        *(num_rows, q_heads, k_heads, q_blocks),
        *(rotary_dim // 2, block, padded, is_neox),
        enable_fp_fusion=False,
    )


def _heads_of(tensor: Tensor, head_size: int) -> Tensor:
    return tensor.unflatten(-1, (-1, head_size)) if tensor.dim() == 2 else tensor


@triton.jit
def _rotate_heads(
    q_ptr,
    k_ptr,
    positions_ptr,
    table_ptr,
    q_stride_t,
    q_stride_n,
    q_stride_d,
    k_stride_t,
    k_stride_n,
    k_stride_d,
    stride_m,
    num_rows,
    q_heads,
    k_heads,
    q_blocks,
    HALF: tl.constexpr,
    B: tl.constexpr,
    D: tl.constexpr,
    IS_NEOX: tl.constexpr,
):
    """Rotate B heads of one token: the query's come first in the grid, then the key's."""
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    # Each branch knows its own stride: a unit stride makes wide loads.
    if block < q_blocks:
        row_B, inside_B = heads_of(q_ptr, token, block, q_heads, q_stride_t, q_stride_n, B)
        rotate_rows(
            row_B, q_stride_d, inside_B, token, positions_ptr, table_ptr, table_ptr + HALF,
            stride_m, stride_m, num_rows, HALF, D, IS_NEOX, IN_FP32=True, IN_PLACE=True,
        )  # fmt: skip
    else:
        block -= q_blocks
        row_B, inside_B = heads_of(k_ptr, token, block, k_heads, k_stride_t, k_stride_n, B)
        rotate_rows(
            row_B, k_stride_d, inside_B, token, positions_ptr, table_ptr, table_ptr + HALF,
            stride_m, stride_m, num_rows, HALF, D, IS_NEOX, IN_FP32=True, IN_PLACE=True,
        )  # fmt: skip
