"""What the exercises on writing a pass share: an op, a pattern for it, and a fusion around both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import mlalab.ops  # noqa: F401  registers torch.ops.mlalab
from mlalab.lab import trace
from mlalab.layers.options import LayerOptions
from mlalab.passes.fusion import Fusion, Variant
from mlalab.shapes import AttentionShape
from mlalab.traces import Trace

NAME = "NormCacheFusion"
EPS = 1e-6
_CACHE_UPDATE = torch.ops.mlalab.unified_mla_kv_cache_update


@torch.library.custom_op("mlalab_exercises::norm_and_cache", mutates_args=())
def norm_and_cache(
    latent: Tensor,
    weight: Tensor,
    k_pe: Tensor,
    eps: float,
    k_scale: Tensor,
    layer_name: str,
    kv_cache_dtype: str,
) -> tuple[Tensor, Tensor]:
    """Normalise the latent `[T, L]` and write it with the key `[T, 1, R]` into the layer's cache.

    Returns the normalised latent, and the dummy `[0]` that orders the write before attention.
    """
    wide = latent.float()
    unit = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    kv_c = (unit * weight).to(latent.dtype)
    return kv_c, _CACHE_UPDATE(kv_c, k_pe, layer_name, kv_cache_dtype, k_scale)


@norm_and_cache.register_fake
def _(latent: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(latent), latent.new_empty(0)


def pattern(
    latent: Tensor,
    weight: Tensor,
    k_pe: Tensor,
    k_scale: Tensor,
    *,
    layer_name: str,
    kv_cache_dtype: str,
) -> tuple[Tensor, Tensor]:
    """Find the latent's norm with the cache write behind it; the key is `[T, 1, R]`."""
    kv_c = F.rms_norm(latent, weight.shape, weight, EPS)
    return _CACHE_UPDATE(kv_c, k_pe, layer_name, kv_cache_dtype, k_scale), kv_c


def replacement(
    latent: Tensor,
    weight: Tensor,
    k_pe: Tensor,
    k_scale: Tensor,
    *,
    layer_name: str,
    kv_cache_dtype: str,
) -> tuple[Tensor, Tensor]:
    """Put the op in the pattern's place."""
    kv_c, dummy = norm_and_cache(latent, weight, k_pe, EPS, k_scale, layer_name, kv_cache_dtype)
    return dummy, kv_c


def examples() -> Sequence[Tensor]:
    """Make example tensors of a layer that computes in bfloat16."""
    latent, weight, k_pe = torch.empty(5, 8), torch.empty(8), torch.empty(5, 1, 4)
    return latent.bfloat16(), weight.bfloat16(), k_pe.bfloat16(), torch.empty(())


def fusion(*variants: Variant) -> Fusion:
    """Return a fusion of these variants; without any, of the one for bfloat16."""
    return Fusion(
        name=NAME,
        note="The latent's norm and the cache write become one op.",
        tensors=("latent", "weight", "k_pe", "k_scale"),
        wildcards=("layer_name", "kv_cache_dtype"),
        anchor=_CACHE_UPDATE.default,
        variants=variants or (Variant("bfloat16", pattern, replacement, examples),),
    )


def with_replacement(attempt: Callable[..., Any]) -> Fusion:
    """Return the fusion with another replacement."""
    return fusion(Variant("bfloat16", pattern, attempt, examples))


def with_examples(attempt: Callable[[], Sequence[Tensor]]) -> Fusion:
    """Return the fusion with a second variant, of the same pattern traced on other examples."""
    half = Variant("bfloat16", pattern, replacement, examples)
    return fusion(half, Variant("float32", pattern, replacement, attempt))


def traced(
    fusion: Fusion,
    model: str | AttentionShape = "tiny",
    *,
    tokens: int = 3,
    options: LayerOptions | None = None,
) -> Trace:
    """Trace a small layer with one pass."""
    return trace(model, tokens=tokens, options=options, passes=[fusion])
