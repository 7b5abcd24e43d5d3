"""Functionalised ops back to in-place ones, by one rule for every op.

Before:  h = auto_functionalized(op, x=slice, …); y = h[1]; copy(slice', y) → slice_scatter(view, ·)
After:   op(x=slice, …)                 and readers of y or of the scatter read the written memory

What is written is read off the op's schema. An argument is written in place only when nothing
later in the graph still reads the old value of any memory it overlaps, and the memory is the
graph's own; otherwise a clone is written, with the reason given. A copy-and-scatter chain is
folded only when it puts the result back exactly where it came from. A call that cannot be turned
back is left as it was: Inductor has a slower way of its own.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from mlalab.compile.config import FUSION_FLAGS
from mlalab.graphs import (
    aten,
    erase_dead,
    fake_mode_of,
    is_call,
    layer_of,
    mutated_arguments,
    storage_key,
    value_of,
    wrapped_op,
)
from mlalab.passes.aliasing import AliasIndex, Region, gives_new_sharing, region_of
from mlalab.passes.fusion import CleanUp, PassResult
from mlalab.passes.scatters import Fold, folds, only_overwrites
from mlalab.passes.values import layout_readers, lie_alike, refresh, replace
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

    @property
    def written(self) -> list[tuple[int, str, Any]]:
        """Each argument that the op writes: index of its result, name, value."""
        first = max(len(self.op._schema.returns), 1)
        names = mutated_arguments(self.op)
        return [(i, name, self.node.kwargs.get(name)) for i, name in enumerate(names, first)]

    def objection(self) -> str | None:
        """Return why this call cannot be turned back at all, looking only."""
        results = value_of(self.node)
        if not isinstance(results, tuple):
            return "its value was not recorded"
        if any(r.alias_info is not None for r in self.op._schema.returns):
            return "it returns an argument"
        for user in self.node.users:
            if not is_call(user, operator.getitem) or user.args[1] not in range(len(results)):
                return f"its result is used whole by {user.name}, not item by item"
            if value_of(user) is None and user.users:
                return f"{user.name} is a result that it does not have"
        for index, name, target in self.written:
            reason = self._unwritable(target, self._items(index)) if target is not None else None
            if reason is not None:
                return f"it writes {name}, {reason}"
        return None

    def _unwritable(self, target: Any, items: list[fx.Node]) -> str | None:
        """Return why neither `target` nor a clone of it can be written, or None."""
        region = region_of(target) if isinstance(target, fx.Node) else None
        if isinstance(target, (list, tuple)):
            return "a list of tensors"
        if region is None:
            return "whose storage is not known"
        # A clone would give each index an element of its own.
        if region.self_overlapping:
            return "where two indices may name one element"
        readers = [reader for item in items for reader in layout_readers(item)]
        for reader in readers:
            if reader.op != "output":
                return f"and {reader.name} reads the result by its place in memory"
        if readers and not lie_alike(value_of(target), _fake_clone(target)):
            reason = self._unsafe(target, list(folds(target, items)), self._involved())
            return None if reason is None else f"whose clone would lie otherwise: {reason}"
        return None

    def _items(self, index: int) -> list[fx.Node]:
        return [user for user in self.node.users if user.args[1] == index]

    def _involved(self) -> list[fx.Node]:
        """All that may come to lie in one memory when every argument is written in place."""
        involved = list(self.node.users)
        for index, _, target in self.written:
            if isinstance(target, fx.Node):
                involved += [target, *(f.scatter for f in folds(target, self._items(index)))]
        return involved

    def apply(self) -> None:
        """Turn the call back; every choice below keeps the graph's meaning."""
        for index, name, target in self.written:
            if target is None:
                continue
            items = self._items(index)
            put_back = list(folds(target, items))
            reason = self._unsafe(target, put_back, items)
            if reason is not None:
                put_back, target = [], self._clone(name, target)
                self.clones.append(_refusal(self.node, f"{name}: {reason}"))
            for fold in put_back:
                self._replace(fold.scatter, fold.base)
            for item in items:
                self._replace(item, target)
            for fold in put_back:
                erase_dead(fold.source)
        self._emit()

    def _unsafe(self, target: fx.Node, put_back: list[Fold], joined: list[fx.Node]) -> str | None:
        """Return why `target` must not be written in place, or None.

        `put_back` would read it then, and so would what reads `joined`.
        """
        region = region_of(target)
        assert region is not None
        for alias in self.aliases.aliases(target):
            if alias.op != "call_function":
                return f"{target.name} is memory of the graph's input {alias.name}"
            # Inductor has yet to choose where that lies, and expects nobody else to write to it.
            if _stays_functional(alias):
                return f"{target.name} is memory of {alias.name}, a result of a call left as it was"
        if _nodes_in(dict(self.node.kwargs)).count(target) > 1:
            return f"{target.name} is passed twice"
        for name, value in self.node.kwargs.items():
            if any(_overlap(region, x) for x in _nodes_in(value) if x is not target):
                return f"it overlaps the op's argument {name}"
        folded = {fold.scatter for fold in put_back}
        for reader, alias in self.aliases.readers_after(self.node, region):
            if reader not in folded and not only_overwrites(reader, alias, region):
                return f"{reader.name} still reads the old value of {alias.name}"
        if gives_new_sharing(self.graph, {storage_key(n) for n in (target, *folded, *joined)}):
            return "two results of the graph would share memory"
        return None

    def _clone(self, name: str, target: fx.Node) -> fx.Node:
        """Let the call write a clone of `target` instead."""
        with self.graph.inserting_before(self.node):
            clone = self.graph.call_function(aten.clone.default, (target,))
        clone.meta["val"] = _fake_clone(target)
        self.node.update_kwarg(name, clone)
        self._enter(clone, *refresh([self.node]))
        return clone

    def _replace(self, node: fx.Node, by: fx.Node) -> None:
        self._enter(*replace(node, by))
        self.graph.erase_node(node)

    def _enter(self, *nodes: fx.Node) -> None:
        for node in nodes:
            self.aliases.add(node)

    def _emit(self) -> None:
        """Put the plain call in the functionalised one's place and hand on what it returns."""
        values, returns = value_of(self.node), len(self.op._schema.returns)
        with self.graph.inserting_before(self.node):
            call = self.graph.call_function(self.op, (), dict(self.node.kwargs))
        call.meta = {k: v for k, v in self.node.meta.items() if k != "eager_input_vals"}
        call.meta["val"] = {0: None, 1: values[0]}.get(returns, tuple(values[:returns]))
        self._enter(call)
        for item in list(self.node.users):
            if item.args[1] < returns and returns > 1:
                item.replace_input_with(self.node, call)
                continue
            if item.args[1] < returns:
                item.replace_all_uses_with(call)
            self.graph.erase_node(item)
        self.graph.erase_node(self.node)


def _stays_functional(node: fx.Node) -> bool:
    while is_call(node, operator.getitem):
        node = node.args[0]
    return isinstance(node.target, torch._ops.HigherOrderOperator)


def _fake_clone(node: fx.Node) -> Tensor:
    value = value_of(node)
    with fake_mode_of(value):
        return value.clone()


def _nodes_in(value: Any) -> list[fx.Node]:
    return [x for x in pytree.tree_leaves(value) if isinstance(x, fx.Node)]


def _overlap(region: Region, node: fx.Node) -> bool:
    other = region_of(node)
    return other is not None and region.overlaps(other)


def _refusal(node: fx.Node, reason: str) -> Refusal:
    return Refusal(node=node.name, layer=layer_of(node), reason=reason)


def fix_functionalization(graph: fx.Graph) -> PassResult:
    """Turn every functionalised call of `graph` back into a plain one, in order, in place."""
    aliases = AliasIndex(graph)
    done, left = [], []
    for node in list(graph.nodes):
        op = None if node._erased else wrapped_op(node)
        if not isinstance(op, torch._ops.OpOverload):
            continue
        rewrite = Rewrite(node, op, aliases)
        reason = rewrite.objection()
        if reason is not None:
            left.append(_refusal(node, reason))
            continue
        layer = layer_of(node) or ""
        rewrite.apply()
        left += rewrite.clones
        done.append(MatchRecord(layer=layer, variant=op._opname, matched=(node.name,), created=()))
    return PassResult(tuple(done), tuple(left))


FixFunctionalizationPass = CleanUp(
    name="FixFunctionalizationPass",
    note="Functionalised ops write in place again; copies and scatters that undo are folded.",
    flags=FUSION_FLAGS,
    last=True,
    run=fix_functionalization,
)
