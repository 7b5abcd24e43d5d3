"""Small MLA models whose forward is taken apart, so that a test can put anything between the parts.

A model is a function of (layers, positions, hidden); `stand` puts it on a workbench and `fuse`
records its compilation.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mlalab.checking import compare
from mlalab.context import BatchMetadata, ForwardContext, forward_context, make_batch
from mlalab.lab import record
from mlalab.layers.mla import MLAAttention, MLAOptions
from mlalab.passes.mla_rope_kvcache_cat import MLARoPEKVCacheCatFusionPass
from mlalab.shapes import MLAShape, RopeSpec, preset
from mlalab.traces import Trace
from mlalab.workbench import BLOCK_SIZE, Workbench, build

FUSION = MLARoPEKVCacheCatFusionPass.name
FUSED = "mlalab.fused_rope_unified_mla_kv_cache_update"
UPDATE = "mlalab.unified_mla_kv_cache_update"
PLUMBING = ("aten.slice_scatter", "aten.copy", "aten.copy_", "aten.clone")
"""What functionalisation leaves behind and no good graph ends with."""

MANY = 10
"""Beyond so many tokens, where a run takes long, not every batch meets every slot mapping."""

Forward = Callable[[Sequence[MLAAttention], Tensor, Tensor], Any]


class Model(nn.Module):
    """Layers and the function that runs them."""

    def __init__(self, layers: Sequence[MLAAttention], forward: Forward) -> None:
        super().__init__()
        self.layers, self.function = nn.ModuleList(layers), forward

    def forward(self, positions: Tensor, hidden: Tensor) -> Any:
        return self.function(list(self.layers), positions, hidden)


def shape_of(kind: str = "yarn", is_neox: bool = False, **overrides: Any) -> MLAShape:
    """Return the tiny preset with another rope: "yarn" is DeepSeek scaling, "default" plain."""
    tiny = preset("tiny", **overrides)
    spec = tiny.rope if kind == "yarn" else RopeSpec(kind=kind)
    return replace(tiny, rope=replace(spec, is_neox=is_neox))


def stand(
    forward: Forward,
    num_layers: int = 1,
    *,
    tokens: int = 5,
    shape: MLAShape | None = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Workbench:
    """Put a model on a workbench."""
    bench = build(
        shape or shape_of(),
        tokens=tokens,
        num_layers=num_layers,
        options=MLAOptions(dtype=dtype, **options),
    )
    return on_bench(forward, bench.layers, bench)


def on_bench(forward: Forward, layers: Sequence[MLAAttention], like: Workbench) -> Workbench:
    """Put layers on a workbench with the batch of another."""
    for layer in layers:
        if layer._kv_cache is None:
            layer.allocate_cache(max(int(like.metadata.block_table.numel()), 1), BLOCK_SIZE)
    return Workbench(
        module=Model(layers, forward),
        layers=layers,
        metadata=like.metadata,
        slot_mapping=like.slot_mapping,
    )


def fuse(bench: Workbench, **arguments: Any) -> Trace:
    """Record the compilation and compare every step with the one before it, the first with eager.

    Raises:
        AssertionError: a bit differs somewhere.
    """
    trace = record(bench, **arguments).check()
    assert trace.ok, [(step.name, d) for step in trace for d in step.check.diffs if not d.equal]
    return trace


def targets(trace: Trace, step: int | str = -1) -> list[str]:
    """Return the ops of a step's graph, by default the last."""
    return [node.target for node in trace[step].nodes]


def project(layer: MLAAttention, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return `q_TNH`, `kv_c_TL` and `k_pe_T1R` of a layer, not rotated."""
    shape = layer.shape
    q = layer._project_q(hidden).view(-1, shape.num_heads, shape.qk_head_dim)
    latent = layer.kv_a_proj_with_mqa(hidden)
    kv_c, k_pe = latent.split([shape.kv_lora_rank, shape.qk_rope_head_dim], dim=-1)
    return q, layer.kv_a_layernorm(kv_c), k_pe.unsqueeze(1)


def rotate(
    layer: MLAAttention, positions: Tensor, q: Tensor, k_pe: Tensor, rope: Any = None
) -> Tensor:
    """Rotate the rope part of `q` in place and return the rotated key."""
    nope = layer.shape.qk_nope_head_dim
    rope = layer.rotary_emb if rope is None else rope
    q[..., nope:], k_pe = rope(positions, q[..., nope:], k_pe)
    return k_pe


def write(layer: MLAAttention, kv_c: Tensor, k_pe: Tensor) -> Tensor:
    """Write the layer's cache; returns the dummy dependency."""
    cache_dtype = layer.options.kv_cache_dtype
    return torch.ops.mlalab.unified_mla_kv_cache_update(
        kv_c, k_pe, layer.layer_name, cache_dtype, layer.k_scale
    )


def attend(layer: MLAAttention, q: Tensor, kv_c: Tensor, k_pe: Tensor, dummy: Any) -> Tensor:
    """Attend and project."""
    output = q.new_empty((q.size(0), layer.shape.num_heads * layer.shape.v_head_dim))
    torch.ops.mlalab.unified_mla_attention_with_output(
        q, kv_c, k_pe, output, layer.layer_name, kv_cache_dummy_dep=dummy
    )
    return layer.o_proj(output)


def one(model: Callable[..., Any]) -> Forward:
    """Return the forward of a model of one layer that starts from its projections."""

    def forward(layers: Sequence[MLAAttention], positions: Tensor, hidden: Tensor) -> Any:
        (layer,) = layers
        return model(layer, positions, *project(layer, hidden))

    return forward


def chain(layers: Sequence[MLAAttention], positions: Tensor, hidden: Tensor) -> Tensor:
    """Run the layers one after the other, unchanged and without residuals.

    A residual would let Inductor turn a matrix product and a sum into `addmm`, which rounds once.
    """
    for layer in layers:
        hidden = layer(positions, hidden)
    return hidden


def batches(tokens: int) -> Iterator[BatchMetadata | None]:
    """Yield decode, prefill and mixed batches of `tokens`, and None, a profile run."""
    one = {"block_size": BLOCK_SIZE}
    yield make_batch([1] * tokens, [16] * tokens, num_decodes=tokens, **one)
    if tokens > 1:
        yield make_batch([tokens], [5], num_decodes=0, **one)
        yield make_batch([1, tokens - 1], [16, 3], num_decodes=1, **one)
    yield None


def slot_maps(tokens: int) -> Iterator[Tensor | None]:
    """Yield a full, a holed and a short slot mapping, and None, a profile run."""
    slots = torch.arange(tokens).flip(0) * 2 + 1
    yield slots
    yield torch.where(slots % 3 == 0, -1, slots)
    yield slots[: max(tokens - 2, 0)]
    yield None


def steps_of(bench: Workbench, tokens: int) -> Iterator[tuple[ForwardContext, Tensor, Tensor]]:
    """Yield batch kinds with slot mappings: context, positions, hidden states."""
    hidden = torch.randn(tokens, bench.layers[0].shape.hidden_size)
    layers = {layer.layer_name: layer for layer in bench.layers}
    pairs = itertools.product(batches(tokens), slot_maps(tokens))
    if tokens > MANY:
        pairs = zip(batches(tokens), slot_maps(tokens), strict=True)
    for metadata, slots in pairs:
        positions = torch.arange(tokens) + 3 if metadata is None else metadata.positions()
        context = ForwardContext(layers=layers, metadata=metadata, slot_mapping=slots)
        yield context, positions, hidden.to(bench.layers[0].options.dtype)


def outcome(bench: Workbench, function: Any, step: tuple[ForwardContext, Tensor, Tensor]) -> Any:
    """Run one step from freshly filled caches; returns the output and every cache, named."""
    context, positions, hidden = step
    bench.randomise(1)
    with torch.no_grad(), forward_context(context):
        output = function(positions.clone(), hidden.clone())
    caches = {layer.layer_name: layer.kv_cache.storage.clone() for layer in bench.layers}
    return {"output": output, **caches}


def assert_same(expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Compare two outcomes bit for bit."""
    diffs = [compare(name, tensor, found[name]) for name, tensor in expected.items()]
    assert all(diff.equal for diff in diffs), [diff for diff in diffs if not diff.equal]
