"""Splits of one tensor into the same pieces → one split.

Functionalisation splits a tensor anew for each reader of a piece; a pattern that reads two pieces
expects them from one split.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable

from torch import fx

from mlalab.compile.config import FUSION_FLAGS
from mlalab.graphs import aten, erase_dead, is_call, value_of
from mlalab.passes.fusion import CleanUp, PassResult
from mlalab.passes.rules import is_functional
from mlalab.passes.values import replace

_SPLITS = (aten.split_with_sizes.default, aten.split.Tensor)


def _pieces(split: fx.Node) -> Hashable:
    """Return what tells two splits apart: the tensor, the size or sizes, the dimension."""
    base, sizes, *rest = split.args
    dim = rest[0] if rest else split.kwargs.get("dim", 0)
    sizes = tuple(sizes) if isinstance(sizes, (list, tuple)) else sizes
    return base, sizes, dim % value_of(base).dim()


def coalesce_splits(graph: fx.Graph) -> PassResult:
    """Let equal splits be one, in place; only while the graph is functional."""
    if not is_functional(graph):
        return PassResult()
    first: dict[Hashable, fx.Node] = {}
    for split in [node for node in graph.nodes if is_call(node, *_SPLITS)]:
        if not all(is_call(user, operator.getitem) for user in split.users):
            continue
        kept = first.setdefault(_pieces(split), split)
        if kept is not split:
            split.replace_all_uses_with(kept)
            erase_dead(split)
    for split in first.values():
        _coalesce_items(split)
    return PassResult()


def _coalesce_items(split: fx.Node) -> None:
    """Let each piece be taken once, where it is taken first."""
    taken: dict[int, fx.Node] = {}
    for item in sorted(split.users):
        kept = taken.setdefault(item.args[1], item)
        if kept is not item:
            replace(item, kept)
            erase_dead(item)


SplitCoalescingPass = CleanUp(
    name="SplitCoalescingPass",
    note="Equal splits of one tensor become one.",
    flags=FUSION_FLAGS,
    run=coalesce_splits,
)
