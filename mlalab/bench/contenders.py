"""The ways to prepare the decode query and write the cache, on one layer's tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mlalab.bench.cells import CellSpec
from mlalab.env import fp8_dtype
from mlalab.kernels import load
from mlalab_kernels.numerics import FP8_DTYPES, absorb, gather_cos_sin, quantize, rotate

_TABLE_ROWS, _CACHE_ROWS = 4096, 4096
ABSORB_OP = "fused_absorb_qk_rope_concat_and_cache_mla"
CONCAT_OP = "fused_qk_rope_concat_and_cache_mla"


@dataclass(frozen=True, slots=True)
class Layer:
    """Tensors of one layer, as a model holds them: slices of wider ones where it slices.

    Ids, scales and table are the step's: every layer has the same.

    Args:
        q_nope, q_pe: `[T, N, P]` and `[T, N, R]`, of one tensor; w_uk: `[N, P, L]`.
        kv_c, k_pe: `[T, L]` and `[T, R]`; cache: `[slots, L + R]`; q_out: `[T, N, L + R]`.
        slots, positions: `[T]` int64; table: `[M, R]` fp32; k_scale, q_scale: fp32, one element.
    """

    q_nope: Tensor
    q_pe: Tensor
    w_uk: Tensor
    kv_c: Tensor
    k_pe: Tensor
    cache: Tensor
    q_out: Tensor
    slots: Tensor
    k_scale: Tensor
    q_scale: Tensor
    positions: Tensor
    table: Tensor


Run = Callable[[Layer], Tensor | None]
"""Prepares one layer; returns the query where it is not written to `q_out`."""


def make_layers(spec: CellSpec, count: int, device: torch.device) -> list[Layer]:
    """Return `count` layers of random inputs, with nothing shared but ids, scales and table."""
    random = torch.Generator(device).manual_seed(spec.seed)
    stored = {"fp8": fp8_dtype(device), "bf16": torch.bfloat16}
    query, cache = (stored[f] for f in spec.formats)
    tokens, width = spec.tokens, spec.latent + spec.rope

    def normal(*shape: int, std: float = 1.0) -> Tensor:
        x = torch.randn(shape, generator=random, device=device, dtype=torch.bfloat16)
        return x * std

    rows = max(_CACHE_ROWS, tokens)
    slots_T = torch.randperm(rows, generator=random, device=device)[:tokens]
    positions_T = torch.randint(_TABLE_ROWS, (tokens,), generator=random, device=device)
    angles = torch.rand(_TABLE_ROWS, spec.rope // 2, generator=random, device=device) * 6.28
    table_MR = torch.cat((angles.cos(), angles.sin()), dim=-1)
    k_scale, q_scale = (torch.tensor(x, device=device) for x in (0.037, 0.061))

    def layer() -> Layer:
        q_TNH = normal(tokens, spec.heads, spec.nope + spec.rope)
        # The checkpoint keeps W_UV behind W_UK, head by head.
        w_kv_b = normal(spec.heads, 2 * spec.nope, spec.latent, std=spec.nope**-0.5)
        q_nope_TNP, q_pe_TNR = q_TNH.split([spec.nope, spec.rope], dim=-1)
        return Layer(
            q_nope_TNP,
            q_pe_TNR,
            w_kv_b[:, : spec.nope],
            normal(tokens, spec.latent),
            normal(tokens, width)[:, spec.latent :],
            normal(rows, width).to(cache),
            torch.empty(tokens, spec.heads, width, dtype=query, device=device),
            slots_T,
            k_scale,
            q_scale,
            positions_T,
            table_MR,
        )

    return [layer() for _ in range(count)]


def plain_chain(
    q_nope_TNP: Tensor,
    q_pe_TNR: Tensor,
    w_uk_NPL: Tensor,
    kv_c_TL: Tensor,
    k_pe_TR: Tensor,
    stored_SC: Tensor,
    query_dtype: torch.dtype,
    cache_dtype: torch.dtype,
    slots_T: Tensor,
    k_scale: Tensor,
    q_scale: Tensor,
    positions_T: Tensor,
    table_MR: Tensor,
) -> Tensor:
    """Return the query and write the cache, op by op; for slots that all lie in the cache.

    The reference selects the slots to write, which waits for the GPU: that cannot be captured.

    Args:
        stored_SC: the cache, as bytes when its dtype is FP8; written.
    """
    cos_TH, sin_TH = gather_cos_sin(table_MR, positions_T)
    q_rot = rotate(q_pe_TNR, cos_TH, sin_TH, is_neox=False, in_fp32=True)
    k_rot = rotate(k_pe_TR.unsqueeze(1), cos_TH, sin_TH, is_neox=False, in_fp32=True).squeeze(1)
    row_TC = quantize(torch.cat((kv_c_TL, k_rot), dim=-1), k_scale, cache_dtype)
    stored_SC[slots_T] = row_TC.view(stored_SC.dtype)
    query = torch.cat((absorb(q_nope_TNP, w_uk_NPL), q_rot), dim=-1)
    return quantize(query, q_scale, query_dtype)


def _chain(function: Callable[..., Tensor]) -> Run:
    def run(layer: Layer) -> Tensor:
        cache = layer.cache
        stored = cache.view(torch.uint8) if cache.dtype in FP8_DTYPES else cache
        return function(
            *(layer.q_nope, layer.q_pe, layer.w_uk, layer.kv_c, layer.k_pe),
            *(stored, layer.q_out.dtype, cache.dtype, layer.slots),
            *(layer.k_scale, layer.q_scale, layer.positions, layer.table),
        )

    return run


def _inductor() -> Run:
    # Every size anew: a chain compiled for one more size would run into the recompile limit.
    torch._dynamo.reset()
    return _chain(torch.compile(plain_chain, dynamic=False, fullgraph=True))


def _two_launches() -> Run:
    kernel = load(CONCAT_OP, "triton")

    def run(layer: Layer) -> None:
        kernel(
            *(absorb(layer.q_nope, layer.w_uk), layer.q_pe),
            *(layer.kv_c, layer.k_pe, layer.cache, layer.q_out, layer.slots),
            *(layer.k_scale, layer.q_scale, layer.positions),
            *layer.table.chunk(2, dim=-1),
            is_neox=False,
            is_nope_first=True,
        )

    return run


def one_launch(provider: str = "triton", **options: Any) -> Run:
    """Return the fused kernel with `options` of its own, or another provider's."""
    kernel = load(ABSORB_OP, provider)

    def run(layer: Layer) -> None:
        kernel(
            *(layer.q_nope, layer.q_pe, layer.w_uk, layer.kv_c, layer.k_pe),
            *(layer.cache, layer.q_out, layer.slots, layer.k_scale, layer.q_scale),
            *(layer.positions, layer.table),
            is_neox=False,
            **options,
        )

    return run


def staged_reference() -> Run:
    """Return what kernels are judged by."""
    return one_launch("reference")


CONTENDERS: Mapping[str, Callable[[], Run]] = {
    "plain": lambda: _chain(plain_chain),
    "inductor": _inductor,
    "two": _two_launches,
    "one": one_launch,
    "direct": lambda: one_launch(staged=False),
}
"""Name → how to get it ready; "one", "two" and "direct" (one launch that rounds once) are ours."""

CHECKED = ("two", "one")
