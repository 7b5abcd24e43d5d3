"""The block pool: every block is free or in use, and a call that raises changes nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlalab.errors import ConfigError, InputError
from mlalab.serving.blocks import BlockPool


def test_blocks_go_out_once_and_come_back():
    pool = BlockPool(5, 16)
    first, second = pool.allocate(2), pool.allocate(3)
    assert sorted(first + second) == [0, 1, 2, 3, 4]
    assert (pool.num_free, pool.num_used) == (0, 5)
    pool.release(first)
    assert sorted(pool.allocate(2)) == sorted(first)
    assert pool.allocate(0) == []


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (16, 1), (17, 2), (33, 3)])
def test_blocks_for_tokens(tokens, blocks):
    assert BlockPool(1, 16).blocks_for(tokens) == blocks


@pytest.mark.parametrize("count", [-1, 4])
def test_what_is_not_there_is_not_allocated(count):
    pool = BlockPool(3, 1)
    with pytest.raises(InputError, match=f"Cannot allocate {count} blocks: 3 of 3 are free"):
        pool.allocate(count)
    assert (pool.num_free, pool.num_used) == (3, 0)


@pytest.mark.parametrize(
    ("released", "message"),
    [
        ([0, 7], "Cannot release block 7: it is not in use"),
        ([0, 2], "Cannot release block 2"),
        ([0, 0], "twice in one call"),
        ([-1], "Cannot release block -1"),
    ],
)
def test_what_is_not_in_use_is_not_released_nor_anything_with_it(released, message):
    pool = BlockPool(3, 1)
    assert sorted(pool.allocate(2)) == [0, 1]
    with pytest.raises(InputError, match=message):
        pool.release(released)
    assert (pool.num_free, pool.num_used) == (1, 2)


def test_a_double_release_is_refused():
    pool = BlockPool(3, 1)
    blocks = pool.allocate(2)
    pool.release(blocks)
    with pytest.raises(InputError, match="release a block once"):
        pool.release(blocks)
    assert pool.num_free == 3


@pytest.mark.parametrize("sizes", [(0, 16), (4, 0), (2.0, 16), (True, 16)])
def test_sizes_that_cannot_be(sizes):
    with pytest.raises(ConfigError, match="must be a whole number, 1 or more"):
        BlockPool(*sizes)


@given(st.lists(st.integers(0, 6), max_size=20))
def test_no_block_is_with_two_owners_or_lost(counts):
    pool, owned = BlockPool(12, 4), []
    for count in counts:
        if count > pool.num_free:
            pool.release(owned.pop(0))
            continue
        owned.append(pool.allocate(count))
        out = [block for blocks in owned for block in blocks]
        assert len({*out}) == len(out) == pool.num_used == 12 - pool.num_free
