"""What cannot be captured, and why: looking only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mlalab.compile.cudagraph_modes import STYLES, Style
from mlalab.compile.dispatch import CompiledModel
from mlalab.context import BatchKind
from mlalab.kernels import choice, force

_INSIDE: Mapping[str, tuple[str, ...]] = {
    "mla": (
        *("rotary_embedding", "unified_mla_kv_cache_update", "mla_decode_q_prep"),
        *("fused_rope_unified_mla_kv_cache_update", "fused_absorb_qk_rope_concat_and_cache_mla"),
    ),
    "gqa": (
        *("rotary_embedding", "unified_kv_cache_update"),
        "fused_rope_and_unified_kv_cache_update",
    ),
}
"""Kind of layer → kernels that may be called inside its graphs."""
_ATTENTION = "mla_decode_attention"


def refusals(model: CompiledModel, *, on_gpu: bool) -> dict[BatchKind, str]:
    """Return, by kind of batch, why the graphs that the mode asks for cannot be captured.

    Args:
        on_gpu: the GPU captures, so that all kernels must be such as it can.
    """
    refused: dict[BatchKind, str] = {}
    for kind, style in STYLES[model.config.cudagraph_mode].items():
        reason = _waits(model, style) if on_gpu else ""
        if style == "FULL":
            reason = reason or _reads_lengths(kind, model.layers)
        if reason:
            refused[kind] = reason
    return refused


def _waits(model: CompiledModel, style: Style) -> str:
    """Return why a kernel inside the graphs, or the device, cannot be captured, or nothing."""
    device: torch.device = model.layers[0].o_proj.weight.device
    if device.type != "cuda":
        return f"the model is on {device}, and CUDA graphs need a CUDA device"
    kernels = [name for layer in model.layers for name in _INSIDE[layer.kind]]
    if style == "FULL":
        kernels.append(_ATTENTION)
    with force(model.forced):
        for name in dict.fromkeys(kernels):
            provider, reason = choice(name, device)
            if provider == "reference":
                return f"{name} is served by its reference, which waits for the device"
            # Not forced, a library hands the call on; see `check_call`.
            if name == _ATTENTION and provider != "triton" and reason == "forced":
                return f"{provider}, which is forced, plans {name} on the host"
    return ""


def _reads_lengths(kind: BatchKind, layers: Sequence[Any]) -> str:
    """Return why a whole batch of this kind cannot be one graph, or nothing."""
    if kind != "decode":
        return (
            "attention of prefilled requests takes them one by one, by lengths that the host "
            "knows; PIECEWISE graphs leave it out"
        )
    others = sorted({layer.layer_name for layer in layers if layer.kind != "mla"})
    if others:
        return (
            f"attention of {others[0]} reads its lengths on the host; choose PIECEWISE, whose "
            f"graphs leave it out"
        )
    return ""
