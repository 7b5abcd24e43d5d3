"""Calls whose launches are compiled for every target: one row for each shape that matters.

A row is a function of the target's FP8 type that calls the op's own wrapper on CPU tensors, under a
recorder that runs nothing. So sizes, strides, alignment and every constant are those of a real
launch; a model's sizes cost no more than small ones, apart from the memory of the tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from mlalab_kernels.fused_absorb_qk_rope_concat_and_cache_mla.triton_kernel import (
    fused_absorb_qk_rope_concat_and_cache_mla,
)
from mlalab_kernels.mla_decode_attention.triton_kernel import mla_decode_attention
from mlalab_kernels.rotary_embedding.triton_kernel import rotary_embedding
from tests.kernels.row_specialisations import CALLS as ROW_CALLS

BF16 = torch.bfloat16
TOKENS, ROWS = 8, 32


def rotate(fp8_dtype: torch.dtype, heads: int, is_neox: bool, table_dtype: torch.dtype) -> None:
    """MLA: rope columns of a query of 128 + 64, the key behind a latent of 512."""
    q, latent = torch.empty(TOKENS, heads, 192, dtype=BF16), torch.empty(TOKENS, 576, dtype=BF16)
    table, positions = torch.empty(ROWS, 64, dtype=table_dtype), torch.zeros(TOKENS).long()
    rotary_embedding(positions, q[..., 128:], latent[:, None, 512:], 64, table, is_neox)


def prepare(fp8_dtype: torch.dtype, tokens: int, heads: int, fp8_query: bool = True) -> None:
    """DeepSeek's sizes, cut up as the tuning table says for the target."""
    q, w_uk = torch.empty(tokens, heads, 192, dtype=BF16), torch.empty(heads, 128, 512, dtype=BF16)
    latent, cache = torch.empty(tokens, 576, dtype=BF16), torch.empty(ROWS, 576, dtype=fp8_dtype)
    query = torch.empty(tokens, heads, 576, dtype=fp8_dtype if fp8_query else BF16)
    index, scale = torch.zeros(tokens).long(), torch.ones(1)
    fused_absorb_qk_rope_concat_and_cache_mla(
        *(q[..., :128], q[..., 128:], w_uk, latent[:, :512], latent[:, 512:], cache, query),
        *(index, scale, scale, index, torch.empty(ROWS, 64), False),
    )


def attend(fp8_dtype: torch.dtype, heads: int, fp8_cache: bool) -> None:
    """32 requests of 4 096 tokens in blocks of 64."""
    stored = fp8_dtype if fp8_cache else BF16
    cache, table = torch.empty(8, 64, 576, dtype=stored), torch.zeros(32, 64, dtype=torch.int32)
    mla_decode_attention(
        *(torch.empty(32, heads, 576, dtype=stored), cache, table),
        *([1] * 32, [4096] * 32, 0.1, 512, torch.ones(1), torch.ones(1)),
    )


CALLS: dict[str, Callable[[torch.dtype], None]] = {
    "prepare T=1 N=16": partial(prepare, tokens=1, heads=16),
    "prepare T=8 N=128": partial(prepare, tokens=8, heads=128),
    "prepare T=64 N=64": partial(prepare, tokens=64, heads=64),
    "prepare T=128 N=16": partial(prepare, tokens=128, heads=16),
    "prepare T=512 N=128": partial(prepare, tokens=512, heads=128),
    "prepare T=512 N=128 bf16": partial(prepare, tokens=512, heads=128, fp8_query=False),
    **{
        f"attend N={heads}{' fp8' * fp8_cache}": partial(attend, heads=heads, fp8_cache=fp8_cache)
        for heads in (16, 128)
        for fp8_cache in (False, True)
    },
    "rotary N=16": partial(rotate, heads=16, is_neox=False, table_dtype=torch.float32),
    "rotary N=128 neox": partial(rotate, heads=128, is_neox=True, table_dtype=BF16),
}
CALLS |= ROW_CALLS
