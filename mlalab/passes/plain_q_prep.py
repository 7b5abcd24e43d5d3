"""The decode query's preparation where an exposed layer does it in plain torch.

Before:  q_nope ─► bmm W_UK ─► cat q_pe ─► quantise ─► mla_attention_decode(q, layer)

Which layer's query it is, the attention op says, and so every size, dtype and constant is known:
the preparation is traced with them, and the graph must agree in all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from mlalab.context import current_context
from mlalab.errors import MlalabError
from mlalab.graphs import fake_mode_of, is_view, value_of
from mlalab.passes import tracing
from mlalab.passes.explain import Miss, attempt
from mlalab_kernels.mla_decode_q_prep.reference import mla_decode_q_prep_of_parts

_NAMES = ("q_nope", "q_pe", "w_uk", "q_scale")


class PlainPreparations:
    """Finds what plain preparations are made of; layers of one shape share a pattern."""

    def __init__(self) -> None:
        self._patterns: dict[Any, tracing.Outputs] = {}

    def parts_of(self, query: fx.Node, layer_name: str | None) -> tuple[fx.Node, fx.Node] | str:
        """Return `q_nope` and rotated `q_pe` of the layer's prepared query, or why they are none.

        Args:
            query: what decode attention takes, `[n, N, L + R]`.
        """
        value = value_of(query)
        try:
            layer = current_context().layer(str(layer_name))
        except MlalabError as error:
            return str(error)
        pattern = self._pattern(layer, value)
        match = attempt(pattern, query, "plain")
        if isinstance(match, Miss):
            return f"its query is not prepared as the layer does it: {match.reason}"
        for name in ("w_uk", "q_scale"):
            if not _is_input(match.kwargs.get(name)):
                return f"its query is prepared with a {name} that is not an input of the graph"
        # Read off the shape: a fake mode is on here, and the layer's own weight is real.
        shape = layer.shape
        sizes = (shape.num_heads, shape.qk_nope_head_dim, shape.kv_lora_rank)
        strides = ((sizes[1] + shape.v_head_dim) * sizes[2], sizes[2], 1)
        w_uk = value_of(match.kwargs["w_uk"])
        if (tuple(w_uk.shape), w_uk.stride(), w_uk.storage_offset()) != (sizes, strides, 0):
            return "its query is prepared with a weight that does not lie like the layer's W_UK"
        return match.kwargs["q_nope"], match.kwargs["q_pe"]

    def _pattern(self, layer: Any, query: Tensor) -> tracing.Outputs:
        shape, dtype, rows = layer.shape, layer.options.dtype, query.shape[0]
        key = (shape, dtype, layer._query_dtype, str(rows))
        if key not in self._patterns:
            sizes = (shape.qk_nope_head_dim, shape.kv_lora_rank)
            with fake_mode_of(query):
                parts = [
                    query.new_empty((rows, shape.num_heads, width), dtype=dtype)
                    for width in (shape.qk_nope_head_dim, shape.qk_rope_head_dim)
                ]
                w_uk = query.new_empty((shape.num_heads, *sizes), dtype=dtype)
                q_scale = query.new_empty((), dtype=torch.float32)

                def prepare(*given: Tensor) -> Tensor:
                    nope, pe, weight, scale = given
                    dtype = layer._query_dtype
                    return mla_decode_q_prep_of_parts(nope, pe, weight, scale, dtype)

                gm = tracing.trace(prepare, [*parts, w_uk, q_scale], ())
            # An unquantised query has no scale in its graph.
            self._patterns[key] = tracing.to_pattern(gm, _NAMES, (), blind=False)
        return self._patterns[key]


def _is_input(node: fx.Node | None) -> bool:
    """Return whether `node` is a graph input or a view of one; None, not needed, counts."""
    while node is not None and is_view(node):
        node = node.all_input_nodes[0]
    return node is None or node.op == "placeholder"
