"""Which memory a node stands for, and who still reads it.

Views share a storage; two views of one storage may still touch different elements (the nope and
rope columns of a query). Overlap is assumed unless it is disproved.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from mlalab.graphs import aten, is_call, storage_key, value_of


@dataclass(frozen=True, slots=True)
class Region:
    """The elements of one storage that a strided view touches."""

    storage: int
    offset: object
    sizes: tuple[object, ...]
    strides: tuple[object, ...]

    def overlaps(self, other: Region) -> bool:
        """Return False only when the two provably share no element."""
        if self.storage != other.storage:
            return False
        return not any(
            self._columns(pitch) is not None and _apart(self._columns(pitch), other._columns(pitch))
            for pitch in {*self._pitches(), *other._pitches()}
        )

    @property
    def self_overlapping(self) -> bool:
        """Return whether two indices may name one element (an expanded dimension)."""
        return any(
            stride == 0 and size != 1 for size, stride in zip(self.sizes, self.strides, strict=True)
        )

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
            if not isinstance(stride, int):
                return None
            if stride >= pitch:
                if stride % pitch:
                    return None
            elif not isinstance(size, int):
                return None
            else:
                last += max(size - 1, 0) * stride
        return (first, last + 1) if last < pitch else None


def _apart(a: tuple[int, int] | None, b: tuple[int, int] | None) -> bool:
    return a is not None and b is not None and (a[1] <= b[0] or b[1] <= a[0])


def region_of(node: fx.Node) -> Region | None:
    """Return the memory a node's value stands for, or None when it is not a strided tensor."""
    key = storage_key(node)
    if key is None:
        return None
    value = value_of(node)
    return Region(key, value.storage_offset(), tuple(value.shape), tuple(value.stride()))


class AliasIndex:
    """The nodes of a graph by the storage they share."""

    def __init__(self, graph: fx.Graph) -> None:
        self._nodes: dict[int, list[fx.Node]] = defaultdict(list)
        for node in graph.nodes:
            self.add(node)

    def add(self, node: fx.Node) -> None:
        """Enter a node, once its value is known or has changed."""
        key = storage_key(node)
        if key is not None:
            self._nodes[key].append(node)

    def aliases(self, node: fx.Node) -> list[fx.Node]:
        """Return the nodes that share `node`'s storage, itself included."""
        key = storage_key(node)
        found = self._nodes.get(key, []) if key is not None else []
        return [n for n in found if not n._erased and storage_key(n) == key]

    def readers_after(self, point: fx.Node, region: Region) -> Iterator[tuple[fx.Node, fx.Node]]:
        """Yield (reader, alias) for every node after `point` that reads memory in `region`.

        Taking another view reads nothing; neither does being the target of `aten.copy`, which is
        overwritten whole.
        """
        for alias in list(self._nodes.get(region.storage, ())):
            own = None if alias._erased else region_of(alias)
            if own is None or own.storage != region.storage or not own.overlaps(region):
                continue
            for user in alias.users:
                if user > point and not _only_views(user, alias):
                    yield user, alias


def _only_views(user: fx.Node, alias: fx.Node) -> bool:
    if is_call(user, aten.copy.default):
        return user.args[0] is alias and user.args[1] is not alias
    if user.op != "call_function":
        return False
    if isinstance(value_of(user), (list, tuple)):
        # A split: its items are views of their own, listed under the same storage.
        return is_call(user, aten.split_with_sizes.default, aten.split.Tensor)
    return storage_key(user) == storage_key(alias)
