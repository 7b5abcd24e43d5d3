"""A small model and batches of every kind for compiled models, compared with eager mode."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlalab.compile.config import PassConfig
from mlalab.compile.dispatch import CompiledModel
from mlalab.compile.settings import CompileConfig
from mlalab.context import BatchMetadata, ForwardContext, forward_context, make_batch
from mlalab.layers.kinds import Attention, attention_of
from mlalab.layers.options import LayerOptions
from mlalab.shapes import preset
from mlalab.workbench import build
from tests.passes.models import Model, chain

BLOCK = 16
BLOCKS = 40


def model(*names: str, **options: object) -> Model:
    """Return layers of these presets in a row; every second call gets the same weights."""
    dtype = options.pop("dtype", torch.float32)
    layers: list[Attention] = []
    for index, name in enumerate(names):
        source = build(name, tokens=1, options=LayerOptions(dtype=dtype, **options)).layers[0]
        layer = attention_of(preset(name), f"layers.{index}", source.options).eval()
        layer.load_state_dict(source.state_dict())
        layer.k_scale.fill_(0.37)
        layer.allocate_cache(BLOCKS, BLOCK)
        layers.append(layer)
    return Model(layers, chain)


def flags(module: nn.Module, *, aiter: bool = True) -> PassConfig:
    """Return every fusion on that the model has layers for."""
    layers = [x for x in module.modules() if hasattr(x, "layer_name")]
    kinds = {layer.kind for layer in layers if layer.options.fusion == "graph"}
    return PassConfig(
        fuse_rope_kvcache="gqa" in kinds,
        fuse_aiter_qk_rope_kvcache_mla=aiter and "mla" in kinds,
    )


def compiled(module: nn.Module, **settings: object) -> CompiledModel:
    """Compile with every fusion on, interpreted, verified, for at most 64 tokens."""
    return CompiledModel(
        module,
        CompileConfig(
            **{"max_num_batched_tokens": 64, "max_num_seqs": 8, "pass_config": flags(module)}
            | {"mode": "display", "verify": True}
            | settings
        ),
    )


def decode(requests: int, query_len: int = 1) -> BatchMetadata:
    """Return a uniform decode batch."""
    lengths = [query_len] * requests
    return make_batch(lengths, [5] * requests, num_decodes=requests, block_size=BLOCK)


def prefill(*lengths: int) -> BatchMetadata:
    """Return prefill requests."""
    return make_batch(lengths, [3] * len(lengths), num_decodes=0, block_size=BLOCK)


def mixed(decodes: int, *lengths: int) -> BatchMetadata:
    """Return decode requests of one token, then prefill requests."""
    all_lengths = [*[1] * decodes, *lengths]
    return make_batch(all_lengths, [4] * len(all_lengths), num_decodes=decodes, block_size=BLOCK)


def run(
    function: object,
    layers: list[Attention],
    metadata: BatchMetadata | None,
    rows: int | None = None,
) -> dict[str, Tensor]:
    """Run one step from the same caches; returns the output and every cache.

    Args:
        metadata: the batch; None is a profile run.
        rows: rows of the batch, with padding; by default its tokens.
    """
    tokens = 0 if metadata is None else metadata.num_tokens
    rows = tokens if rows is None else rows
    generator = torch.Generator().manual_seed(7)
    for layer in layers:
        storage = layer.kv_cache.storage
        storage.copy_(torch.randint(0, 60, storage.shape, generator=generator))
    hidden = torch.randn((rows, layers[0].shape.hidden_size), generator=generator)
    positions = torch.zeros(rows, dtype=torch.int64)
    if metadata is not None:
        positions[:tokens] = metadata.positions()
    context = ForwardContext(
        layers={layer.layer_name: layer for layer in layers},
        metadata=metadata,
        slot_mapping=None if metadata is None else metadata.slot_mapping(BLOCK),
    )
    with torch.no_grad(), forward_context(context):
        output = function(positions, hidden.to(layers[0].options.dtype))
    return {"output": output, **{x.layer_name: x.kv_cache.storage.clone() for x in layers}}
