"""Ranges of token counts that one compiled graph serves."""

from __future__ import annotations

from dataclasses import dataclass

from mlalab.errors import ConfigError


@dataclass(frozen=True, slots=True)
class CompileRange:
    """Token counts `start..end`, both ends included."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise ConfigError(f"A compile range needs 0 <= start <= end, got {self}.")

    def __str__(self) -> str:
        return f"{self.start}..{self.end}"
