"""Sizes of attention layers, the presets, and the one legend of axis letters.

Tensors carry their axes as a suffix (`q_TNC`):

    T tokens · N query heads on this rank · P nope dim · R rope dim · L latent (kv-lora rank)
    C = L + R, one cache row · V value dim · D hidden size · B cache blocks · K slots in a block
    S slots or cached rows · M rope table rows
    H = P + R, one query head; in ordinary attention the width of any head
    G key and value heads of ordinary attention · W = heads · H, heads side by side
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


def _check_sizes(shape: object, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(shape, name)
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} must be a positive integer, got {value!r}.")


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
        names = (
            *("hidden_size", "num_heads", "qk_nope_head_dim", "qk_rope_head_dim"),
            *("v_head_dim", "kv_lora_rank", "max_position_embeddings", "num_layers"),
        )
        _check_sizes(self, names if self.q_lora_rank is None else (*names, "q_lora_rank"))
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

    @property
    def kv_head_dim(self) -> int:
        """H + V: key and value of one head, which this attention does not keep."""
        return self.qk_head_dim + self.v_head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class GQAShape:
    """Sizes of one ordinary attention layer, as Llama has it, on one rank.

    Each of `num_kv_heads` key and value heads serves `num_heads / num_kv_heads` query heads.
    """

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int = 128
    rope: RopeSpec = field(default_factory=lambda: RopeSpec(is_neox=True))
    max_position_embeddings: int = 4096
    attention_bias: bool = False
    num_layers: int = 1

    def __post_init__(self) -> None:
        names = ("hidden_size", "num_heads", "num_kv_heads", "head_dim")
        _check_sizes(self, (*names, "max_position_embeddings", "num_layers"))
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads must be a multiple of num_kv_heads, got {self.num_heads} and "
                f"{self.num_kv_heads}."
            )
        if self.head_dim % 2:
            raise ConfigError(
                f"head_dim must be even (rotation works on pairs), got {self.head_dim}."
            )

    @property
    def q_size(self) -> int:
        """Width of all query heads side by side."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads, or of all value heads, side by side."""
        return self.num_kv_heads * self.head_dim

    @property
    def cache_dim(self) -> int:
        """What is kept of one token: every key and value head."""
        return self.num_kv_heads * self.kv_head_dim

    @property
    def kv_head_dim(self) -> int:
        """2 H: key and value of one head."""
        return 2 * self.head_dim


_DEEPSEEK_YARN = RopeSpec(kind="yarn", factor=40.0, mscale=1.0, mscale_all_dim=1.0)
_V3 = MLAShape(
    hidden_size=7168,
    num_heads=128,
    q_lora_rank=1536,
    rope=_DEEPSEEK_YARN,
    max_position_embeddings=163840,
    num_layers=61,
)

_LLAMA = GQAShape(
    hidden_size=4096,
    num_heads=32,
    num_kv_heads=8,
    rope=RopeSpec(theta=500000.0, is_neox=True),
    max_position_embeddings=8192,
    num_layers=32,
)
AttentionShape = MLAShape | GQAShape

PRESETS: Mapping[str, tuple[AttentionShape, Mapping[str, Any]]] = {
    "tiny": (
        _V3,
        {
            **{"hidden_size": 64, "num_heads": 4, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16},
            **{"v_head_dim": 32, "kv_lora_rank": 64, "q_lora_rank": 48, "num_layers": 4},
            "max_position_embeddings": 512,
            "rope": replace(_DEEPSEEK_YARN, factor=8.0, original_max_position_embeddings=64),
        },
    ),
    "deepseek-v2-lite": (
        _V3,
        {
            **{"hidden_size": 2048, "num_heads": 16, "q_lora_rank": None, "num_layers": 27},
            "rope": replace(_DEEPSEEK_YARN, mscale=0.707, mscale_all_dim=0.707),
        },
    ),
    "deepseek-v3": (_V3, {}),
    "deepseek-v3-tp8": (_V3, {"num_heads": 16}),
    "kimi-k2": (
        _V3,
        {
            "num_heads": 64,
            "max_position_embeddings": 131072,
            "rope": replace(_DEEPSEEK_YARN, theta=50000.0, factor=32.0, beta_fast=1.0),
        },
    ),
    "tiny-gqa": (
        _LLAMA,
        {
            **{"hidden_size": 64, "num_heads": 6, "num_kv_heads": 2, "head_dim": 16},
            **{"max_position_embeddings": 512, "num_layers": 4},
        },
    ),
    "llama-3-8b": (_LLAMA, {}),
}
"""Preset name → a shape, and what differs from it."""


def preset(name: str, **overrides: Any) -> AttentionShape:
    """Return the shape of a preset, with any field overridden.

    Raises:
        ConfigError: unknown preset, or a size that is not a positive integer.
    """
    if name not in PRESETS:
        raise ConfigError(f"Unknown preset {name!r}; known presets: {', '.join(PRESETS)}.")
    base, changes = PRESETS[name]
    return replace(base, **{**changes, **overrides})
