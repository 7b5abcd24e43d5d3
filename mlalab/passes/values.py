"""Keeping recorded values true while a graph is rewritten.

A pass knows sizes, strides and aliases from the fake values that tracing left on the nodes. When a
node's input is replaced, its value may lie elsewhere: a view shares the new storage, and with other
strides or another offset what is computed may lie differently too. A stale value misleads every
alias analysis after it, Inductor's included. Nothing here asks a symbolic size a question whose
answer would become a guard on it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.fx.experimental.symbolic_shapes import statically_known_true as known
from torch.utils import _pytree as pytree

from mlalab.graphs import (
    aten,
    fake_mode_of,
    is_call,
    is_lowering_pattern,
    is_view,
    mutated_arguments,
    value_of,
    wrapped_op,
)

BY_LAYOUT = (aten.as_strided.default, aten.as_strided_scatter.default)
"""Ops that name elements by their place in the storage, not by their index in the tensor."""


def same(xs: Iterable[Any], ys: Iterable[Any]) -> bool:
    """Return whether two lists of sizes are known to be equal."""
    xs, ys = tuple(xs), tuple(ys)
    return len(xs) == len(ys) and all(known(x == y) for x, y in zip(xs, ys, strict=True))


def may_stand_for(by: fx.Node, node: fx.Node) -> bool:
    """Return whether every reader of `node` may read `by` instead, their elements being equal."""
    readers = list(layout_readers(node))
    if lie_alike(value_of(by), value_of(node)):
        return all(reader.op == "output" for reader in readers)
    return not readers and _has_all_views_of(value_of(by), value_of(node))


def _has_all_views_of(new: Tensor, old: Tensor) -> bool:
    """Return whether whatever is a view of `old` is one of `new` too, and what copies is a copy.

    So it is for two tensors of one layout, and when `new` is dense where `old` had gaps.
    """
    if not _alike(new, old):
        return False
    strides, gaps = (_wide(old, xs) for xs in (new.stride(), old.stride()))
    in_order = all(known(a > b) for a, b in itertools.pairwise((*gaps, 0)))
    return same(strides, gaps) or (is_dense(new) and in_order)


def is_dense(x: Tensor) -> bool:
    """Return whether `x` is known to be contiguous."""
    sizes, strides = (_wide(x, xs) for xs in (x.shape, x.stride()))
    return all(known(strides[d] == math.prod(sizes[d + 1 :])) for d in range(len(sizes)))


def _alike(a: Tensor, b: Tensor) -> bool:
    return same(a.shape, b.shape) and (a.dtype, a.device) == (b.dtype, b.device)


def _wide(x: Tensor, per_dim: Iterable[Any]) -> list[Any]:
    """Leave out what belongs to dimensions of size one: their strides mean nothing."""
    return [n for n, size in zip(per_dim, x.shape, strict=True) if not known(size == 1)]


def layout_readers(node: fx.Node) -> Iterator[fx.Node]:
    """Yield what sees how `node` lies, not only its elements.

    The graph's output does: AOTAutograd takes sizes, strides and offset from a result to make it a
    view of an input again.
    """
    queue, seen = [node], {node: None}
    while queue:
        lying = queue.pop()
        for user in lying.users:
            if user.op == "output" or is_call(user, *BY_LAYOUT):
                yield user
            if user not in seen and _lies_as(user, lying):
                seen[user] = None
                queue.append(user)


def _lies_as(user: fx.Node, node: fx.Node) -> bool:
    """Return whether the value of `user` may lie as that of its input `node` does.

    A custom op may; of ATen's, views, and those that overwrite a part or all of a copy.
    """
    if is_view(user) or wrapped_op(user) is not None:
        return True
    if not isinstance(user.target, torch._ops.OpOverload):
        return False
    writes_a_copy = user.target._opname.endswith("_scatter") or is_call(user, aten.copy.default)
    return (
        user.args[:1] == (node,)
        if writes_a_copy
        else user.target.namespace not in ("aten", "prims")
    )


def storages(values: Any) -> set[int]:
    """Return the identities of the storages of all tensors in `values`."""
    tensors = (v for v in pytree.tree_leaves(values) if isinstance(v, Tensor))
    return {t.untyped_storage()._cdata for t in tensors if t.layout == torch.strided}


def shares_storage(view: fx.Node) -> bool:
    """Return whether a view's value is recorded as lying in its input's memory."""
    return storages(value_of(view)) <= storages([value_of(x) for x in view.all_input_nodes])


def refresh_stale(graph: fx.Graph) -> None:
    """Make recorded values lie again where their inputs say.

    Inductor's passes that come before ours drop clones and copies without telling the views of
    what they dropped, and a replacement's values are copies that keep no offset.
    """
    refresh([n for n in graph.nodes if is_lowering_pattern(n) or _is_stale(n)])
    for node in graph.nodes:
        if wrapped_op(node) is not None:
            _drop_stale_eager_inputs(node)


def _drop_stale_eager_inputs(node: fx.Node) -> None:
    """Forget what a call's arguments were in eager mode, if they no longer lie so.

    A call that stays functionalised would be decomposed by that, and clone the wrong memory.
    """
    now = fx.node.map_arg((node.args, dict(node.kwargs)), value_of)
    if not lie_alike(node.meta.get("eager_input_vals", now), now):
        del node.meta["eager_input_vals"]


def _is_stale(node: fx.Node) -> bool:
    op = wrapped_op(node)
    if op is None:
        return is_view(node) and not shares_storage(node)
    names = mutated_arguments(op)
    given = fx.node.map_arg([node.kwargs.get(name) for name in names], value_of)
    return not lie_alike(list(value_of(node)[-len(names) :]), given)


def replace(node: fx.Node, by: fx.Node) -> list[fx.Node]:
    """Let the readers of `node` read `by`; return the nodes whose values have changed."""
    moved = not lie_alike(value_of(node), value_of(by))
    readers = [user for user in node.users if moved or is_view(user)]
    node.replace_all_uses_with(by)
    return refresh(readers)


def refresh(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """Recompute the values of `nodes` and of what depends on them; return those that changed."""
    waiting, changed = dict.fromkeys(nodes), []
    while waiting:
        node = min(waiting)
        del waiting[node]
        if not _can_recompute(node):
            continue
        value = _recomputed(node)
        moved = not lie_alike(value_of(node), value)
        if wrapped_op(node) is not None:
            _drop_stale_eager_inputs(node)
        if moved or is_view(node):
            node.meta["val"] = value
            changed.append(node)
            waiting.update(dict.fromkeys(u for u in node.users if moved or is_view(u)))
    return changed


def _recomputed(node: fx.Node) -> Any:
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), value_of)
    with fake_mode_of((args, kwargs)):
        try:
            return node.target(*args, **kwargs)
        except Exception:
            # Such a function may take Inductor's own values only; then it computes something new.
            if not is_lowering_pattern(node):
                raise
            return value_of(node)


def _can_recompute(node: fx.Node) -> bool:
    """Not what writes in place, and not what would make up a new size."""
    value = value_of(node)
    if node.op != "call_function" or value is None or makes_up_sizes(node):
        return False
    pure = isinstance(node.target, torch._ops.OpOverload) and not node.target._schema.is_mutable
    return pure or is_view(node) or wrapped_op(node) is not None


def makes_up_sizes(node: fx.Node) -> bool:
    """Return whether a size of the result depends on data: it would be another each time."""
    given = free_unbacked_symbols([value_of(x) for x in node.all_input_nodes])
    return bool(free_unbacked_symbols(value_of(node)) - given)


def lie_alike(a: Any, b: Any) -> bool:
    """Return whether two values have the same shapes, strides and offsets, storages apart."""
    return lie_alike_but_for_offset(a, b) and all(
        same([x.storage_offset()], [y.storage_offset()]) for x, y in _tensor_pairs(a, b)
    )


def lie_alike_but_for_offset(a: Any, b: Any) -> bool:
    """Return whether two values have the same shapes and strides."""
    pairs = _tensor_pairs(a, b)
    return len({len(_tensors(x)) for x in (a, b)}) == 1 and all(
        _alike(x, y) and same(x.stride(), y.stride()) for x, y in pairs
    )


def _tensor_pairs(a: Any, b: Any) -> list[tuple[Tensor, Tensor]]:
    return list(zip(_tensors(a), _tensors(b), strict=False))


def _tensors(values: Any) -> list[Tensor]:
    return [v for v in pytree.tree_leaves(values) if isinstance(v, Tensor)]
