"""A model on the bench: layers, caches, a batch and its inputs, ready to run or to compile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mlalab.context import BatchMetadata, ForwardContext, forward_context, make_batch
from mlalab.env import default_device
from mlalab.errors import ConfigError
from mlalab.layers.gqa import GQAAttention
from mlalab.layers.kinds import Attention, attention_of
from mlalab.layers.loading import load_attention
from mlalab.layers.mla import MLAAttention
from mlalab.layers.mla_paths import split_once
from mlalab.layers.options import LayerOptions
from mlalab.shapes import PRESETS, AttentionShape, GQAShape, MLAShape, preset
from mlalab_kernels.numerics import quantize

BLOCK_SIZE = 16
CONTEXT_LEN = 16
"""Tokens that each decode request already has in the cache, unless a batch is given."""


class Stack(nn.Module):
    """Attention layers one after the other, each added to the residual stream."""

    def __init__(self, layers: Sequence[Attention]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, positions: Tensor, hidden_TD: Tensor) -> Tensor:
        """Return `[T, D]`."""
        split = split_once(self.layers, hidden_TD)
        for layer in self.layers:
            hidden_TD = hidden_TD + layer(positions, hidden_TD, **split)
        return hidden_TD


@dataclass(slots=True, kw_only=True)
class Workbench:
    """A model with all that one step needs.

    Args:
        module: called as `module(positions, hidden)`.
        layers: its attention layers, each with a cache.
        metadata: the batch.
        slot_mapping: cache slot per token; may be shorter than the batch and hold -1.
    """

    module: nn.Module
    layers: Sequence[Attention]
    metadata: BatchMetadata
    slot_mapping: Tensor
    positions: Tensor = field(init=False)
    hidden_TD: Tensor = field(init=False)  # noqa: N815  a shape suffix

    def __post_init__(self) -> None:
        self.positions = self.metadata.positions().to(self._device)
        self.randomise(0)

    @property
    def _device(self) -> torch.device:
        return self.layers[0].o_proj.weight.device

    def randomise(self, seed: int) -> None:
        """Draw the hidden states and fill every cache with random rows."""
        generator = torch.Generator().manual_seed(seed)
        layer = self.layers[0]
        self.hidden_TD = _random(
            (self.metadata.num_tokens, layer.shape.hidden_size), layer.options.dtype, generator
        ).to(self._device)
        for layer in self.layers:
            cache = layer.kv_cache
            rows = _random(tuple(cache.storage.shape), torch.float32, generator)
            rows = rows.to(self._device)
            cache.typed.copy_(quantize(rows, layer.k_scale, cache.typed_dtype))

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call `function` without gradients inside this bench's forward context."""
        context = ForwardContext(
            layers={layer.layer_name: layer for layer in self.layers},
            metadata=self.metadata,
            slot_mapping=self.slot_mapping,
        )
        with torch.no_grad(), forward_context(context):
            return function(*arguments)


def _random(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype)


def build(
    model: str | Path | AttentionShape | Attention,
    *,
    tokens: int = 8,
    num_layers: int = 1,
    options: LayerOptions | None = None,
    metadata: BatchMetadata | None = None,
    slot_mapping: Tensor | None = None,
) -> Workbench:
    """Put a model on the bench.

    Args:
        model: a preset's name, a Hugging Face directory, a shape, or a layer (which gets a new
            cache and is put in eval mode).
        tokens: decode requests of one token each, when no `metadata` is given.
        num_layers: how many layers in a row; layers of a directory are taken from its first.
        options: how layers are built; defaults to bfloat16 on this machine's device.
        metadata: the batch, instead of `tokens` decode requests.
        slot_mapping: instead of the batch's own.

    Raises:
        ConfigError: unknown model name, or a negative count.
        CheckpointError: a directory that cannot be read.
    """
    for name, value, least in (("tokens", tokens, 0), ("num_layers", num_layers, 1)):
        if not isinstance(value, int) or value < least:
            raise ConfigError(f"{name} must be a whole number, {least} or more, got {value!r}.")
    if isinstance(model, (MLAAttention, GQAAttention)) and (options is not None or num_layers != 1):
        raise ConfigError("A layer is traced as it is: leave out options and num_layers.")
    options = options or LayerOptions(dtype=torch.bfloat16, device=default_device())
    layers = _layers_of(model, num_layers, options)
    device = layers[0].options.device
    if metadata is None:
        metadata = make_batch(
            [1] * tokens,
            [CONTEXT_LEN] * tokens,
            num_decodes=tokens,
            block_size=BLOCK_SIZE,
            device=device,
        )
    for layer in layers:
        layer.eval().allocate_cache(_blocks_named(metadata.block_table), BLOCK_SIZE)
    if slot_mapping is None:
        slot_mapping = metadata.slot_mapping(BLOCK_SIZE)
    module = layers[0] if len(layers) == 1 else Stack(layers)
    return Workbench(module=module, layers=layers, metadata=metadata, slot_mapping=slot_mapping)


def _blocks_named(block_table: Tensor) -> int:
    return int(block_table.max()) + 1 if block_table.numel() else 1


def _layers_of(
    model: str | Path | AttentionShape | Attention, num_layers: int, options: LayerOptions
) -> list[Attention]:
    if isinstance(model, (MLAAttention, GQAAttention)):
        return [model]
    if isinstance(model, str) and model in PRESETS:
        model = preset(model)
    if isinstance(model, (MLAShape, GQAShape)):
        names = [f"model.layers.{i}.self_attn" for i in range(num_layers)]
        return [_random_layer(model, name, options, seed) for seed, name in enumerate(names)]
    if not isinstance(model, (str, Path)) or not Path(model).exists():
        raise ConfigError(
            f"{model!r} is neither a preset ({', '.join(PRESETS)}) nor a directory that exists."
        )
    return [load_attention(model, layer, options=options) for layer in range(num_layers)]


_SCALES = {"q_scale": 0.61, "k_scale": 0.37, "v_scale": 0.53}
"""Scales of one would hide a scale that is lost, or taken for another."""


def _random_layer(shape: AttentionShape, name: str, options: LayerOptions, seed: int) -> Attention:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = attention_of(shape, name, options)
        for module in layer.modules():
            if isinstance(module, nn.RMSNorm):
                # All ones would hide a norm that is skipped.
                nn.init.uniform_(module.weight, 0.5, 1.5)
        for scale, buffer in layer.named_buffers(recurse=False):
            buffer.fill_(_SCALES[scale])
    return layer
