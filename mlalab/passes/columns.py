"""Where the columns of a tensor come from.

Slices, joins, scatters and copies only move whole columns of the last dimension. Followed back
through them, a tensor falls into pieces, each some columns of a node that computes something. Rows
are never moved: whatever would, ends the walk.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx

from mlalab.graphs import SHAPE_ONLY, aten, is_call, value_of
from mlalab.passes.rules import unchanged_shape
from mlalab.passes.scatter_split import Span, scatter_span, slice_span, split_span
from mlalab.passes.values import same


@dataclass(frozen=True, slots=True)
class Piece:
    """Columns `first..first + width` of `source`, unchanged."""

    source: fx.Node
    first: int
    width: int

    @property
    def is_all(self) -> bool:
        """Return whether these are all columns of the source."""
        return self.first == 0 and self.width == value_of(self.source).shape[-1]


Pieces = tuple[Piece, ...]
Step = tuple[Sequence[fx.Node], Callable[..., Pieces]]
"""Nodes to follow, and what makes this node's pieces of theirs."""


def cut(pieces: Pieces, start: int, stop: int) -> Pieces:
    """Return columns `start..stop` of what `pieces` make up."""
    found, at = [], 0
    for piece in pieces:
        low, high = max(start - at, 0), min(stop - at, piece.width)
        if low < high:
            found.append(replace(piece, first=piece.first + low, width=high - low))
        at += piece.width
    return tuple(found)


def joined(*parts: Pieces) -> Pieces:
    """Return the pieces side by side; neighbours of one source become one piece."""
    found: list[Piece] = []
    for piece in (piece for part in parts for piece in part):
        last = found[-1] if found else None
        if last and last.source is piece.source and last.first + last.width == piece.first:
            found[-1] = replace(last, width=last.width + piece.width)
        else:
            found.append(piece)
    return tuple(found)


class Columns:
    """Finds the pieces of any node of a functional graph; each node is followed once."""

    def __init__(self) -> None:
        self._known: dict[fx.Node, Pieces] = {}

    def of(self, node: fx.Node) -> Pieces:
        """Return the pieces of `node`, whose last dimension must have a static size."""
        waiting = [node]
        while waiting:
            top = waiting[-1]
            step = None if top in self._known else _step(top)
            if step is None:
                self._known.setdefault(top, (Piece(top, 0, value_of(top).shape[-1]),))
                waiting.pop()
                continue
            sources, make = step
            missing = [source for source in sources if source not in self._known]
            if not missing:
                self._known[top] = make(*(self._known[source] for source in sources))
                waiting.pop()
            waiting += missing
        return self._known[node]


def _step(node: fx.Node) -> Step | None:
    """Return how to follow `node`, or None when it computes its columns."""
    rule = _RULES.get(node.target) if node.op == "call_function" else None
    step = rule(node) if rule is not None and _has_columns(node) else None
    return step if step is not None and all(_like(x, node) for x in step[0]) else None


def _has_columns(node: Any) -> bool:
    value = value_of(node) if isinstance(node, fx.Node) else None
    return isinstance(value, Tensor) and value.dim() > 0 and isinstance(value.shape[-1], int)


def _like(source: Any, node: fx.Node) -> bool:
    """Return whether `source` has the rows and the dtype of `node`, with columns of its own."""
    if not _has_columns(source):
        return False
    a, b = value_of(source), value_of(node)
    return a.dtype == b.dtype and same(a.shape[:-1], b.shape[:-1])


def _whole(source: Any) -> Step:
    return [source], lambda pieces: pieces


def _copy(node: fx.Node) -> Step | None:
    """What is copied may be broadcast, unless the sizes agree."""
    target, source = node.args[:2]
    alike = _has_columns(source) and same(value_of(source).shape, value_of(target).shape)
    return _whole(source) if alike else None


def _shape_only(node: fx.Node) -> Step | None:
    source = unchanged_shape(node)
    return None if source is None else _whole(source)


def _part(base: Any, span: Span | None) -> Step | None:
    if span is None or span.dim != value_of(base).dim() - 1:
        return None
    return [base], lambda pieces: joined(cut(pieces, span.start, span.stop))


def _slice(node: fx.Node) -> Step | None:
    # Bounds given by keyword are not looked at.
    return None if node.kwargs else _part(node.args[0], slice_span(node))


def _split_item(node: fx.Node) -> Step | None:
    split = node.args[0]
    if not is_call(split, aten.split_with_sizes.default):
        return None
    return _part(split.args[0], split_span(node))


def _scatter(node: fx.Node) -> Step | None:
    base, source = node.args[:2]
    span, width = scatter_span(node), value_of(node).shape[-1]
    if node.kwargs or span is None or span.dim != value_of(node).dim() - 1:
        return None
    start, stop = span.start, span.stop

    def make(old: Pieces, new: Pieces) -> Pieces:
        return joined(cut(old, 0, start), new, cut(old, stop, width))

    return [base, source], make


def _cat(node: fx.Node) -> Step | None:
    sources, dim = node.args[0], (*node.args[1:], node.kwargs.get("dim", 0))[0]
    return (sources, joined) if dim in (-1, value_of(node).dim() - 1) else None


_RULES: dict[Any, Callable[[fx.Node], Step | None]] = {
    **dict.fromkeys(SHAPE_ONLY, _shape_only),
    aten.alias.default: lambda node: _whole(node.args[0]),
    aten.cat.default: _cat,
    aten.clone.default: lambda node: _whole(node.args[0]),
    aten.copy.default: _copy,
    aten.slice.Tensor: _slice,
    aten.slice_scatter.default: _scatter,
    operator.getitem: _split_item,
}
"""Op → rule that says which nodes its columns come from."""
