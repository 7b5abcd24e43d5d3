"""Which blocks of the paged cache are free."""

from __future__ import annotations

from collections.abc import Sequence

from mlalab.errors import ConfigError, InputError


class BlockPool:
    """Blocks `0..num_blocks - 1`, each free or in use; a call that raises changes nothing.

    Args:
        block_size: tokens that a block holds.

    Raises:
        ConfigError: a size below one.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        for name, value in (("num_blocks", num_blocks), ("block_size", block_size)):
            if type(value) is not int or value < 1:
                raise ConfigError(f"{name} must be a whole number, 1 or more, got {value!r}.")
        self.num_blocks, self.block_size = num_blocks, block_size
        self._free = list(range(num_blocks - 1, -1, -1))
        self._used: set[int] = set()

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks that were allocated and not released."""
        return len(self._used)

    def blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks hold `num_tokens`."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Take `count` free blocks.

        Raises:
            InputError: a negative count, or more than are free.
        """
        if not 0 <= count <= self.num_free:
            raise InputError(
                f"Cannot allocate {count} blocks: {self.num_free} of {self.num_blocks} are free."
            )
        blocks = [self._free.pop() for _ in range(count)]
        self._used.update(blocks)
        return blocks

    def release(self, blocks: Sequence[int]) -> None:
        """Give blocks back.

        Raises:
            InputError: one that is not in use, or that is named twice.
        """
        strange = [block for block in blocks if block not in self._used]
        if strange:
            raise InputError(
                f"Cannot release block {strange[0]}: it is not in use; release a block once, to "
                f"the pool that it came from."
            )
        if len({*blocks}) != len(blocks):
            raise InputError("Cannot release a block twice in one call.")
        self._used.difference_update(blocks)
        self._free.extend(blocks)
