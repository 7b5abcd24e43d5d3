"""Which passes run: flags under the names of the seeds, and the defaults of each level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from mlalab.errors import ConfigError

Level = Literal["O0", "O1", "O2", "O3"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassConfig:
    """Switches of the fusion passes.

    Args:
        fuse_rope_kvcache_cat_mla: RoPE + latent cache write → one op (seed 003).
    """

    fuse_rope_kvcache_cat_mla: bool = True

    def enabled(self, flag: str | None) -> bool:
        """Return whether a pass with this flag runs; one without a flag always does."""
        return flag is None or bool(getattr(self, flag))


_LEVELS: Mapping[str, PassConfig] = {
    "O0": PassConfig(fuse_rope_kvcache_cat_mla=False),
    "O1": PassConfig(fuse_rope_kvcache_cat_mla=False),
    "O2": PassConfig(),
    "O3": PassConfig(),
}


def config_of(level: str) -> PassConfig:
    """Return the defaults of an optimisation level, as the seeds set them.

    Raises:
        ConfigError: unknown level.
    """
    if level not in _LEVELS:
        raise ConfigError(f"Unknown level {level!r}; levels are {', '.join(get_args(Level))}.")
    return _LEVELS[level]
