"""Ranges of token counts that one compiled graph serves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mlalab.errors import ConfigError


@dataclass(frozen=True, slots=True, order=True)
class CompileRange:
    """Token counts `start..end`, both ends included."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise ConfigError(f"A compile range needs 0 <= start <= end, got {self}.")

    def __str__(self) -> str:
        return f"{self.start}..{self.end}"

    def __contains__(self, num_tokens: int) -> bool:
        return self.start <= num_tokens <= self.end


def decode_bound(max_num_seqs: int, num_speculative_tokens: int = 0) -> int:
    """Return the most tokens that a uniform decode batch can have: what CUDA graphs of it go to."""
    return max_num_seqs * (1 + num_speculative_tokens)


def ranges_up_to(end: int, endpoints: Iterable[int]) -> tuple[CompileRange, ...]:
    """Cut `1..end` behind each of `endpoints` that lies in it."""
    ends = sorted({end, *(point for point in endpoints if 1 <= point < end)})
    starts = (1, *(point + 1 for point in ends))
    return tuple(CompileRange(*pair) for pair in zip(starts, ends, strict=False))
