"""Which memory a node stands for, and who still reads it.

Views share a storage; two views of one storage may still touch different elements (the nope and
rope columns of a query). Overlap is assumed unless it is disproved.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import statically_known_true as known

from mlalab.graphs import aten, is_call, is_view, storage_key, value_of
from mlalab.passes.values import refresh_stale, same, shares_storage

_METADATA = (aten.sym_size.int, aten.sym_stride.int, aten.sym_numel.default)
"""Ops that look at a tensor's sizes only."""


@dataclass(frozen=True, slots=True)
class Region:
    """The bytes of one storage that a strided view touches; its last dimension is one element."""

    storage: int
    offset: Any
    sizes: tuple[Any, ...]
    strides: tuple[Any, ...]

    @classmethod
    def of(cls, value: Tensor) -> Region:
        """Return where `value` lies."""
        unit, storage = value.element_size(), value.untyped_storage()._cdata
        strides = (*(s * unit for s in value.stride()), 1)
        return cls(storage, value.storage_offset() * unit, (*value.shape, unit), strides)

    def same_as(self, other: Region) -> bool:
        """Return whether both are known to put the same element at every index."""
        return self.storage == other.storage and same(
            (self.offset, *self.sizes, *self.strides), (other.offset, *other.sizes, *other.strides)
        )

    def overlaps(self, other: Region) -> bool:
        """Return False only when the two provably share no byte."""
        if self.storage != other.storage or self._empty or other._empty:
            return False
        if known(self._end <= other.offset) or known(other._end <= self.offset):
            return False
        return not any(
            _apart(self._columns(pitch), other._columns(pitch))
            for pitch in {*self._pitches(), *other._pitches()}
        )

    @property
    def self_overlapping(self) -> bool:
        """Return False only when no two indices name one element (as in an expanded dimension)."""
        reach: Any = 0
        for size, stride in sorted(zip(self.sizes, self.strides, strict=True), key=_by_stride):
            if known(size == 1):
                continue
            if not known(stride > reach):
                return not self._empty
            reach = reach + (size - 1) * stride
        return False

    @property
    def _empty(self) -> bool:
        return any(known(size == 0) for size in self.sizes)

    @property
    def _end(self) -> Any:
        last = ((n - 1) * stride for n, stride in zip(self.sizes, self.strides, strict=True))
        return self.offset + sum(last) + 1

    def _pitches(self) -> Iterator[int]:
        return (s for s in self.strides if isinstance(s, int) and s > 1)

    def _columns(self, pitch: int) -> tuple[int, int] | None:
        """Return the column interval of the view when memory is cut into rows of `pitch`.

        None when the view's rows are not whole multiples of the pitch, or it leaves its row.
        """
        if not isinstance(self.offset, int):
            return None
        first = self.offset % pitch
        last = first
        for size, stride in zip(self.sizes, self.strides, strict=True):
            if known(stride % pitch == 0):
                continue
            if not isinstance(stride, int) or not isinstance(size, int):
                return None
            last += (size - 1) * stride
        return (first, last + 1) if last < pitch else None


def _apart(a: tuple[int, int] | None, b: tuple[int, int] | None) -> bool:
    return a is not None and b is not None and (a[1] <= b[0] or b[1] <= a[0])


def _by_stride(dim: tuple[Any, Any]) -> Any:
    stride = dim[1]
    if isinstance(stride, torch.SymInt):
        return stride.node.hint if stride.node.has_hint() else 0
    return stride


def region_of(node: fx.Node) -> Region | None:
    """Return the memory a node's value stands for, or None when it is not a strided tensor."""
    return None if storage_key(node) is None else Region.of(value_of(node))


def gives_new_sharing(graph: fx.Graph, storages: set[int | None]) -> bool:
    """Return whether making `storages` one would give the caller two tensors in one memory.

    The caller may write to what it holds: results and inputs that were apart must stay apart.
    """
    shown = {storage_key(n) for n in graph.output_node().all_input_nodes} & (storages - {None})
    if not shown:
        return False
    held = {storage_key(n) for op in ("placeholder", "get_attr") for n in graph.find_nodes(op=op)}
    return len(shown | (held & storages)) > 1


class AliasIndex:
    """The nodes of a graph by the storage they share."""

    def __init__(self, graph: fx.Graph) -> None:
        refresh_stale(graph)
        self._nodes: dict[int, dict[fx.Node, None]] = defaultdict(dict)
        for node in graph.nodes:
            self.add(node)

    def add(self, node: fx.Node) -> None:
        """Enter a node, once its value is known or has changed."""
        key = storage_key(node)
        if key is not None:
            self._nodes[key][node] = None

    def aliases(self, node: fx.Node) -> list[fx.Node]:
        """Return the nodes that share `node`'s storage, itself included."""
        key = storage_key(node)
        return [] if key is None else self._sharing(key)

    def _sharing(self, key: int) -> list[fx.Node]:
        found = self._nodes.get(key, {})
        return [n for n in found if not n._erased and storage_key(n) == key]

    def readers_after(self, point: fx.Node, region: Region) -> Iterator[tuple[fx.Node, fx.Node]]:
        """Yield (reader, alias) for every node after `point` that reads memory in `region`."""
        for alias in self._sharing(region.storage):
            late = [user for user in alias.users if user > point and _reads(user, alias)]
            own = region_of(alias) if late else None
            if own is not None and own.overlaps(region):
                yield from ((user, alias) for user in late)


def _reads(user: fx.Node, alias: fx.Node) -> bool:
    """Return whether `user` reads the elements of `alias`: taking a view or a size does not.

    The target of `aten.copy` lends its shape only. A reshape that had to copy did read.
    """
    if is_call(user, aten.copy.default):
        return user.args[1] is alias
    return not is_call(user, *_METADATA) and not (is_view(user) and shares_storage(user))
