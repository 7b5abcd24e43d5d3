"""Reshapes, slices and scatters that change nothing.

    reshape(reshape(x, a), b)                     becomes   reshape(x, b)
    reshape or slice of the shape it began with   becomes   its input
    slice_scatter(base, x, …), x of base's shape  becomes   x

A slice is judged by the size of its result, so one that ends at -1 stays: it leaves an element out.
"""

from __future__ import annotations

from torch import Tensor, fx

from mlalab.graphs import aten, fake_mode_of, is_call, value_of
from mlalab.passes.fusion import CleanUp, PassResult
from mlalab.passes.rules import Rules, rewrite, unchanged_shape
from mlalab.passes.values import same, shares_storage

_RESHAPES = (aten.reshape.default, aten.view.default, aten._unsafe_view.default)


def _whole_slice(node: fx.Node) -> fx.Node | None:
    """A slice as large as its input leaves nothing out, whatever its bounds."""
    base = node.args[0]
    return base if same(value_of(base).shape, value_of(node).shape) else None


def _whole_scatter(node: fx.Node) -> fx.Node | None:
    """A scatter as large as its base leaves nothing of it."""
    base, source = node.args[:2]
    return source if same(value_of(base).shape, value_of(source).shape) else None


def _collapsed(node: fx.Node) -> fx.Node | None:
    """A reshape of a reshape needs only the last."""
    inner = node.args[0]
    if not is_call(inner, *_RESHAPES) or not isinstance(value_of(inner.args[0]), Tensor):
        return None
    if len(inner.users) > 1 and not shares_storage(inner):
        return None  # one copy would become several
    source, shape = inner.args[0], node.args[1]
    with node.graph.inserting_before(node):
        new = node.graph.call_function(node.target, (source, shape))
    new.meta = dict(node.meta)
    sizes = fx.node.map_arg(shape, value_of)
    with fake_mode_of(value_of(source)):
        new.meta["val"] = node.target(value_of(source), sizes)
    return new


_UNCHANGED: Rules = {
    **dict.fromkeys(_RESHAPES, unchanged_shape),
    aten.slice.Tensor: _whole_slice,
    aten.slice_scatter.default: _whole_scatter,
}
_COLLAPSE: Rules = dict.fromkeys(_RESHAPES, _collapsed)


def eliminate_noops(graph: fx.Graph) -> PassResult:
    """Drop what changes nothing, in place; only while the graph is functional."""
    rewrite(graph, _UNCHANGED)
    # Afterwards: a chain that comes back to an earlier shape is to end in that very node.
    rewrite(graph, _COLLAPSE)
    return PassResult()


NoOpEliminationPass = CleanUp(
    name="NoOpEliminationPass",
    note="Reshapes, slices and scatters that change nothing are dropped.",
    flags=("eliminate_noops",),
    run=eliminate_noops,
)
