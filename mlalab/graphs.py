"""Reading FX graphs: what a node calls, what it writes, and whose storage it shares.

Everything that knows how a functionalised op looks in the graph is here.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx
from torch._dynamo.utils import detect_fake_mode
from torch._higher_order_ops.auto_functionalize import auto_functionalized
from torch._subclasses import FakeTensorMode
from torch.utils import _pytree as pytree

aten = torch.ops.aten

SHAPE_ONLY = frozenset(
    {
        aten.reshape.default,
        aten.view.default,
        aten.unsqueeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten._unsafe_view.default,
    }
)
"""Ops that keep the elements in row-major order and change only the shape."""

VIEWS = SHAPE_ONLY | {
    aten.slice.Tensor,
    aten.split_with_sizes.default,
    aten.split.Tensor,
    aten.select.int,
    aten.expand.default,
    aten.permute.default,
    aten.transpose.int,
    aten.alias.default,
    aten.as_strided.default,
    operator.getitem,
    aten.sym_size.int,
}
"""Ops that move no data."""


def is_call(node: Any, *targets: Any) -> bool:
    """Return whether `node` is a call of one of `targets`."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def is_view(node: fx.Node) -> bool:
    """Return whether `node` moves no data; a reshape may have to, and its value then shows it."""
    if node.op != "call_function":
        return False
    return is_call(node, *VIEWS) or is_lowering_pattern(node) or _declares_view(node.target)


def is_lowering_pattern(node: fx.Node) -> bool:
    """Return whether a node is a match of Inductor's that will be expanded when code is written.

    Inductor puts a function in its place, which may well hand back what it is given: a split that
    undoes a `cat` becomes what was joined, and is recorded as the memory of the `cat`.
    """
    return node.op == "call_function" and isinstance(node.target, functools.partial)


@functools.cache
def _declares_view(target: Any) -> bool:
    schema = getattr(target, "_schema", None)
    if schema is None or schema.is_mutable:
        return False
    return any(argument.alias_info is not None for argument in schema.arguments)


def value_of(node: fx.Node) -> Any:
    """Return the fake value that tracing left on `node`, or None."""
    return node.meta.get("val", node.meta.get("example_value"))


def wrapped_op(node: fx.Node) -> torch._ops.OpOverload | None:
    """Return the op that an `auto_functionalized` node stands for, or None."""
    if is_call(node, auto_functionalized):
        return node.args[0]
    return None


def mutated_arguments(op: Any) -> tuple[str, ...]:
    """Return the names of the arguments that `op` declares it writes, from its schema."""
    schema = getattr(op, "_schema", None)
    if schema is None:
        return ()
    return tuple(
        argument.name
        for argument in schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def bound_arguments(node: fx.Node) -> dict[str, Any]:
    """Return a call's arguments by schema name, positional ones included."""
    op = wrapped_op(node)
    if op is not None:
        return dict(node.kwargs)
    names = [argument.name for argument in overload_of(node)._schema.arguments]
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def written_nodes(node: fx.Node) -> tuple[fx.Node, ...]:
    """Return the input nodes that a plain (not functionalised) call writes in place."""
    if node.op != "call_function":
        return ()
    if node.target is operator.setitem:
        return (node.args[0],)
    names = mutated_arguments(overload_of(node))
    arguments = bound_arguments(node) if names else {}
    return tuple(x for name in names if isinstance(x := arguments.get(name), fx.Node))


def overload_of(node: fx.Node) -> Any:
    """Return what a node calls; an op that Dynamo left without overload gets its default one."""
    target = node.target
    return target.default if isinstance(target, torch._ops.OpOverloadPacket) else target


def storage_key(node: fx.Node) -> int | None:
    """Return an identity of the node's fake storage: equal for aliases; None for non-tensors."""
    value = value_of(node)
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return None
    return value.untyped_storage()._cdata


def fake_mode_of(values: Any) -> FakeTensorMode:
    """Return the fake mode that a graph's recorded values live in."""
    mode = detect_fake_mode(values)
    assert mode is not None, "a traced graph carries fake tensors"
    return mode


def erase_dead(node: fx.Node) -> None:
    """Erase a node that has no reader, and then what only it read; not what has an effect."""
    queue = [node]
    while queue:
        dead = queue.pop()
        if dead._erased or dead.users or dead.op != "call_function" or dead.is_impure():
            continue
        queue += dead.all_input_nodes
        dead.graph.erase_node(dead)


def give_own_values(nodes: Iterable[fx.Node]) -> None:
    """Give each of `nodes` a fake value of its own: new storage, or its input's for a view.

    Nodes copied from one traced graph share their values, and would pass for aliases. What reads
    them keeps its value: who has to follow is found by comparing it with the new one.
    """
    for node in nodes:
        if is_view(node):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), value_of)
            with fake_mode_of(args):
                node.meta["val"] = node.target(*args, **kwargs)
        elif "val" in node.meta:
            node.meta["val"] = pytree.tree_map_only(Tensor, _own_storage, node.meta["val"])


def _own_storage(value: Tensor) -> Tensor:
    with fake_mode_of(value):
        return value.new_empty_strided(value.size(), value.stride())


def layer_of(node: fx.Node) -> str | None:
    """Return the attention layer that a call of one of our ops names, or None."""
    op = wrapped_op(node) or overload_of(node)
    if not isinstance(op, torch._ops.OpOverload) or op.namespace != "mlalab":
        return None
    name = bound_arguments(node).get("layer_name")
    return name if isinstance(name, str) else None


def layer_names(graph: fx.Graph) -> dict[fx.Node, str]:
    """Return the attention layer of each node that has one.

    A node belongs to the layer in whose module it was traced, which is known from the ops there
    that name their layer; a node that a pass put in belongs where its latest
    input does.
    """
    home = {
        _module_paths(node)[-1]: name
        for node in graph.nodes
        if (name := layer_of(node)) is not None
    }
    names: dict[fx.Node, str] = {}
    for node in graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        name = layer_of(node)
        if "nn_module_stack" in node.meta:
            name = name or next((home[p] for p in reversed(_module_paths(node)) if p in home), None)
        else:
            known = [x for x in node.all_input_nodes if x in names]
            name = name or (names[max(known)] if known else None)
        if name is not None:
            names[node] = name
    return names


def _module_paths(node: fx.Node) -> list[str]:
    """Return the modules a node was traced in, outermost (the root, "") first."""
    return ["", *(str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values())]


def inherit_origin(nodes: Iterable[fx.Node], source: fx.Node) -> None:
    """Let `nodes` that a pass put in name the user's line and module that `source` came from."""
    for node in nodes:
        for key in ("stack_trace", "nn_module_stack"):
            if key in source.meta:
                node.meta.setdefault(key, source.meta[key])


def op_name(node: fx.Node) -> str:
    """Return a short operator name: `aten.mm`, `auto_functionalized(mlalab.rotary_embedding)`."""
    op = wrapped_op(node)
    if op is not None:
        return f"auto_functionalized({short_name(op)})"
    if node.op == "call_method":
        return f"Tensor.{node.target}"
    return short_name(overload_of(node)) if node.op == "call_function" else node.op


def short_name(target: Any) -> str:
    """Return an operator's name without overload: `aten.mm`."""
    if isinstance(target, torch._ops.OpOverload):
        return f"{target.namespace}.{target._opname}"
    if isinstance(target, torch._ops.HigherOrderOperator):
        return target.name()
    return getattr(target, "__name__", str(target))
