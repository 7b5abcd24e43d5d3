"""Functionalised ops back to in-place ones, by one rule for every op.

Before:  h = auto_functionalized(op, x=slice, …); y = h[1]; copy(slice', y) → slice_scatter(view, ·)
After:   op(x=slice, …)                 and readers of y or of the scatter read the written memory

What is written is read off the op's schema. An argument is written in place only when nothing
later in the graph still reads the old value of any memory it overlaps, and the memory is the
graph's own; otherwise a clone is written, with the reason given. A copy-and-scatter chain is
folded only when it puts the result back exactly where it came from.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from mlalab.graphs import (
    aten,
    fake_mode_of,
    is_call,
    layer_of,
    mutated_arguments,
    refresh_views,
    value_of,
    wrapped_op,
)
from mlalab.passes.aliasing import AliasIndex, Region, region_of
from mlalab.passes.fusion import CleanUp, PassResult
from mlalab.records import MatchRecord, Refusal


@dataclass(slots=True)
class Rewrite:
    """One functionalised call being turned back."""

    node: fx.Node
    op: torch._ops.OpOverload
    aliases: AliasIndex
    clones: list[Refusal] = field(default_factory=list)

    @property
    def graph(self) -> fx.Graph:
        """The graph being rewritten."""
        return self.node.graph

    def objection(self) -> str | None:
        """Return why this call cannot be turned back at all, looking only."""
        for user in self.node.users:
            if not is_call(user, operator.getitem) or not isinstance(user.args[1], int):
                return f"its result is used whole by {user.name}, not item by item"
        for name in mutated_arguments(self.op):
            value = self.node.kwargs.get(name)
            if value is not None and not isinstance(value, fx.Node):
                return f"it writes {name}, a list of tensors"
            if isinstance(value, fx.Node) and region_of(value) is None:
                return f"it writes {name}, whose storage is not known"
        return None

    def apply(self) -> None:
        """Turn the call back; every choice below keeps the graph's meaning."""
        kwargs = dict(self.node.kwargs)
        names = mutated_arguments(self.op)
        returns = len(self.op._schema.returns)
        for index, name in enumerate(names, start=max(returns, 1)):
            target = kwargs[name]
            if not isinstance(target, fx.Node):
                continue
            items = self._items(index)
            reason = self._unsafe(target, items)
            if reason is None:
                self._fold_scatters(target, items)
            else:
                kwargs[name] = target = self._clone(target)
                self.clones.append(
                    Refusal(
                        node=self.node.name, layer=layer_of(self.node), reason=f"{name}: {reason}"
                    )
                )
            self._redirect(items, target)
        self._emit(kwargs, returns)

    def _items(self, index: int) -> list[fx.Node]:
        return [user for user in self.node.users if user.args[1] == index]

    def _unsafe(self, target: fx.Node, items: list[fx.Node]) -> str | None:
        """Return why `target` must not be written in place, or None."""
        region = region_of(target)
        assert region is not None
        if region.self_overlapping:
            return f"{target.name} names one element twice (an expanded dimension)"
        for alias in self.aliases.aliases(target):
            if alias.op != "call_function":
                return f"{target.name} is memory of the graph's input {alias.name}"
        for name, other in self.node.kwargs.items():
            if isinstance(other, fx.Node) and other is not target:
                other_region = region_of(other)
                if other_region is not None and region.overlaps(other_region):
                    return f"it overlaps the op's argument {name}"
        if sum(value is target for value in self.node.kwargs.values()) > 1:
            return f"{target.name} is passed twice"
        folded = {scatter for scatter, _ in self._chains(target, items)}
        for reader, alias in self.aliases.readers_after(self.node, region):
            if reader not in folded:
                return f"{reader.name} still reads the old value of {alias.name}"
        return None

    def _chains(self, target: fx.Node, items: list[fx.Node]) -> Iterator[tuple[fx.Node, fx.Node]]:
        """Yield (scatter, base) for each scatter that puts an item back where `target` lies."""
        home = region_of(target)
        for source in [*items, *_copies_of(items)]:
            for user in source.users:
                if (
                    is_call(user, aten.slice_scatter.default)
                    and user.args[1] is source
                    and user.args[0] is not source
                    and _scattered_region(user) == home
                ):
                    yield user, user.args[0]

    def _fold_scatters(self, target: fx.Node, items: list[fx.Node]) -> None:
        for scatter, base in list(self._chains(target, items)):
            source = scatter.args[1]
            readers = list(scatter.users)
            scatter.replace_all_uses_with(base)
            self._refresh(readers)
            self.graph.erase_node(scatter)
            if is_call(source, aten.copy.default) and not source.users:
                destination = source.args[0]
                self.graph.erase_node(source)
                if not destination.users:
                    self.graph.erase_node(destination)

    def _clone(self, target: fx.Node) -> fx.Node:
        value = value_of(target)
        with self.graph.inserting_before(self.node):
            clone = self.graph.call_function(aten.clone.default, (target,))
        with fake_mode_of(value):
            clone.meta["val"] = value.clone()
        self.aliases.add(clone)
        return clone

    def _redirect(self, items: list[fx.Node], target: fx.Node) -> None:
        for item in items:
            readers = list(item.users)
            item.replace_all_uses_with(target)
            self._refresh(readers)
            self.graph.erase_node(item)

    def _refresh(self, readers: list[fx.Node]) -> None:
        for node in refresh_views(readers):
            self.aliases.add(node)

    def _emit(self, kwargs: dict[str, Any], returns: int) -> None:
        """Put the plain call in the functionalised one's place and hand on what it returns."""
        values = value_of(self.node)
        with self.graph.inserting_before(self.node):
            call = self.graph.call_function(self.op, (), kwargs)
        call.meta = {k: v for k, v in self.node.meta.items() if k != "eager_input_vals"}
        call.meta["val"] = {0: None, 1: values[0]}.get(returns, tuple(values[:returns]))
        for item in list(self.node.users):
            if returns == 1:
                item.replace_all_uses_with(call)
            elif returns > 1:
                item.replace_input_with(self.node, call)
                continue
            self.graph.erase_node(item)
        self.graph.erase_node(self.node)


def _copies_of(items: list[fx.Node]) -> Iterator[fx.Node]:
    """Yield each `aten.copy` that only passes an item on: same shape and dtype."""
    for item in items:
        for user in item.users:
            if (
                is_call(user, aten.copy.default)
                and user.args[1] is item
                and _same_shape(user, item)
            ):
                yield user


def _same_shape(a: fx.Node, b: fx.Node) -> bool:
    x, y = value_of(a), value_of(b)
    both = isinstance(x, Tensor) and isinstance(y, Tensor)
    return both and (tuple(x.shape), x.dtype) == (tuple(y.shape), y.dtype)


def _scattered_region(scatter: fx.Node) -> Region | None:
    """Return the memory that a scatter writes, seen as a slice of its base."""
    base, _, *bounds = scatter.args
    value = value_of(base)
    key_region = region_of(base)
    if key_region is None:
        return None
    with fake_mode_of(value):
        part = aten.slice.Tensor(value, *bounds)
    return Region(
        key_region.storage, part.storage_offset(), tuple(part.shape), tuple(part.stride())
    )


def fix_functionalization(graph: fx.Graph) -> PassResult:
    """Turn every functionalised call of `graph` back into a plain one, in order, in place."""
    aliases = AliasIndex(graph)
    done, left = [], []
    for node in list(graph.nodes):
        op = wrapped_op(node)
        if op is None:
            continue
        rewrite = Rewrite(node, op, aliases)
        layer = layer_of(node)
        reason = rewrite.objection()
        if reason is not None:
            left.append(Refusal(node=node.name, layer=layer, reason=reason))
            continue
        rewrite.apply()
        left += rewrite.clones
        done.append(
            MatchRecord(layer=layer or "", variant=op._opname, matched=(node.name,), created=())
        )
    return PassResult(tuple(done), tuple(left))


FixFunctionalizationPass = CleanUp(
    name="FixFunctionalizationPass",
    note="Functionalised ops write in place again; copies and scatters that undo are folded.",
    run=fix_functionalization,
)
