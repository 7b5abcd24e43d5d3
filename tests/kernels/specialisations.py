"""Calls whose launches are compiled for every target: one row for each shape that matters.

A row is a function of the target's FP8 type that calls the op's own wrapper on CPU tensors, under a
recorder that runs nothing. So sizes, strides, alignment and every constant are those of a real
launch; a model's sizes cost no more than small ones, apart from the memory of the tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from mlalab_kernels.rotary_embedding.triton_kernel import rotary_embedding

BF16 = torch.bfloat16
TOKENS, ROWS = 8, 32


def rotate(fp8_dtype: torch.dtype, heads: int, is_neox: bool, table_dtype: torch.dtype) -> None:
    """MLA: rope columns of a query of 128 + 64, the key behind a latent of 512."""
    q, latent = torch.empty(TOKENS, heads, 192, dtype=BF16), torch.empty(TOKENS, 576, dtype=BF16)
    table, positions = torch.empty(ROWS, 64, dtype=table_dtype), torch.zeros(TOKENS).long()
    rotary_embedding(positions, q[..., 128:], latent[:, None, 512:], 64, table, is_neox)


CALLS: dict[str, Callable[[torch.dtype], None]] = {
    "rotary N=16": partial(rotate, heads=16, is_neox=False, table_dtype=torch.float32),
    "rotary N=128 neox": partial(rotate, heads=128, is_neox=True, table_dtype=BF16),
}
