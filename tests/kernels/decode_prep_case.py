"""Inputs of one decode step, outputs poisoned and between guard bands, and what must come out.

The product's operands are multiples of 1/8, which fp32 sums exactly in every order: so results are
the same bits on every device, and equality is what the tests ask for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mlalab.bench.parity import steps_apart
from mlalab_kernels.fused_absorb_qk_rope_concat_and_cache_mla.reference import (
    fused_absorb_qk_rope_concat_and_cache_mla as reference,
)

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
GUARD = 3


@dataclass
class Step:
    """One call's arguments; the query is a slice of a wider tensor, the key of the latent's."""

    T: int
    N: int = 3
    P: int = 8
    R: int = 4
    L: int = 16
    dtype: torch.dtype = BF16
    query: torch.dtype = FN
    cache: torch.dtype = FN
    q_scale: float = 0.61
    k_scale: float = 0.37
    table: torch.dtype = FP32
    index: torch.dtype = torch.int64
    device: Any = "cpu"
    exact: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.T * 1000 + self.N)

        def normal(*shape: int, dtype: torch.dtype = self.dtype) -> Tensor:
            return torch.randn(shape, generator=generator).to(dtype).to(self.device)

        self.q = normal(self.T, self.N, self.P + self.R + 1)[..., :-1]
        self.w_uk = normal(self.N, self.P + 2, self.L)[:, : self.P]
        if self.exact:
            self.q[..., : self.P] = (self.q[..., : self.P] * 8).round() / 8
            self.w_uk.copy_((self.w_uk * 8).round() / 8)
        self.latent = normal(self.T, self.L + self.R + 2)
        self.cos_sin = normal(40, self.R + 1, dtype=self.table)[:, :-1]
        # Made here: a capture may copy nothing from the host.
        self.scales = torch.tensor([[self.k_scale], [self.q_scale]]).to(self.device)
        self.num_slots = self.T + 5
        order = torch.randperm(self.num_slots, generator=generator)[: self.T]
        self.slots = order.to(self.index).to(self.device)
        reach = (self.T,)
        positions = torch.randint(-9, 50, reach, generator=generator)
        self.positions = positions.to(self.index).to(self.device)

    def run(self, kernel: Any, **more: Any) -> dict[str, Tensor]:
        """Call `kernel`; return what it wrote, guard bands included."""
        rows, width = self.num_slots + 2 * GUARD, self.L + self.R
        cache = poison(rows, width, dtype=self.cache, device=self.device)
        query = poison(self.T + 2 * GUARD, self.N, width, dtype=self.query, device=self.device)
        written = {"query": query, "cache": cache}
        options = {**self.options, **more}
        if options.pop("rotated", False):
            shapes = {"q_pe_out": (self.T, self.N, self.R), "k_pe_out": (self.T, self.R)}
            outs = {k: poison(*s, dtype=self.dtype, device=self.device) for k, s in shapes.items()}
            options |= outs
            written |= outs
        kernel(
            *(self.q[..., : self.P], self.q[..., self.P :], self.w_uk),
            *(self.latent[:, : self.L], self.latent[:, self.L : width]),
            *(cache[GUARD:-GUARD], query[GUARD : GUARD + self.T], options.pop("slots", self.slots)),
            *(*self.scales, self.positions, options.pop("cos_sin", self.cos_sin)),
            options.pop("is_neox", False),
            **options,
        )
        return written

    def expected(self, **more: Any) -> dict[str, Tensor]:
        return self.run(reference, **more)


def poison(*shape: int, dtype: torch.dtype, device: Any) -> Tensor:
    """A value that no input leads to, so that an unwritten element shows."""
    return torch.full(shape, 7.25, device=device).to(dtype)


def unlike(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    """Which outputs differ in any value; NaN equals NaN."""
    return [
        f"{name}: {int((~same(got[name], wanted[name])).sum())} values"
        for name in wanted
        if not bool(same(got[name], wanted[name]).all())
    ]


def same(a: Tensor, b: Tensor) -> Tensor:
    """Where the bits are the same, or both are NaN."""
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[a.element_size()]
    equal = a.contiguous().view(bits) == b.contiguous().view(bits)
    return equal | (a.float().isnan() & b.float().isnan())


def absorbed_unlike(got: Tensor, wanted: Tensor, latent: int) -> float:
    """The share of absorbed values that differ; raises if one differs by more than a step.

    Where a sum cancels, 16 bits have steps finer than what fp32 rounded away on the way there.
    """
    a, b = (x[..., :latent] for x in (got, wanted))
    rounding = b.float().abs().amax() * 2**-20
    cancelled = (a.float() - b.float()).abs() <= rounding
    one_step = (steps_apart(a, b) <= 1) | cancelled
    assert bool(one_step.all()), "an absorbed value is more than one step away"
    return float((~same(a, b)).float().mean())
