"""How the one launch is cut up: by the measured table, and by what tensors and device allow."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, fields, replace

import torch
import triton
from torch import Tensor

from mlalab_kernels.launch import arch_of
from mlalab_kernels.tuning import ENVIRONMENT, nearest, table_of

OP = "fused_absorb_qk_rope_concat_and_cache_mla"
COPY_ENGINE = ("sm_90", "sm_100", "sm_103", "sm_120")
"""Architectures with tensor descriptors in hardware and launches that overlap."""


@dataclass(frozen=True, slots=True)
class Config:
    """How one launch is cut up; sizes are powers of two.

    Args:
        block_t, block_l: tokens and latent columns of a product's tile.
        tiles: token tiles that one program multiplies by the tile of W_UK it holds.
        stages: token tiles in flight.
        warps: of every program.
        rows: query rows that one program rotates.
        described: move tiles by tensor descriptors (NVIDIA's copy engine) instead of pointers.
        overlap: begin before the kernel launched before has ended, and fetch W_UK meanwhile.
        rotations_first: programs that rotate, or write the cache, begin before those that multiply.
    """

    block_t: int = 16
    block_l: int = 128
    tiles: int = 1
    stages: int = 1
    warps: int = 4
    rows: int = 16
    described: bool = False
    overlap: bool = False
    rotations_first: bool = False


def config_for(arch: str, num_heads: int, num_tokens: int, dtype: torch.dtype) -> Config:
    """Return the measured configuration nearest to this call, or a plain one that runs anywhere.

    Raises:
        RuntimeError: the user's tuning table cannot be used.
    """
    return _chosen(arch, num_heads, num_tokens, dtype, os.environ.get(ENVIRONMENT))


@functools.lru_cache(maxsize=4096)
def _chosen(
    arch: str, num_heads: int, num_tokens: int, dtype: torch.dtype, user_file: str | None
) -> Config:
    names = tuple(field.name for field in fields(Config))
    rows = table_of(OP, names, user_file)
    row = nearest(rows, arch, str(dtype).removeprefix("torch."), num_heads, num_tokens)
    if row is None:
        return Config(block_t=min(64, max(16, triton.next_power_of_2(num_tokens))))
    return Config(**{name: row[name] for name in names})


def fitted(config: Config, latent: int, tensors: tuple[Tensor, ...]) -> Config:
    """Return `config` without what these tensors or this device cannot do."""
    able = arch_of(tensors[0].device) in COPY_ENGINE
    if config.described and not (able and _describable(config, latent, *tensors)):
        config = replace(config, described=False, stages=min(config.stages, 2))
    # fp32 tiles are twice as large, and fp32 products take no matrix unit.
    largest = 32 if tensors[0].element_size() == 4 else 256
    block_l = min(config.block_l, max(16, triton.next_power_of_2(latent)), largest)
    block_t = min(config.block_t, largest)
    return replace(config, block_l=block_l, block_t=block_t, overlap=config.overlap and able)


def _describable(config: Config, latent: int, *tensors: Tensor) -> bool:
    """Whether the copy engine takes these tensors: whole tiles, everything 16-byte aligned."""
    nope = tensors[0].size(-1)
    aligned = all(
        x.data_ptr() % 16 == 0 and all(n * x.element_size() % 16 == 0 for n in x.stride()[:-1])
        for x in tensors
    )
    whole = nope in (16, 32, 64, 128, 256) and latent % config.block_l == 0
    return aligned and whole and tensors[0].element_size() == 2
