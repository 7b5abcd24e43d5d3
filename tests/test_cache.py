"""The paged latent cache and its slots."""

from __future__ import annotations

import pytest
import torch

from mlalab import cache as cache_module
from mlalab.cache import PagedKVCache, PagedLatentCache, slots_of
from mlalab.errors import ConfigError, InputError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_auto_stores_the_activation_dtype(dtype):
    cache = PagedLatentCache(3, 4, 10, dtype=dtype)
    assert cache.storage_BKC.shape == (3, 4, 10)
    assert cache.storage_BKC.dtype == cache.typed_BKC.dtype == cache.typed_dtype == dtype
    assert (cache.block_size, cache.num_slots) == (4, 12)
    assert not cache.storage_BKC.any()


@pytest.mark.parametrize("typed", [torch.float8_e4m3fn, torch.float8_e4m3fnuz])
def test_fp8_is_bytes_viewed_without_a_copy(monkeypatch, typed):
    monkeypatch.setattr(cache_module, "fp8_dtype", lambda device: typed)
    cache = PagedLatentCache(3, 4, 10, kv_cache_dtype="fp8", dtype=torch.bfloat16)
    assert cache.storage_BKC.dtype == torch.uint8
    assert cache.typed_BKC.dtype == cache.rows_SC.dtype == typed
    assert cache.rows_SC.shape == (12, 10)
    assert cache.rows_SC.data_ptr() == cache.storage_BKC.data_ptr()
    cache.storage_BKC[1, 2] = torch.arange(10, dtype=torch.uint8)
    assert torch.equal(cache.rows_SC[6].view(torch.uint8), torch.arange(10, dtype=torch.uint8))


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8"])
def test_keys_and_values_lie_one_after_the_other(kv_cache_dtype):
    cache = PagedKVCache(3, 4, 2, 10, kv_cache_dtype=kv_cache_dtype, dtype=torch.bfloat16)
    assert cache.storage.shape == cache.typed.shape == (2, 3, 4, 2, 10)
    assert cache.storage.dtype == {"auto": torch.bfloat16, "fp8": torch.uint8}[kv_cache_dtype]
    assert cache.typed.dtype == cache.typed_dtype != torch.uint8
    assert (cache.block_size, cache.num_slots) == (4, 12)
    assert cache.typed.data_ptr() == cache.storage.data_ptr()
    assert not cache.storage.any()


def test_the_storage_dtype_is_one_of_two():
    with pytest.raises(ConfigError, match=r"must be one of auto, fp8, got 'fp8_e5m2'"):
        PagedLatentCache(1, 1, 2, kv_cache_dtype="fp8_e5m2")


def test_slots_are_block_times_size_plus_offset():
    table = torch.tensor([[7, 2, 9], [0, 5, 0]], dtype=torch.int32)
    slots = slots_of(table, query_lens=[3, 1], seq_lens=[6, 5], block_size=4)
    assert slots.tolist() == [7 * 4 + 3, 2 * 4 + 0, 2 * 4 + 1, 5 * 4 + 0]
    assert slots.dtype == torch.int64


def test_slots_of_nothing():
    nothing = slots_of(torch.zeros(0, 0, dtype=torch.int32), [], [], 4)
    assert (nothing.tolist(), nothing.dtype) == ([], torch.int64)
    assert slots_of(torch.zeros(2, 1, dtype=torch.int32), [0, 0], [3, 0], 4).numel() == 0


def test_slots_pass_two_to_the_31():
    table = torch.tensor([[2**30]], dtype=torch.int32)
    assert slots_of(table, [1], [2], 16).tolist() == [2**34 + 1]


def test_a_request_longer_than_its_blocks_is_refused():
    table = torch.zeros(1, 2, dtype=torch.int32)
    assert slots_of(table, [1], [8], 4).tolist() == [3]
    with pytest.raises(InputError, match="9 tokens does not fit its 2 blocks of 4; widen"):
        slots_of(table, [1], [9], 4)
