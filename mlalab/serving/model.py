"""A decoder to serve: mlalab's MLA layers with what stands around them in DeepSeek's models.

The MLP is dense in every layer, a stand-in for the experts that DeepSeek's models have from their
second layer on: of DeepSeek-V2-Lite it multiplies about as many weights a token (10944 columns; its
experts have 8 · 1408), yet reads the same weights for every token, which experts do not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from mlalab.errors import ConfigError
from mlalab.layers.mla import MLAAttention
from mlalab.layers.mla_paths import split_once
from mlalab.layers.options import LayerOptions
from mlalab.shapes import MLAShape, preset

Graph = Callable[[Tensor, Tensor], Tensor]
"""(positions `[T]`, hidden_TD) → hidden_TD, inside a forward context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderShape:
    """Sizes of a decoder.

    Args:
        attention: of every layer; its hidden size is the decoder's.
        intermediate_size: columns of the MLP.
    """

    attention: MLAShape
    num_layers: int
    intermediate_size: int
    vocab_size: int

    def __post_init__(self) -> None:
        for name in ("num_layers", "intermediate_size", "vocab_size"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ConfigError(f"{name} must be a whole number, 1 or more, got {value!r}.")


_WIDTHS: Mapping[str, tuple[int, int]] = {
    "tiny": (128, 256),
    "deepseek-v2-lite": (10944, 102400),
    "deepseek-v3": (18432, 129280),
    "deepseek-v3-tp8": (18432, 129280),
    "kimi-k2": (18432, 163840),
}
"""Preset → columns of its dense MLP, words of its vocabulary."""


def decoder_shape(name: str, num_layers: int | None = None) -> DecoderShape:
    """Return the decoder of an MLA preset, with all of its layers or fewer.

    Raises:
        ConfigError: no such preset, or one without MLA.
    """
    shape = preset(name)
    if not isinstance(shape, MLAShape) or name not in _WIDTHS:
        raise ConfigError(f"{name!r} has no decoder to serve; one of {', '.join(_WIDTHS)} has.")
    intermediate_size, vocab_size = _WIDTHS[name]
    return DecoderShape(
        attention=shape,
        num_layers=shape.num_layers if num_layers is None else num_layers,
        intermediate_size=intermediate_size,
        vocab_size=vocab_size,
    )


class GatedMLP(nn.Module):
    """`down(silu(gate(x)) · up(x))`, with the parameter names of `DeepseekV2MLP`."""

    def __init__(self, hidden_size: int, intermediate_size: int, **factory: Any) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False, **factory)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False, **factory)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False, **factory)

    def forward(self, hidden_TD: Tensor) -> Tensor:
        """Return `[T, D]`."""
        return self.down_proj(silu(self.gate_proj(hidden_TD)) * self.up_proj(hidden_TD))


class DecoderLayer(nn.Module):
    """Norm and attention, norm and MLP, each added to the residual stream."""

    def __init__(self, shape: DecoderShape, index: int, options: LayerOptions) -> None:
        super().__init__()
        width, eps = shape.attention.hidden_size, shape.attention.rms_norm_eps
        factory: dict[str, Any] = {"dtype": options.dtype, "device": options.device}
        self.input_layernorm = nn.RMSNorm(width, eps, **factory)
        name = f"model.layers.{index}.self_attn"
        self.self_attn = MLAAttention(shape.attention, name, options)
        self.post_attention_layernorm = nn.RMSNorm(width, eps, **factory)
        self.mlp = GatedMLP(width, shape.intermediate_size, **factory)

    def forward(self, positions: Tensor, hidden_TD: Tensor, **split: int) -> Tensor:
        """Return `[T, D]`; `split` is what `split_once` returned."""
        normed_TD = self.input_layernorm(hidden_TD)
        hidden_TD = hidden_TD + self.self_attn(positions, normed_TD, **split)
        return hidden_TD + self.mlp(self.post_attention_layernorm(hidden_TD))


class DecoderStack(nn.Module):
    """The layers: what lies between embedding and final norm, and what is compiled."""

    def __init__(self, shape: DecoderShape, options: LayerOptions) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(shape, index, options) for index in range(shape.num_layers)
        )

    def forward(self, positions: Tensor, hidden_TD: Tensor) -> Tensor:
        """Return `[T, D]`."""
        split = split_once([layer.self_attn for layer in self.layers], hidden_TD)
        for layer in self.layers:
            hidden_TD = layer(positions, hidden_TD, **split)
        return hidden_TD


class Decoder(nn.Module):
    """Embedding, layers, final norm and output head, with random weights.

    Args:
        seed: of the weights; the same on one kind of device.
    """

    def __init__(self, shape: DecoderShape, options: LayerOptions, seed: int = 0) -> None:
        super().__init__()
        self.shape, self.options = shape, options
        width = shape.attention.hidden_size
        factory: dict[str, Any] = {"dtype": options.dtype, "device": options.device}
        self.embed_tokens = nn.Embedding(shape.vocab_size, width, **factory)
        self.stack = DecoderStack(shape, options)
        self.norm = nn.RMSNorm(width, shape.attention.rms_norm_eps, **factory)
        self.lm_head = nn.Linear(width, shape.vocab_size, bias=False, **factory)
        self.requires_grad_(False).eval()
        self._randomise(seed)

    @property
    def attention_layers(self) -> dict[str, MLAAttention]:
        """The attention layers by their names in the forward context."""
        return {m.layer_name: m for m in self.stack.modules() if isinstance(m, MLAAttention)}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.lm_head.weight.device

    def allocate_cache(self, num_blocks: int, block_size: int) -> None:
        """Give every attention layer a zeroed cache."""
        for layer in self.attention_layers.values():
            layer.allocate_cache(num_blocks, block_size)

    def share_weights(self, other: Decoder) -> None:
        """Use the other decoder's weights in place of one's own, which are then freed."""
        self.load_state_dict(other.state_dict(keep_vars=True), assign=True)

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """Return how likely each word is to come next, `[S, W]` in the model's dtype."""
        return self.lm_head(self.norm(hidden_SD))

    def _randomise(self, seed: int) -> None:
        """Draw weights that keep the scale of what they multiply, so that every layer tells."""
        generator = torch.Generator(self.device).manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                # All ones would hide a norm that is skipped.
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                deviation = 1.0 if name == "embed_tokens.weight" else parameter.size(-1) ** -0.5
                parameter.normal_(0.0, deviation, generator=generator)
