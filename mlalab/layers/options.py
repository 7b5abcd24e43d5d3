"""How an attention layer is built, apart from its sizes."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

import torch

from mlalab.cache import KVCacheDtype
from mlalab.errors import ConfigError
from mlalab.rope import RotaryEmbedding
from mlalab.shapes import RopeSpec

_EXPOSED = "MLALAB_MLA_EXPOSED_SPLIT"


def _exposed_by_default() -> bool:
    value = os.environ.get(_EXPOSED, "0")
    if value not in ("0", "1"):
        raise ConfigError(f"{_EXPOSED} must be 0 or 1, got {value!r}.")
    return value == "1"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerOptions:
    """How a layer is built, apart from its sizes.

    Args:
        kv_cache_dtype: "auto" (activation dtype) or "fp8".
        rope_custom_op: rotate with the in-place op instead of the native form.
        rope_in_fp32: arithmetic of the native form.
        rope_cache_dtype: dtype of the cos/sin table; None means the activation dtype.
        dtype, device: of weights and activations.
        fusion: "graph" leaves fusing to compiler passes; "layer" calls the fused ops itself.
        exposed: an MLA layer's split of decode and prefill rows stands in the graph instead of
            inside the attention op. `MLALAB_MLA_EXPOSED_SPLIT` (0 or 1) sets the default.
    """

    kv_cache_dtype: KVCacheDtype = "auto"
    rope_custom_op: bool = False
    rope_in_fp32: bool = True
    rope_cache_dtype: torch.dtype | None = torch.float32
    dtype: torch.dtype = torch.float32
    device: torch.device | str | None = None
    fusion: Literal["graph", "layer"] = "graph"
    exposed: bool = field(default_factory=_exposed_by_default)

    def __post_init__(self) -> None:
        if self.fusion not in ("graph", "layer"):
            raise ConfigError(f'fusion must be "graph" or "layer", got {self.fusion!r}.')


def build_rope(
    cls: type[RotaryEmbedding] | None,
    spec: RopeSpec,
    rotary_dim: int,
    num_positions: int,
    options: LayerOptions,
) -> RotaryEmbedding | None:
    """Return the layer's rotary embedding; None for a layer without (`cls` is None)."""
    if cls is None:
        return None
    return cls(
        *(spec, rotary_dim, num_positions),
        custom_op=options.rope_custom_op,
        in_fp32=options.rope_in_fp32,
        cache_dtype=options.rope_cache_dtype or options.dtype,
    ).to(options.device)
