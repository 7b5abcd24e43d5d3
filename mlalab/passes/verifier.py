"""Is a graph still sound after a pass? What each node is, and what it may read.

Only what the pass touched is judged: what came wrong from Inductor is not its fault.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import statically_known_true as known
from torch.utils import _pytree as pytree

from mlalab.errors import VerifyError
from mlalab.graphs import (
    aten,
    fake_mode_of,
    is_call,
    is_view,
    op_name,
    value_of,
    wrapped_op,
    written_nodes,
)
from mlalab.passes.aliasing import AliasIndex, region_of
from mlalab.passes.mutations import misdeclared
from mlalab.passes.scatters import only_overwrites
from mlalab.passes.values import (
    lie_alike,
    lie_alike_but_for_offset,
    makes_up_sizes,
    storages,
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What each node of a graph was called with, and the values it saw, before a pass."""

    arguments: dict[fx.Node, list[Any]]
    seen: dict[fx.Node, tuple[Any, ...]]

    @classmethod
    def of(cls, graph: fx.Graph) -> Snapshot:
        """Take it."""
        return cls(
            {node: _arguments(node) for node in graph.nodes},
            {node: _seen(node) for node in graph.nodes},
        )

    def touched(self, node: fx.Node) -> bool:
        """Return whether a node is new, calls something else, or sees other values."""
        before, now = self.seen.get(node), _seen(node)
        return before is None or len(before) != len(now) or not all(map(_is_same, before, now))


def _arguments(node: fx.Node) -> list[Any]:
    return pytree.tree_leaves((node.args, dict(node.kwargs)))


def _seen(node: fx.Node) -> tuple[Any, ...]:
    values = (value_of(x) for x in node.all_input_nodes)
    return (node.target, node.args, node.kwargs, value_of(node), *values)


def _is_same(a: Any, b: Any) -> bool:
    """Compare leaf by leaf: values by identity, as two fakes of one size may share no storage."""
    if a is b:
        return True
    xs, ys = pytree.tree_leaves(a), pytree.tree_leaves(b)
    return len(xs) == len(ys) and all(map(_is_same_leaf, xs, ys))


def _is_same_leaf(a: Any, b: Any) -> bool:
    if isinstance(a, (Tensor, fx.Node)):
        return a is b
    # To ask whether two symbolic sizes are equal would make it a guard.
    return str(a) == str(b) if isinstance(a, torch.SymInt) else type(a) is type(b) and a == b


def verify(graph: fx.Graph, pass_name: str, before: Snapshot | None = None) -> None:
    """Check that `graph` is sound where a pass touched it; everywhere without a snapshot.

    It is linted, so acyclic and in order; each value is recorded, and is what the op makes of its
    inputs' recorded values; each op writes what it declares; nothing that read the old value of
    some memory reads it after it is overwritten.

    Raises:
        VerifyError: naming the pass and the first node that is wrong.
    """
    before = before or Snapshot({}, {})
    try:
        graph.lint()
    except (RuntimeError, ValueError) as error:
        raise VerifyError(f"{pass_name} left a malformed graph: {error}") from error
    touched = [n for n in graph.nodes if n.op == "call_function" and before.touched(n)]
    for node in touched:
        problem = _wrong_value(node) or misdeclared(node)
        if problem is not None:
            raise VerifyError(f"{pass_name} left node {node.name} ({op_name(node)}): {problem}.")
    new_writes = [n for n in touched if n not in before.seen and written_nodes(n)]
    for problem in _stale_reads(graph, new_writes, before):
        raise VerifyError(f"{pass_name} left a read of overwritten memory: {problem}.")


def _wrong_value(node: fx.Node) -> str | None:
    """Return how a node's recorded value differs from what its op makes of its inputs."""
    if "val" not in node.meta:
        return None if _makes_nothing(node) else "it is without a recorded value"
    recorded = value_of(node)
    if makes_up_sizes(node) or not _can_be_run(node):
        return None
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), value_of)
    if not any(isinstance(x, Tensor) for x in pytree.tree_leaves((args, kwargs, recorded))):
        return None
    with fake_mode_of((args, kwargs, recorded)):
        wanted = node.target(*args, **kwargs)
    given = storages((args, kwargs))
    # In new memory the offset is torch's affair: it differs from one call to the next.
    alike = lie_alike if storages(wanted) & given else lie_alike_but_for_offset
    if not alike(recorded, wanted):
        return f"its value is recorded as {_text(recorded)}, and is {_text(wanted)}"
    # Without elements a reshape may be a view or a copy, as torch's cache of fakes has it.
    empty = any(known(n == 0) for x in pytree.tree_leaves(wanted) for n in _shape(x))
    if not empty and (storages(wanted) & given) != (storages(recorded) & given):
        return "its value is recorded in other memory than it lies in"
    return None


def _shape(x: Any) -> tuple[Any, ...]:
    return tuple(x.shape) if isinstance(x, Tensor) else ()


def _makes_nothing(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and not schema.returns


def _can_be_run(node: fx.Node) -> bool:
    known = isinstance(node.target, torch._ops.OpOverload) or node.target is operator.getitem
    return known or wrapped_op(node) is not None


def _text(value: Any) -> str:
    tensors = [x for x in pytree.tree_leaves(value) if isinstance(x, Tensor)]
    kinds = (f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}" for x in tensors)
    return ", ".join(f"{k} strides {x.stride()}" for k, x in zip(kinds, tensors, strict=True))


def _stale_reads(graph: fx.Graph, writes: list[fx.Node], before: Snapshot) -> Iterator[str]:
    """Yield reads that a pass left as they were and that now come after a write it put in."""
    index = AliasIndex(graph) if writes else None
    for write in writes:
        for target in written_nodes(write):
            region = region_of(target)
            if index is None or region is None:
                continue
            for reader, alias in index.readers_after(write, region):
                reads_the_new = alias is write or _rewired(reader, alias, before)
                if not reads_the_new and not only_overwrites(reader, alias, region):
                    yield f"{reader.name} reads {alias.name}, which {write.name} overwrites"


def _rewired(reader: fx.Node, alias: fx.Node, before: Snapshot) -> bool:
    """Return whether the pass made `reader` read the memory of `alias`, directly or by views."""
    while _kept(reader, alias, before):
        if not is_view(alias) or not alias.all_input_nodes:
            return False
        reader, alias = alias, alias.all_input_nodes[0]
    return True


def _kept(reader: fx.Node, alias: fx.Node, before: Snapshot) -> bool:
    """Return whether some argument that `reader` reads is `alias` and was."""
    pairs = list(zip(_arguments(reader), before.arguments.get(reader, []), strict=False))
    # The target of a copy lends its shape only.
    pairs = pairs[1:] if is_call(reader, aten.copy.default) else pairs
    return any(now is alias is then for now, then in pairs)
