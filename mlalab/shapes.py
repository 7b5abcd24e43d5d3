"""Sizes of an MLA layer, the presets, and the one legend of axis letters.

Tensors carry their axes as a suffix (`q_TNC`):

    T tokens · N query heads on this rank · P nope dim · R rope dim · L latent (kv-lora rank)
    C = L + R, one cache row · V value dim · D hidden size · B cache blocks · K slots in a block
    S slots or cached rows · M rope table rows
    H = P + R, one query head
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mlalab.errors import ConfigError

RopeKind = Literal["none", "default", "yarn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """How positions enter the keys: kind of table, its parameters, and the pairing.

    `yarn` is what vLLM calls DeepSeek scaling; the field names are those of a Hugging Face config.
    `is_neox=False` pairs neighbours (2i, 2i+1), as DeepSeek does; True pairs (i, i + R/2).
    """

    kind: RopeKind = "default"
    theta: float = 10000.0
    is_neox: bool = False
    factor: float = 1.0
    original_max_position_embeddings: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None
    truncate: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class MLAShape:
    """Sizes of one MLA layer on one rank. See the module docstring for the letters.

    `num_heads` counts heads on this rank: 16 for DeepSeek-V3 at tensor parallelism 8.
    `q_lora_rank=None` means one dense query projection (DeepSeek-V2-Lite).
    """

    hidden_size: int
    num_heads: int
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    kv_lora_rank: int = 512
    q_lora_rank: int | None = None
    rope: RopeSpec = field(default_factory=RopeSpec)
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    num_layers: int = 1

    def __post_init__(self) -> None:
        sizes = {
            name: getattr(self, name)
            for name in (
                *("hidden_size", "num_heads", "qk_nope_head_dim", "qk_rope_head_dim"),
                *("v_head_dim", "kv_lora_rank", "max_position_embeddings", "num_layers"),
            )
        }
        if self.q_lora_rank is not None:
            sizes["q_lora_rank"] = self.q_lora_rank
        for name, value in sizes.items():
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be a positive integer, got {value!r}.")
        if self.qk_rope_head_dim % 2:
            raise ConfigError(
                f"qk_rope_head_dim must be even (rotation works on pairs), "
                f"got {self.qk_rope_head_dim}."
            )

    @property
    def qk_head_dim(self) -> int:
        """H = P + R: width of one query head."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def cache_dim(self) -> int:
        """C = L + R: width of one cache row."""
        return self.kv_lora_rank + self.qk_rope_head_dim


_DEEPSEEK_YARN = RopeSpec(kind="yarn", factor=40.0, mscale=1.0, mscale_all_dim=1.0)
_BASE = MLAShape(
    hidden_size=7168,
    num_heads=128,
    q_lora_rank=1536,
    rope=_DEEPSEEK_YARN,
    max_position_embeddings=163840,
    num_layers=61,
)

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        **{"hidden_size": 64, "num_heads": 4, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16},
        **{"v_head_dim": 32, "kv_lora_rank": 64, "q_lora_rank": 48, "num_layers": 4},
        "max_position_embeddings": 512,
        "rope": replace(_DEEPSEEK_YARN, factor=8.0, original_max_position_embeddings=64),
    },
    "deepseek-v2-lite": {
        **{"hidden_size": 2048, "num_heads": 16, "q_lora_rank": None, "num_layers": 27},
        "rope": replace(_DEEPSEEK_YARN, mscale=0.707, mscale_all_dim=0.707),
    },
    "deepseek-v3": {},
    "deepseek-v3-tp8": {"num_heads": 16},
    "kimi-k2": {
        "num_heads": 64,
        "max_position_embeddings": 131072,
        "rope": replace(_DEEPSEEK_YARN, theta=50000.0, factor=32.0, beta_fast=1.0),
    },
}
"""Preset name → what differs from DeepSeek-V3."""


def preset(name: str, **overrides: Any) -> MLAShape:
    """Return the shape of a preset, with any field overridden.

    Raises:
        ConfigError: unknown preset, or a size that is not a positive integer.
    """
    if name not in PRESETS:
        raise ConfigError(f"Unknown preset {name!r}; known presets: {', '.join(PRESETS)}.")
    return replace(_BASE, **{**PRESETS[name], **overrides})
