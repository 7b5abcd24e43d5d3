"""Paged caches: a latent cache for MLA, a key and value cache for ordinary attention.

FP8 rows are stored as `uint8`, as vLLM does, and viewed as the device's FP8 type, without a copy,
only where a kernel is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mlalab.env import fp8_dtype
from mlalab.errors import ConfigError, InputError

KVCacheDtype = Literal["auto", "fp8"]
PAD_SLOT = -1
"""Slot of a padded token: never written."""


def typed_dtype(
    kv_cache_dtype: KVCacheDtype, dtype: torch.dtype, device: torch.device | str | None
) -> torch.dtype:
    """Return the type that cached numbers have: the activations' `dtype`, or the device's FP8.

    Raises:
        ConfigError: no such `kv_cache_dtype`.
    """
    if kv_cache_dtype not in get_args(KVCacheDtype):
        raise ConfigError(
            f"kv_cache_dtype must be one of {', '.join(get_args(KVCacheDtype))}, "
            f"got {kv_cache_dtype!r}."
        )
    return fp8_dtype(device or torch.get_default_device()) if kv_cache_dtype == "fp8" else dtype


class PagedCache:
    """Rows of one layer in blocks, one row per token.

    Args:
        shape: of the storage.
        blocks_at: the dimension of the storage that counts blocks; that of slots comes next.
        kv_cache_dtype: "auto" stores rows in `dtype`; "fp8" stores bytes.
        dtype: activation dtype of the layer.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        blocks_at: int,
        *,
        kv_cache_dtype: KVCacheDtype = "auto",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        self.typed_dtype = typed_dtype(kv_cache_dtype, dtype, device)
        self.kv_cache_dtype = kv_cache_dtype
        stored = torch.uint8 if kv_cache_dtype == "fp8" else dtype
        self.storage = torch.zeros(shape, dtype=stored, device=device)
        self._num_blocks, self._block_size = shape[blocks_at : blocks_at + 2]

    @property
    def block_size(self) -> int:
        """Slots in one block."""
        return self._block_size

    @property
    def num_slots(self) -> int:
        """Rows in all."""
        return self._num_blocks * self._block_size

    @property
    def typed(self) -> Tensor:
        """The storage seen in the type its bytes mean; zero-copy."""
        return self.storage.view(self.typed_dtype)


class PagedLatentCache(PagedCache):
    """Cache of one MLA layer, `[num_blocks, block_size, C]`: rows `[latent | rotated rope key]`.

    Args:
        options: those of `PagedCache`.
    """

    def __init__(self, num_blocks: int, block_size: int, cache_dim: int, **options: Any) -> None:
        super().__init__((num_blocks, block_size, cache_dim), 0, **options)

    @property
    def storage_BKC(self) -> Tensor:
        """The storage."""
        return self.storage

    @property
    def typed_BKC(self) -> Tensor:
        """The storage seen in the type its bytes mean; zero-copy."""
        return self.typed

    @property
    def rows_SC(self) -> Tensor:
        """The typed storage as one row per slot; zero-copy."""
        return self.typed.flatten(0, 1)


class PagedKVCache(PagedCache):
    """Cache of one ordinary layer, `[2, num_blocks, block_size, G, H]`: keys, then values.

    Args:
        options: those of `PagedCache`.
    """

    def __init__(
        self, num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int, **options: Any
    ) -> None:
        super().__init__((2, num_blocks, block_size, num_kv_heads, head_dim), 1, **options)


def slots_of(
    block_table: Tensor, query_lens: Sequence[int], seq_lens: Sequence[int], block_size: int
) -> Tensor:
    """Return the slot of each new token, `[T]` int64: block · block_size + offset.

    Args:
        block_table: `[requests, max_blocks]` int, the blocks of each request in order.
        query_lens, seq_lens: new tokens and total tokens (new ones included) of each request.

    Raises:
        InputError: a request is longer than its blocks.
    """
    slots = []
    for blocks, query_len, seq_len in zip(block_table, query_lens, seq_lens, strict=True):
        if seq_len > blocks.numel() * block_size:
            raise InputError(
                f"A request of {seq_len} tokens does not fit its {blocks.numel()} blocks of "
                f"{block_size}; widen the block table."
            )
        at = torch.arange(seq_len - query_len, seq_len, device=block_table.device)
        slots.append(blocks[at // block_size].long() * block_size + at % block_size)
    if not slots:
        return torch.empty(0, dtype=torch.int64, device=block_table.device)
    return torch.cat(slots)
