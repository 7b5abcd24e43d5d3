"""Functional graphs of a rotated query, small and written by hand: what exercises of 05 work on."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._higher_order_ops.auto_functionalize import auto_functionalized
from torch._subclasses import FakeTensorMode

import mlalab.ops  # noqa: F401  registers torch.ops.mlalab
from mlalab.graphs import aten, value_of

MAX = 2**63 - 1
NOPE, ROPE, HEADS = 8, 4, 3
"""Columns of a head without and with position, and heads, of every graph here."""


class GraphByHand:
    """A functional graph written by hand, with the values that tracing would leave on its nodes.

    Args:
        given: name of an input → what it is run on; tensors may share memory.
    """

    def __init__(self, given: Mapping[str, Tensor]) -> None:
        self.graph, self.mode, self.given = fx.Graph(), FakeTensorMode(), list(given.values())
        self.inputs = [self._input(name, value) for name, value in given.items()]

    def _input(self, name: str, value: Tensor) -> fx.Node:
        node = self.graph.placeholder(name)
        node.meta["val"] = self.mode.from_tensor(value)
        return node

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Add a call and return its node."""
        node = self.graph.call_function(target, args, kwargs)
        fakes = fx.node.map_arg((args, kwargs), value_of)
        with self.mode:
            node.meta["val"] = target(*fakes[0], **fakes[1])
        return node


class Draft(GraphByHand):
    """A graph of a rotated query and a residual in the same memory as the query.

    Args:
        tokens: rows.
    """

    def __init__(self, tokens: int) -> None:
        q_TNH = torch.randn(tokens, HEADS, NOPE + ROPE)
        positions, table = torch.arange(tokens), torch.randn(max(tokens, 1), ROPE)
        super().__init__({"x": q_TNH, "residual": q_TNH, "pos": positions, "table": table})
        x, self.residual, self.positions, self.table = self.inputs
        self.q = self(aten.mul.Tensor, x, 2)

    def part(self, base: fx.Node, start: int = NOPE, end: int = MAX) -> fx.Node:
        """Add a slice of the columns of `base`; by default the rope columns."""
        return self(aten.slice.Tensor, base, 2, start, end)

    def rotate(self, target: fx.Node) -> fx.Node:
        """Add the functionalised rotation of `target` and return the item that it makes."""
        call = self(
            *(auto_functionalized, torch.ops.mlalab.rotary_embedding.default),
            positions=self.positions,
            query=target,
            key=None,
            head_size=ROPE,
            cos_sin_cache=self.table,
            is_neox=False,
        )
        return self(operator.getitem, call, 1)

    def scatter(self, base: fx.Node, source: fx.Node, start: int = NOPE, end: int = MAX) -> fx.Node:
        """Add a scatter of `source` into columns of `base`."""
        return self(aten.slice_scatter.default, base, source, 2, start, end)

    def copied(self, item: fx.Node) -> fx.Node:
        """Add a copy of `item` over a slice of the query, as an assignment leaves it."""
        return self(aten.copy.default, self.part(self.q), item)


@dataclass(frozen=True, slots=True)
class Scattered:
    """What a functionalised call writes, and the item that holds the result."""

    graph: fx.Graph
    target: fx.Node
    item: fx.Node


def scattered(kind: str) -> Scattered:
    """Return a graph in which a rotated query goes back, one way or another.

    Args:
        kind: a key of `SCATTERED`.
    """
    draft = Draft(5)
    target = draft.part(draft.q)
    item = draft.rotate(target)
    draft.graph.output([_WAYS[kind](draft, item)])
    return Scattered(draft.graph, target, item)


def _two_bases(draft: Draft, item: fx.Node) -> fx.Node:
    view = draft(aten.reshape.default, draft.q, [5, HEADS, NOPE + ROPE])
    first = draft.scatter(view, draft.copied(item))
    return draft(aten.add.Tensor, first, draft.scatter(draft.q, item, 0, ROPE))


_WAYS: dict[str, Callable[[Draft, fx.Node], fx.Node]] = {
    "back where it came from": lambda d, item: d.scatter(d.q, item),
    "back through a copy": lambda d, item: d.scatter(d.q, d.copied(item)),
    "no scatter at all": lambda d, item: d(aten.neg.default, item),
    "into other columns": lambda d, item: d.scatter(d.q, item, 0, ROPE),
    "into another tensor": lambda d, item: d.scatter(d.residual, item),
    "as the base": lambda d, item: d(
        aten.slice_scatter.default, item, d(aten.neg.default, d.part(d.q)), 2, 0, ROPE
    ),
    "twice, once elsewhere": _two_bases,
}
SCATTERED = tuple(_WAYS)


def rotated_query(tokens: int, *, read_directly: bool = False) -> Draft:
    """Return a query whose rope columns are rotated, put back, and added to a residual.

    Args:
        read_directly: something besides the scatter reads the rotated columns, before it.
    """
    draft = Draft(tokens)
    item = draft.rotate(draft.part(draft.q))
    extra = [draft(aten.neg.default, item)] if read_directly else []
    total = draft(aten.add.Tensor, draft.scatter(draft.q, item), draft.residual)
    draft.graph.output([total, *extra])
    return draft
