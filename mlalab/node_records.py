"""FX nodes as plain records: printed text, source line, storage owner."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from mlalab.graphs import (
    VIEWS,
    is_call,
    layer_names,
    op_name,
    short_name,
    storage_key,
    value_of,
    wrapped_op,
    written_nodes,
)
from mlalab.records import NodeRecord

_TORCH = os.path.dirname(torch.__file__) + os.sep


def printed(value: Any) -> str:
    """Return an argument as graph text; the largest int is an open end and prints as MAX."""
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(printed(x) for x in value) + "]"
    if isinstance(value, torch._ops.OpOverload):
        return short_name(value)
    if isinstance(value, str):
        return repr(value)
    if value is Ellipsis:
        return "..."
    if isinstance(value, slice):
        bounds = (value.start, value.stop, *([value.step] if value.step else []))
        return ":".join("" if bound is None else printed(bound) for bound in bounds)
    return "MAX" if value == 2**63 - 1 else str(value).removeprefix("torch.")


def _indexed(args: tuple[Any, ...]) -> str:
    index = args[1] if isinstance(args[1], (list, tuple)) else (args[1],)
    return f"{printed(args[0])}[{', '.join(printed(part) for part in index)}]"


def node_text(node: fx.Node) -> str:
    """Return the node as one line of printed graph."""
    if node.op == "placeholder":
        return f"{node.name} = placeholder"
    arguments = [printed(a) for a in node.args]
    arguments += [f"{k}={printed(v)}" for k, v in node.kwargs.items()]
    call = f"({', '.join(arguments)})"
    if node.op == "output":
        return "return " + ", ".join(printed(a) for a in node.args)
    if is_call(node, operator.getitem):
        return f"{node.name} = {_indexed(node.args)}"
    if is_call(node, operator.setitem):
        return f"{_indexed(node.args)} = {printed(node.args[2])}"
    return f"{node.name} = {op_name(node) if not wrapped_op(node) else 'auto_functionalized'}{call}"


def _source_line(node: fx.Node) -> str | None:
    trace = node.meta.get("stack_trace")
    if not trace:
        return None
    lines = [line.strip() for line in trace.strip().splitlines()]
    frames = [i for i, line in enumerate(lines) if line.startswith("File ")]
    if not frames:
        return None
    # The innermost frame of the user's, not of torch's own helpers.
    own = [i for i in frames if _TORCH not in lines[i]] or frames
    where = lines[own[-1]].split('"')
    number = where[2].split("line ")[1].split(",")[0]
    code = lines[own[-1] + 1] if own[-1] + 1 < len(lines) else ""
    return f"{os.path.basename(where[1])}:{number}, {code}"


def _is_plumbing(node: fx.Node) -> bool:
    if is_call(node, operator.getitem):
        # x[positions] gathers rows; x[:, 1:] and split[0] only look.
        index = pytree.tree_leaves(node.args[1])
        return not any(isinstance(value_of(i), Tensor) for i in index if isinstance(i, fx.Node))
    if node.op == "call_method":
        # Dynamo's graph holds methods; which are views, their values tell.
        own, given = _storages([node]), _storages(node.all_input_nodes)
        return bool(own) and own <= given and not str(node.target).endswith("_")
    return node.op == "call_function" and node.target in VIEWS


def _storages(nodes: Iterable[fx.Node]) -> set[int]:
    values = pytree.tree_leaves([value_of(node) for node in nodes])
    return {x.untyped_storage()._cdata for x in values if isinstance(x, Tensor)}


def _dims(values: Any) -> tuple[int | str, ...]:
    return tuple(v if isinstance(v, int) else str(v) for v in values)


def _records(graph: fx.Graph) -> Iterator[NodeRecord]:
    owners: dict[int, str] = {}
    layers = layer_names(graph)
    for node in graph.nodes:
        value = value_of(node)
        is_tensor = isinstance(value, Tensor)
        key = storage_key(node)
        owner = owners.setdefault(key, node.name) if key is not None else None
        sized = is_tensor and all(isinstance(s, int) for s in value.shape)
        yield NodeRecord(
            name=node.name,
            op=node.op,
            target=op_name(node),
            text=node_text(node),
            inputs=tuple(x.name for x in node.all_input_nodes),
            users=len(node.users),
            shape=_dims(value.shape) if is_tensor else None,
            stride=_dims(value.stride()) if is_tensor else None,
            dtype=str(value.dtype).removeprefix("torch.") if is_tensor else None,
            bytes=value.numel() * value.itemsize if sized else None,
            alias_of=owner if owner != node.name else None,
            mutates=tuple(x.name for x in written_nodes(node)),
            source=_source_line(node),
            layer=layers.get(node),
            plumbing=_is_plumbing(node),
        )


def node_records(graph: fx.Graph) -> tuple[NodeRecord, ...]:
    """Return every node of `graph` as a plain value, in order."""
    return tuple(_records(graph))
