"""Readers that see how a tensor lies in memory, and what a fusion owes them.

A reduction over a dense tensor runs over it as one row, and over one with gaps row by row: the same
elements, another order, other last bits. A fused op rotates in place, so its result has the gaps of
the slice it came from, where plain arithmetic made a dense tensor. A graph's output counts too:
where it is a piece of a larger graph, the next piece was compiled for the layout that was promised.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx

from mlalab.graphs import aten, fake_mode_of, is_call, is_view, value_of
from mlalab.passes.values import BY_LAYOUT, is_dense


def keep_dense(node: fx.Node, new: Tensor) -> None:
    """Give readers that see its layout a dense copy of `node`, where what replaces it is not dense.

    Args:
        node: a tensor of a graph; a `node` that is not dense itself is left alone.
        new: the value that is to replace its own.
    """
    old, readers = value_of(node), list(_seeing(node))
    if not readers or not is_dense(old) or is_dense(new):
        return
    dense = {"memory_format": torch.contiguous_format}
    with node.graph.inserting_after(node):
        copy = node.graph.call_function(aten.clone.default, (node,), dense)
    with fake_mode_of(old):
        copy.meta["val"] = aten.clone.default(old, **dense)
    for reader in readers:
        reader.replace_input_with(node, copy)


def _seeing(node: fx.Node) -> Iterator[fx.Node]:
    """Yield what sees how `node` lies: its users, and views of it that something sees so."""
    for user in node.users:
        tags = getattr(user.target, "tags", ())
        sees = user.op == "output" or is_call(user, *BY_LAYOUT) or torch.Tag.reduction in tags
        if sees or (is_view(user) and any(True for _ in _seeing(user))):
            yield user
