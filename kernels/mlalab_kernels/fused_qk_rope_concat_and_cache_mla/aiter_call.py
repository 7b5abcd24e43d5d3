"""AITER's kernel of this name, called as its source documents it; we have not run it on ROCm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from mlalab_kernels.fused_qk_rope_concat_and_cache_mla.reference import check_dtypes
from mlalab_kernels.numerics import FP8_DTYPES
from mlalab_kernels.refusal import RefusedError

_NAME = "fused_qk_rope_concat_and_cache_mla"
_halves: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""Table → dtype → (version of the table, cos, sin)."""


def fused_qk_rope_concat_and_cache_mla(
    q_nope: Tensor,
    q_pe: Tensor,
    kv_c: Tensor,
    k_pe: Tensor,
    kv_cache: Tensor,
    q_out: Tensor,
    slot_mapping: Tensor,
    k_scale: Tensor,
    q_scale: Tensor,
    positions: Tensor,
    cos_cache: Tensor,
    sin_cache: Tensor,
    is_neox: bool,
    is_nope_first: bool,
    rope_in_fp32: bool = True,
) -> None:
    """Do what the reference of this name does, in one launch of AITER's.

    Arguments are the reference's. Three things differ: rotations go from fp32 straight to the
    stored type (about 3 % of FP8 bytes are one step off the staged reference); cos and sin are used
    in the activation dtype, which costs a copy per call unless they come from `table_halves`; and a
    slot beyond the cache is not caught.

    Raises:
        RefusedError: AITER has no kernel for these arguments.
        RuntimeError: AITER is missing or not AMD's.
    """
    tokens, _, latent = q_nope.shape
    check_served(q_pe, latent, kv_cache, q_out, is_nope_first, rope_in_fp32)
    kernel = _kernel()
    if tokens == 0:
        return
    inputs = [x if x.stride(-1) == 1 else x.contiguous() for x in (q_nope, q_pe, kv_c, k_pe)]
    # One row per block: for few tokens AITER has a faster kernel for that.
    rows_S1C = kv_cache.view(-1, 1, kv_cache.size(-1))
    _check_strides((*inputs, rows_S1C, q_out))
    # It takes the number of tokens from the slots, and skips the query of a negative slot unless
    # told to compute them all.
    missing = tokens - slot_mapping.size(0)
    slots_T = torch.nn.functional.pad(slot_mapping.to(torch.int64), (0, missing), value=-1)
    kernel(
        *inputs,
        *(rows_S1C, q_out, slots_T, k_scale.view(1), q_scale.view(1)),
        positions.to(torch.int64).contiguous(),
        *(x.to(q_pe.dtype).contiguous() for x in (cos_cache, sin_cache)),
        *(is_neox, is_nope_first),
        compute_all_q_rope=True,
    )


def table_halves(cos_sin_cache_MR: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cos and sin of a table as AITER wants them: two contiguous tensors, of `dtype`.

    They are made once per table and dtype, and again after the table was changed in place. A table
    made in inference mode keeps no count of changes and is taken to be constant.

    Args:
        cos_sin_cache_MR: `[M, R]`, cos half then sin half.
    """
    table = cos_sin_cache_MR
    version = -1 if table.is_inference() else table._version
    made = _halves.setdefault(table, {})
    if dtype in made and made[dtype][0] == version:
        return made[dtype][1:]
    cos, sin = (half.to(dtype).contiguous() for half in table.chunk(2, dim=-1))
    # What is computed while a graph is captured has no value before that graph runs.
    if not (table.is_cuda and torch.cuda.is_current_stream_capturing()):
        made[dtype] = (version, cos, sin)
    return cos, sin


def _kernel() -> Callable[..., Any]:
    try:
        import aiter
    except ImportError as error:
        raise RuntimeError(
            f"AITER cannot be imported ({error}); build github.com/ROCm/aiter, or use another "
            f"provider."
        ) from error
    kernel = getattr(aiter, _NAME, None)
    if kernel is None:
        raise RuntimeError(
            f"The installed 'aiter' has no {_NAME}: it is too old, or PyPI's async-iterator "
            f"package of that name; uninstall it and build github.com/ROCm/aiter."
        )
    return kernel


def check_served(
    q_pe: Tensor,
    latent: int,
    kv_cache: Tensor,
    q_out: Tensor,
    is_nope_first: bool,
    rope_in_fp32: bool,
) -> None:
    """Refuse what AITER has no kernel for, from sizes alone; `latent` is L.

    Raises:
        RefusedError: saying what.
        RuntimeError: raw bytes, which no provider takes.
    """
    check_dtypes(kv_cache.dtype, q_out.dtype)
    if not rope_in_fp32:
        raise RefusedError("AITER rotates in fp32 only; call it with rope_in_fp32=True.")
    for name, x in (("kv_cache", kv_cache), ("q_out", q_out)):
        if x.dtype not in FP8_DTYPES and x.dtype != q_pe.dtype:
            raise RefusedError(
                f"AITER stores in FP8 or in the activations' {q_pe.dtype}, {name} is {x.dtype}; "
                f"allocate it in one of those."
            )
        if not x.is_contiguous():
            raise RefusedError(f"AITER writes {name} as it lies; make it contiguous.")
    tokens, heads, rope = q_pe.shape
    per_head = is_nope_first and latent <= 512 and tokens < 256
    per_token = latent == 512 and latent * heads >= 2048
    if rope != 64 or not (per_head or per_token):
        raise RefusedError(
            f"AITER prepares the query of a padded token only for R = 64 and either L = 512 with "
            f"at least 4 heads or, nope first, L <= 512 with fewer than 256 tokens; got "
            f"R = {rope}, L = {latent}, {heads} heads, {tokens} tokens, "
            f"is_nope_first={is_nope_first}; use another provider."
        )


def _check_strides(tensors: tuple[Tensor, ...]) -> None:
    longest = max(stride for x in tensors for stride in x.stride())
    if longest >= 2**31:
        raise RefusedError(
            f"AITER holds strides in 32 bits, one of these tensors has a stride of {longest}; "
            f"pass a contiguous copy."
        )
