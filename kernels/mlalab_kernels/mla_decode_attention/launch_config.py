"""How the paged decode attention is cut up for a device: tiles from a table, splits from a sum."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor

from mlalab_kernels.launch import arch_of
from mlalab_kernels.numerics import FP8_DTYPES

MOST_SPLITS = 128
_START_TILES = 3
"""What starting a program and merging its result costs, in tiles of the cache."""


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes of one launch.

    Args:
        block_h, block_s: query rows of a program and cache rows of a tile; powers of two from 16.
        stages: 1: the next tile waits in registers, as it always does where a tile has to be
            converted; from 2 on, the compiler's pipeline to shared memory.
        warps: of every program.
        per_sm: programs that one multiprocessor holds at a time.
        splits: programs that share one sequence, at most 128; None: as many as fill the device.
    """

    block_h: int = 16
    block_s: int = 32
    stages: int = 1
    warps: int = 4
    per_sm: int = 1
    splits: int | None = None


_PLAIN = Config()
# Architecture, whether the cache is FP8 -> from how many heads on, the configuration: the fastest
# that spills nothing, on an H200 at 32 requests of 4 096 tokens (README).
_TABLE: Mapping[tuple[str, bool], tuple[tuple[int, Config], ...]] = {
    ("sm_90", False): ((0, Config(16, 64, 2, 8, 2)), (17, Config(64, 64, 2, 8))),
    ("sm_90", True): ((0, Config(16, 32, 1, 4, 2)), (17, Config(16, 32, 1, 4))),
}


def config_for(arch: str, num_heads: int, cache_dtype: torch.dtype) -> Config:
    """Return the configuration for a device, or a plain one that runs anywhere."""
    if cache_dtype == torch.float32:
        return _PLAIN
    rows = _TABLE.get((arch, cache_dtype in FP8_DTYPES), ((0, _PLAIN),))
    return [config for heads, config in rows if heads <= num_heads][-1]


@functools.lru_cache(maxsize=4096)
def splits_for(programs: int, tiles: int, slots: int) -> int:
    """Return into how many parts to cut each sequence, from sizes that the host knows.

    Args:
        programs: programs without a split.
        tiles: of the longest sequence.
        slots: programs that the device holds at a time.
    """

    def duration(splits: int) -> int:
        waves, share = -(-programs * splits // slots), -(-tiles // splits)
        return waves * (share + _START_TILES)

    return min(range(1, max(1, min(tiles, MOST_SPLITS)) + 1), key=duration)


@functools.cache
def processors_of(device: torch.device) -> int:
    """Return how many multiprocessors a GPU has; 4 stands for those of a CPU."""
    if device.type == "cpu":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count


DOT_TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


def arithmetic_of(q_TNC: Tensor, kv_cache_BKC: Tensor) -> tuple[tl.dtype, str]:
    """Return the type of the products' factors and how exact a product of fp32 is.

    fp16 holds every FP8 value, and the hardware converts FP8 to nothing else at once.
    """
    kept = {x.dtype for x in (q_TNC, kv_cache_BKC)} - set(FP8_DTYPES)
    dtype = DOT_TYPES[kept.pop()] if len(kept) == 1 else tl.float32 if kept else tl.float16
    split_in_three = arch_of(q_TNC.device).startswith("sm_")
    return dtype, "tf32x3" if split_in_three else "ieee"
