"""Local rules over a functional graph: a node whose readers may read another one instead.

A rule names a node of equal elements. Whether the readers may really take it, which depends on how
both lie in memory and on what the caller can see, is decided here, for every rule alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx

from mlalab.graphs import (
    SHAPE_ONLY,
    aten,
    erase_dead,
    is_call,
    storage_key,
    value_of,
    written_nodes,
)
from mlalab.passes.aliasing import gives_new_sharing
from mlalab.passes.values import may_stand_for, refresh_stale, replace, same

Rules = Mapping[Any, Callable[[fx.Node], fx.Node | None]]
"""Op → rule that returns a node of the same elements, or None."""


def is_functional(graph: fx.Graph) -> bool:
    """Return whether nothing but the write-back into inputs writes in place."""
    return not any(written_nodes(n) and not is_call(n, aten.copy_.default) for n in graph.nodes)


def rewrite(graph: fx.Graph, rules: Rules) -> None:
    """Apply the rules to every node in order, in place; only while the graph is functional."""
    if not is_functional(graph):
        return
    refresh_stale(graph)
    for node in list(graph.nodes):
        # What a rule returns may itself have a rule.
        while not node._erased and (source := _replacement(node, rules)) is not None:
            replace(node, source)
            erase_dead(node)
            node = source


def _replacement(node: fx.Node, rules: Rules) -> fx.Node | None:
    """Return a node that every reader of `node` may read instead, or None."""
    rule = rules.get(node.target) if node.op == "call_function" else None
    if rule is None or not isinstance(value_of(node), Tensor):
        return None
    source = rule(node)
    if not isinstance(source, fx.Node) or source is node:
        return None
    shared = gives_new_sharing(node.graph, {storage_key(node), storage_key(source)})
    if shared or not may_stand_for(source, node):
        erase_dead(source)
        return None
    return source


def unchanged_shape(node: fx.Node) -> fx.Node | None:
    """A chain of reshapes that ends in the shape it began with is its own beginning."""
    shape, source = value_of(node).shape, node.args[0]
    while isinstance(source, fx.Node) and isinstance(value_of(source), Tensor):
        if same(value_of(source).shape, shape):
            return source
        if not is_call(source, *SHAPE_ONLY):
            return None
        source = source.args[0]
    return None
