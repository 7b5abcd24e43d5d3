"""In-place RoPE in plain torch."""

from __future__ import annotations

from torch import Tensor

from mlalab_kernels.numerics import gather_cos_sin, rotate


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
        positions_T: `[T]` int64.
        query, key: `[T, heads, head_size]` or `[T, heads · head_size]`, any strides; written.
        head_size: width of one head, at least R.
        cos_sin_cache_MR: `[M, R]`, cos half then sin half.
        is_neox: see `mlalab_kernels.numerics.rotate`. Arithmetic in fp32, one rounding.
    """
    cos_TH, sin_TH = gather_cos_sin(cos_sin_cache_MR, positions_T)
    rotary_dim = cos_sin_cache_MR.size(-1)
    for tensor in (query, key):
        if tensor is not None:
            heads = tensor.unflatten(-1, (-1, head_size)) if tensor.dim() == 2 else tensor
            part = heads[..., :rotary_dim]
            part.copy_(rotate(part, cos_TH, sin_TH, is_neox, in_fp32=True))
