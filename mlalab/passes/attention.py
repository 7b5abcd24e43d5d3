"""Calls of the MLA attention ops, functionalised or plain, and changing what they are given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

import mlalab.ops  # noqa: F401  registers torch.ops.mlalab before its ops are named below
from mlalab.graphs import bound_arguments, overload_of, wrapped_op

_ATTENTION = torch.ops.mlalab.unified_mla_attention_with_output.default
_DECODE = torch.ops.mlalab.mla_attention_decode.default
PREPARED = {_ATTENTION: "q_prepped", _DECODE: "q"}
"""Attention op → the argument by which it takes a prepared decode query."""


def op_of(node: fx.Node) -> Any:
    """Return the op that `node` calls, functionalised or not; None for another kind of node."""
    return (wrapped_op(node) or overload_of(node)) if node.op == "call_function" else None


def is_attention(node: fx.Node) -> bool:
    """Return whether `node` calls an MLA attention op that takes prepared queries."""
    return op_of(node) in PREPARED


def attentions(graph: fx.Graph) -> Iterator[tuple[fx.Node, dict[str, Any]]]:
    """Yield each call of the opaque attention op with its arguments by name."""
    return ((node, given) for node, given in all_attentions(graph) if op_of(node) is _ATTENTION)


def decode_attentions(graph: fx.Graph) -> Iterator[tuple[fx.Node, dict[str, Any]]]:
    """Yield each call of an exposed layer's decode attention with its arguments by name."""
    return ((node, given) for node, given in all_attentions(graph) if op_of(node) is _DECODE)


def all_attentions(graph: fx.Graph) -> Iterator[tuple[fx.Node, dict[str, Any]]]:
    """Yield both."""
    for node in graph.nodes:
        if is_attention(node):
            yield node, bound_arguments(node)


def change_arguments(node: fx.Node, **changes: Any) -> None:
    """Give an attention call other arguments, by name."""
    names = [argument.name for argument in op_of(node)._schema.arguments]
    positional = () if wrapped_op(node) is not None else names[: len(node.args)]
    for name, value in changes.items():
        if name in positional:
            node.update_arg(names.index(name), value)
        else:
            node.update_kwarg(name, value)
    # They no longer are what the call was given in eager mode.
    node.meta.pop("eager_input_vals", None)
