"""Calls of the MLA attention op, functionalised or plain, and changing what they are given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

import mlalab.ops  # noqa: F401  registers torch.ops.mlalab before its ops are named below
from mlalab.graphs import bound_arguments, overload_of, wrapped_op

_ATTENTION = torch.ops.mlalab.unified_mla_attention_with_output.default


def is_attention(node: fx.Node) -> bool:
    """Return whether `node` calls the MLA attention op."""
    return node.op == "call_function" and (wrapped_op(node) or overload_of(node)) is _ATTENTION


def attentions(graph: fx.Graph) -> Iterator[tuple[fx.Node, dict[str, Any]]]:
    """Yield each attention call with its arguments by name."""
    for node in graph.nodes:
        if is_attention(node):
            yield node, bound_arguments(node)


def change_arguments(node: fx.Node, **changes: Any) -> None:
    """Give an attention call other arguments, by name."""
    names = [argument.name for argument in _ATTENTION._schema.arguments]
    positional = () if wrapped_op(node) is not None else names[: len(node.args)]
    for name, value in changes.items():
        if name in positional:
            node.update_arg(names.index(name), value)
        else:
            node.update_kwarg(name, value)
    # They no longer are what the call was given in eager mode.
    node.meta.pop("eager_input_vals", None)
