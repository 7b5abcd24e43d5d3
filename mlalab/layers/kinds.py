"""The kinds of attention layer, by the shape that describes them."""

from __future__ import annotations

from mlalab.layers.gqa import GQAAttention
from mlalab.layers.mla import MLAAttention
from mlalab.layers.options import LayerOptions
from mlalab.shapes import AttentionShape, GQAShape, MLAShape

Attention = MLAAttention | GQAAttention

_LAYERS: dict[type, type[Attention]] = {MLAShape: MLAAttention, GQAShape: GQAAttention}


def attention_of(shape: AttentionShape, layer_name: str, options: LayerOptions) -> Attention:
    """Return a layer of these sizes, its weights as torch draws them."""
    layer: Attention = _LAYERS[type(shape)](shape, layer_name, options)  # type: ignore[arg-type]
    return layer
