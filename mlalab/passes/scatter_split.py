"""Reading back what was just scattered → the scattered value itself.

An in-place op on a slice leaves, once functionalised, a `slice_scatter` into the whole tensor and a
fresh slice or split of the result for every later reader:

    slice_scatter(base, x, d, s, e) → split → getitem        becomes   x
    slice_scatter(base, x, d, s, e) → slice elsewhere        becomes   slice(base)

With these gone, RoPE's result reaches the cache update directly and a pattern can see it. Every
rule is local, holds for any functional graph, and needs only static bounds along the scattered
dimension.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from mlalab.compile.config import FUSION_FLAGS
from mlalab.graphs import SHAPE_ONLY, aten, erase_dead, is_call, value_of
from mlalab.passes.aliasing import Region, region_of
from mlalab.passes.fusion import CleanUp, PassResult
from mlalab.passes.rules import Rules, rewrite, unchanged_shape
from mlalab.passes.scatters import overwritten
from mlalab.passes.values import lie_alike


@dataclass(frozen=True, slots=True)
class Span:
    """Indices `start..stop` (exclusive) along one dimension of a tensor."""

    dim: int
    start: int
    stop: int

    def disjoint(self, other: Span) -> bool:
        """Return whether no index is in both, along the same dimension."""
        apart = self.stop <= other.start or other.stop <= self.start
        return self.dim == other.dim and apart


def span_of(base: Any, dim: int, start: Any, end: Any, step: int = 1) -> Span | None:
    """Return the static span of a slice of `base`, or None when it is not static or not dense."""
    value = value_of(base) if isinstance(base, fx.Node) else None
    if not isinstance(value, Tensor) or step != 1:
        return None
    dim = dim % value.dim()
    size = value.shape[dim]
    bounds = (0 if start is None else start, size if end is None else end, size)
    if not all(isinstance(b, int) for b in bounds):
        return None
    start, end, size = bounds
    start, end = (max(b + size, 0) if b < 0 else min(b, size) for b in (start, end))
    return Span(dim, start, max(start, end))


def slice_span(node: fx.Node) -> Span | None:
    """Return what a slice takes of its base."""
    base, *bounds = node.args
    return span_of(base, *_with_defaults(bounds))


def scatter_span(node: fx.Node) -> Span | None:
    """Return what a scatter overwrites of its base."""
    base, _, *bounds = node.args
    return span_of(base, *_with_defaults(bounds))


def _with_defaults(bounds: list[Any]) -> tuple[Any, Any, Any, Any]:
    """Fill in dim, start, end and step as `aten.slice` and `aten.slice_scatter` default them."""
    given = dict(zip(("dim", "start", "end", "step"), bounds, strict=False))
    return given.get("dim", 0), given.get("start"), given.get("end"), given.get("step", 1)


def split_span(node: fx.Node) -> Span | None:
    """Return what an item of a split takes of the split's base."""
    split, index = node.args
    base, sizes, *rest = split.args
    if not all(isinstance(s, int) for s in sizes):
        return None
    start = sum(sizes[:index])
    return span_of(base, rest[0] if rest else 0, start, start + sizes[index])


def _read(node: fx.Node, source: Any, span: Span | None) -> fx.Node | None:
    """A read of a scattered tensor: the scattered value, or a read of what lay under it."""
    if span is None or not is_call(source, aten.slice_scatter.default):
        return None
    written = scatter_span(source)
    if written == span:
        return source.args[1]
    if written is not None and written.disjoint(span):
        return _new_slice(node, source.args[0], span)
    return None


def _slice(node: fx.Node) -> fx.Node | None:
    return _read(node, node.args[0], slice_span(node))


def _split_item(node: fx.Node) -> fx.Node | None:
    split = node.args[0]
    if not is_call(split, aten.split_with_sizes.default):
        return None
    return _read(node, split.args[0], split_span(node))


def _scatter(node: fx.Node) -> fx.Node | None:
    """A scatter over the same span twice keeps the last; a self-copy changes nothing."""
    base, source = node.args[:2]
    own = region_of(source) if isinstance(source, fx.Node) else None
    if own is not None and own.same_as(Region.of(overwritten(node))):
        return base
    span = scatter_span(node)
    if is_call(base, aten.slice_scatter.default) and span == scatter_span(base) is not None:
        if base.args[1] is source:
            return base
        if lie_alike(value_of(base), value_of(base.args[0])):
            node.update_arg(0, base.args[0])
            erase_dead(base)
    return None


_RULES: Rules = {
    **dict.fromkeys(SHAPE_ONLY, unchanged_shape),
    aten.slice.Tensor: _slice,
    operator.getitem: _split_item,
    aten.slice_scatter.default: _scatter,
}


def _new_slice(node: fx.Node, base: fx.Node, span: Span) -> fx.Node:
    arguments = (base, span.dim, span.start, span.stop)
    with node.graph.inserting_before(node):
        new = node.graph.call_function(aten.slice.Tensor, arguments)
    new.meta = dict(node.meta)
    new.meta["val"] = aten.slice.Tensor(value_of(base), *arguments[1:])
    return new


def forward_scatters(graph: fx.Graph) -> PassResult:
    """Apply the rules to every node in order, in place; only while the graph is functional."""
    rewrite(graph, _RULES)
    return PassResult()


ScatterSplitReplacementPass = CleanUp(
    name="ScatterSplitReplacementPass",
    note="Readers of a scattered slice take the scattered value itself.",
    run=forward_scatters,
    flags=FUSION_FLAGS,
)
