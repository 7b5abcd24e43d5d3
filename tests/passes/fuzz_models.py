"""Random models of one to three attention layers, unlike each other and taken apart.

`write_model(choose)` makes one up: `choose(n)` picks an index below `n`. Every step runs on real
tensors while it is chosen, so that what eager mode refuses is not part of the model. Between the
parts of a layer may stand anything: other readers, views, writes in place, another layer's tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mlalab.context import ForwardContext, forward_context
from mlalab.layers.options import LayerOptions
from mlalab.shapes import GQAShape, MLAShape, RopeSpec
from mlalab.workbench import BLOCK_SIZE, build
from tests.passes.fuzz_parts import PHASES, between
from tests.passes.fuzz_steps import HIDDEN, Choose, RandomModel, Writer

WIDTH = 24
"""Of the hidden states of every layer."""
NUM_BLOCKS = 5
_YARN = {"kind": "yarn", "factor": 8.0, "original_max_position_embeddings": 16, "mscale": 1.0}
_HALF = (torch.bfloat16, torch.float16)


def random_layers(choose: Choose) -> list[Any]:
    """Return layers with a cache each; most are alike, as in a real model, and some are not."""
    made: list[tuple[Any, LayerOptions]] = []
    for _ in range(1 + choose(3)):
        alike = made and choose(2)
        made.append(made[-1] if alike else (_shape(choose), _options(choose)))
    layers = [build(shape, tokens=1, options=options).layers[0] for shape, options in made]
    for index, layer in enumerate(layers):
        layer.layer_name = f"model.layers.{index}.self_attn"
        layer.allocate_cache(NUM_BLOCKS, BLOCK_SIZE)
        layer.k_scale.fill_(0.37 + index / 8)
    return layers


def _shape(choose: Choose) -> MLAShape | GQAShape:
    spec = _YARN if choose(2) else {"kind": ("default", "default", "none")[choose(3)]}
    rope = RopeSpec(**spec, is_neox=bool(choose(2)))
    common: dict[str, Any] = {"hidden_size": WIDTH, "rope": rope, "max_position_embeddings": 64}
    if choose(3) == 0:
        kv_heads = 1 + choose(2)
        heads = kv_heads * (1 + choose(2))
        head_dim = (4, 8)[choose(2)]
        return GQAShape(num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim, **common)
    return MLAShape(
        num_heads=1 + choose(3),
        qk_nope_head_dim=(4, 6)[choose(2)],
        qk_rope_head_dim=(4, 8, 2)[choose(3)],
        v_head_dim=(2, 4)[choose(2)],
        kv_lora_rank=(6, 8)[choose(2)],
        q_lora_rank=(None, 6)[choose(2)],
        **common,
    )


def _options(choose: Choose) -> LayerOptions:
    custom = bool(choose(2))
    return LayerOptions(
        kv_cache_dtype=("auto", "fp8")[choose(2)],
        rope_custom_op=custom,
        rope_in_fp32=custom or bool(choose(2)),
        rope_cache_dtype=(torch.float32, None)[choose(2)],
        dtype=(torch.float32, *_HALF)[choose(3)],
    )


def write_model(
    choose: Choose, layers: Sequence[Any], context: ForwardContext, tokens: int
) -> RandomModel:
    """Write a model of these layers, running it in `context` as it is written."""
    writer = Writer(choose, layers, list(example_inputs(tokens, 0)))
    writer.roles = [{"hidden": HIDDEN} for _ in layers]
    with torch.no_grad(), forward_context(context):
        for n, phase in _order(writer):
            PHASES[phase](writer, n)
            if writer.odd(5):
                between(writer, n)
    # Now and then some layers are computed for nothing.
    last = writer.odd(8)
    writer.in_order = writer.in_order and not last
    results = {roles["hidden"] for roles in writer.roles[-1 if last else 0 :]}
    outputs = {*results, *writer.shown}
    model = RandomModel(layers, writer.steps, sorted(outputs)).eval()
    model.in_order = writer.in_order
    return model


def _order(writer: Writer) -> list[tuple[int, int]]:
    """Return (layer, phase) in order: layer after layer or, now and then, interleaved."""
    left = [[(n, phase) for phase in range(4)] for n in range(len(writer.layers))]
    mixed, order = writer.odd(3), []
    while any(left):
        waiting = [queue for queue in left if queue]
        order.append(waiting[writer.choose(len(waiting)) if mixed else 0].pop(0))
    return order


def example_inputs(tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return positions and hidden states."""
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randint(0, 60, (tokens,), generator=generator)
    return positions, torch.randn(tokens, WIDTH, generator=generator)
