"""Arguments of the ops that rotate and write rows, and the comparison of kernel and reference.

Inputs are slices of wider tensors. What is written lies between guard bands, and every byte of
every storage is compared. Operands of products are multiples of 1/8, which fp32 sums exactly in
every order: so results are the same bits on every device, and the reference always runs on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
M, POISON = 23, 7.25


@dataclass
class Case:
    """Sizes, types and flags of one call; each method below gives the arguments of the op it names.

    `turned` gives every tensor a last dimension that is not contiguous.
    """

    T: int = 3
    N: int = 3
    P: int = 6
    L: int = 6
    R: int = 6
    G: int = 2
    block_size: int = 4
    dtype: torch.dtype = BF16
    stored: torch.dtype = FN
    table: torch.dtype = FP32
    index: torch.dtype = torch.int64
    scale: float = 0.37
    is_neox: bool = False
    in_fp32: bool = True
    nope_first: bool = True
    turned: bool = False
    strange: bool = False
    slots: Any = "some"

    def __post_init__(self) -> None:
        self.num_slots = self.block_size * (self.T // self.block_size + 2)
        wide = self.P + self.R
        self.q = self.drawn(self.T, self.N, wide)
        self.q_nope, self.q_pe = self.q[..., : self.P], self.q[..., self.P :]
        latent = self.drawn(self.T, self.L + self.R)
        self.kv_c, self.k_pe = latent[:, : self.L], latent[:, self.L :]
        self.cos_sin = self.bent(torch.randn(M, self.R).to(self.table))
        positions = torch.randint(-9, M + 9, (self.T,)).to(self.index)
        self.positions = self.bent(positions) if self.T else positions
        self.q_scale, self.k_scale = torch.tensor(self.scale), torch.tensor([self.scale * 1.5])
        if isinstance(self.slots, str):
            slots = torch.randperm(self.num_slots)[: self.T]
            slots[1::3] = torch.tensor([-1, self.num_slots, -(2**31)]).repeat(self.T)[: self.T][
                1::3
            ]
            self.slots = self.bent(slots[: self.T - self.T // 5].to(self.index))

    def drawn(self, *shape: int, strange: bool = True) -> Tensor:
        """Random multiples of 1/8, some that no format holds, as a slice of something wider."""
        x = ((torch.randn(shape) * 8).round() / 8).to(self.dtype)
        if self.strange and strange:
            for offset, value in enumerate((torch.inf, -torch.inf, torch.nan, 6e4, 600.0, -0.0)):
                x.view(-1)[offset * 5 :: 31] = value
        return self.bent(x)

    def bent(self, x: Tensor) -> Tensor:
        if self.turned:
            return torch.stack((x.movedim(-1, 0), x.movedim(-1, 0)), -1)[..., 0].movedim(0, -1)
        return banded(*x.shape, dtype=x.dtype).copy_(x) if x.dim() > 1 else x

    def cache(self) -> Tensor:
        return self.output(self.num_slots, self.L + self.R)

    def output(self, *shape: int) -> Tensor:
        poison = torch.full(shape, POISON).to(self.stored)
        return self.bent(poison) if self.turned else banded(*shape, dtype=self.stored)

    def fused_rope_unified_mla_kv_cache_update(self) -> list[Any]:
        first = [self.positions, self.q_pe, self.k_pe, self.kv_c, self.cos_sin, self.is_neox]
        return [*first, self.cache(), self.slots, self.k_scale, self.in_fp32]

    def fused_qk_rope_concat_and_cache_mla(self) -> list[Any]:
        width = self.L + self.R
        q_out = self.output(self.T, self.N, width)
        rows = torch.full((self.num_slots + 4, width), POISON).to(self.stored)[2:-2]
        blocks = rows.view(-1, self.block_size, width)
        scales, angles = [self.k_scale, self.q_scale], self.cos_sin.chunk(2, -1)
        inputs = [self.drawn(self.T, self.N, self.L), self.q_pe, self.kv_c, self.k_pe]
        flags = [self.is_neox, self.nope_first, self.in_fp32]
        return [*inputs, blocks, q_out, self.slots, *scales, self.positions, *angles, *flags]

    def mla_decode_q_prep(self) -> list[Any]:
        return [
            self.q,
            self.drawn(self.N, self.P, self.L, strange=False),
            self.q_scale,
            self.stored,
        ]

    def unified_mla_kv_cache_update(self) -> list[Any]:
        return [self.kv_c, self.k_pe[:, None], self.cache(), self.slots, self.k_scale]

    def paged(self) -> Tensor:
        """A cache whose blocks hold more than its rows, and whose rows more than their heads."""
        shape = (2, self.num_slots // self.block_size, self.block_size, self.G + 1, self.R)
        return self.output(*shape)[..., : self.G, :]

    def unified_kv_cache_update(self) -> list[Any]:
        key, value = (self.drawn(self.T, self.G, self.R) for _ in range(2))
        return [key, value, self.paged(), self.slots, self.q_scale, self.k_scale]

    def fused_rope_and_unified_kv_cache_update(self) -> list[Any]:
        key, value, *rest = self.unified_kv_cache_update()
        middle = [self.positions, self.cos_sin, self.is_neox]
        return [self.q_pe, key, value, *middle, *rest, self.in_fp32]


def banded(*shape: int, dtype: torch.dtype) -> Tensor:
    """Poison with guard bands before and after it and beside its rows."""
    rows, *middle, width = shape
    return torch.full((rows + 2, *middle, width + 3), POISON).to(dtype)[1:-1, ..., 1:-2]


def twin(values: list[Any], device: Any) -> list[Any]:
    """Copy arguments to `device`; what shared a storage before shares one after."""
    copies: dict[int, Tensor] = {}

    def copied(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        storage = x.untyped_storage()
        if storage._cdata not in copies:
            flat = torch.empty(0, dtype=torch.uint8).set_(storage)
            copies[storage._cdata] = flat.clone().to(device)
        memory = copies[storage._cdata].untyped_storage()
        empty = torch.empty(0, dtype=x.dtype, device=device)
        return empty.set_(memory, x.storage_offset(), x.size(), x.stride())

    return [copied(x) for x in values]


def whole(x: Tensor) -> Tensor:
    """All memory of the storage that `x` lies in."""
    return torch.empty(0, dtype=x.dtype, device=x.device).set_(x.untyped_storage()).cpu()


def same(a: Tensor, b: Tensor) -> Tensor:
    """Where two tensors hold the same bits, or NaN both."""
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.itemsize]
    nan = a.float().isnan() & b.float().isnan()
    return (a.view(bits) == b.view(bits)) | nan


def module_of(op: str, module: str = "triton_kernel") -> Any:
    return import_module(f"mlalab_kernels.{op}.{module}")


def agree(op: str, arguments: list[Any], device: Any) -> None:
    """Run kernel and reference on copies of `arguments`, and compare all memory after."""
    kernel, reference = (
        getattr(module_of(op, module), op) for module in ("triton_kernel", "reference")
    )
    formats = {x.dtype for x in arguments if isinstance(x, Tensor)} | set(arguments[-1:])
    if FNUZ in formats and torch.device(device).type == "cuda" and torch.version.hip is None:
        pytest.skip("no NVIDIA GPU computes with float8_e4m3fnuz")
    wanted, got = twin(arguments, "cpu"), twin(arguments, device)
    returned = reference(*wanted), kernel(*got)
    if returned[0] is not None:
        assert returned[0].stride() == returned[1].stride()
        wanted, got = [*wanted, returned[0]], [*got, returned[1]]
    for index, (a, b) in enumerate(zip(wanted, got, strict=True)):
        if isinstance(a, Tensor):
            assert b.device.type == torch.device(device).type
            assert a.shape == b.shape
            assert a.dtype == b.dtype
            differ = int((~same(whole(a), whole(b))).sum())
            assert not differ, f"{op}: {differ} elements of argument {index} differ"
