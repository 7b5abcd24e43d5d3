"""Calls of the ops that rotate and write rows, with a model's sizes and strides."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from mlalab_kernels.fused_qk_rope_concat_and_cache_mla.triton_kernel import (
    fused_qk_rope_concat_and_cache_mla,
)
from mlalab_kernels.fused_rope_and_unified_kv_cache_update.triton_kernel import (
    fused_rope_and_unified_kv_cache_update,
)
from mlalab_kernels.fused_rope_unified_mla_kv_cache_update.triton_kernel import (
    fused_rope_unified_mla_kv_cache_update,
)
from mlalab_kernels.mla_decode_q_prep.triton_kernel import mla_decode_q_prep
from mlalab_kernels.unified_kv_cache_update.triton_kernel import unified_kv_cache_update
from mlalab_kernels.unified_mla_kv_cache_update.triton_kernel import unified_mla_kv_cache_update

BF16, FP32 = torch.bfloat16, torch.float32
SLOTS, ROWS, ONE = 64, 32, torch.ones(())


def mla_rope(fp8_dtype: torch.dtype, tokens: int, heads: int, is_neox: bool) -> None:
    q, latent = torch.empty(tokens, heads, 192, dtype=BF16), torch.empty(tokens, 576, dtype=BF16)
    positions, table = torch.zeros(tokens).long(), torch.empty(ROWS, 64)
    cache = torch.empty(SLOTS, 576, dtype=fp8_dtype)
    fused_rope_unified_mla_kv_cache_update(
        *(positions, q[..., 128:], latent[:, 512:], latent[:, :512], table, is_neox),
        *(cache, positions, ONE),
    )


def mla_concat(
    fp8_dtype: torch.dtype, tokens: int, heads: int, is_neox: bool, wide: bool = False
) -> None:
    stored = BF16 if wide else fp8_dtype
    nope = torch.empty(heads, tokens, 512, dtype=BF16).transpose(0, 1)
    q, latent = torch.empty(tokens, heads, 192, dtype=BF16), torch.empty(tokens, 576, dtype=BF16)
    positions, table = torch.zeros(tokens).long(), torch.empty(ROWS, 64)
    cache = torch.empty(SLOTS // 16, 16, 576, dtype=stored)
    fused_qk_rope_concat_and_cache_mla(
        *(nope, q[..., 128:], latent[:, :512], latent[:, 512:], cache),
        *(torch.empty(tokens, heads, 576, dtype=stored), positions, ONE, ONE, positions),
        *(*table.chunk(2, -1), is_neox, True),
    )


def mla_write(fp8_dtype: torch.dtype) -> None:
    latent, cache = torch.empty(8, 576, dtype=BF16), torch.empty(SLOTS, 576, dtype=fp8_dtype)
    slots = torch.zeros(8).long()
    unified_mla_kv_cache_update(latent[:, :512], latent[:, None, 512:], cache, slots, ONE)


def absorb(fp8_dtype: torch.dtype, tokens: int, dtype: torch.dtype) -> None:
    q, w_kv_b = torch.empty(tokens, 2, 192, dtype=dtype), torch.empty(2, 256, 512, dtype=dtype)
    mla_decode_q_prep(q, w_kv_b[:, :128], ONE, fp8_dtype)


def gqa(fp8_dtype: torch.dtype, heads: int, groups: int, is_neox: bool, fused: bool) -> None:
    qkv = torch.empty(8, heads + 2 * groups, 128, dtype=BF16)
    query, key, value = qkv.split([heads, groups, groups], 1)
    cache = torch.empty(2, 4, 16, groups, 128, dtype=fp8_dtype)
    slots, table = torch.zeros(8).long(), torch.empty(ROWS, 128)
    if not fused:
        unified_kv_cache_update(key, value, cache, slots, ONE, ONE)
        return
    fused_rope_and_unified_kv_cache_update(
        query, key, value, slots, table, is_neox, cache, slots, ONE, ONE
    )


CALLS: dict[str, Callable[[torch.dtype], None]] = {
    "MLA rope and write N=16": partial(mla_rope, tokens=8, heads=16, is_neox=False),
    "MLA rope and write N=128 neox": partial(mla_rope, tokens=8, heads=128, is_neox=True),
    "MLA concat N=16 T=8": partial(mla_concat, tokens=8, heads=16, is_neox=False),
    "MLA concat N=128 T=32": partial(mla_concat, tokens=32, heads=128, is_neox=False),
    "MLA concat N=128 T=128": partial(mla_concat, tokens=128, heads=128, is_neox=False),
    "MLA concat N=128 neox": partial(mla_concat, tokens=128, heads=128, is_neox=True),
    "MLA concat bf16": partial(mla_concat, tokens=128, heads=128, is_neox=False, wide=True),
    "MLA write": mla_write,
    "absorb T=8": partial(absorb, tokens=8, dtype=BF16),
    "absorb T=128": partial(absorb, tokens=128, dtype=BF16),
    "absorb fp32": partial(absorb, tokens=128, dtype=FP32),
    "GQA write": partial(gqa, heads=32, groups=8, is_neox=True, fused=False),
    "GQA rope and write": partial(gqa, heads=32, groups=8, is_neox=True, fused=True),
    "GQA rope and write, pairs": partial(gqa, heads=5, groups=1, is_neox=False, fused=True),
}
