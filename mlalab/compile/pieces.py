"""A graph cut into pieces, where a CUDA graph must stop and where it may go on.

Attention reads lengths on the host, and a batch's split is known only when it runs: neither can be
replayed. They, and all that has the split in its sizes, are pieces that run as they are; the pieces
in between depend on the number of rows alone and can be captured once for each.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv, free_unbacked_symbols, rebind_unbacked
from torch.fx.passes.split_module import split_module

import mlalab.ops  # noqa: F401  registers torch.ops.mlalab before its ops are named below
from mlalab.compile.captured import Piece, Replays
from mlalab.compile.entries import Entry, merged
from mlalab.graphs import fake_mode_of

SPLITTING_OPS = frozenset(
    op
    for name in (
        "unified_mla_attention_with_output",
        "unified_attention_with_output",
        "mla_split_batch",
        "mla_attention_decode",
        "mla_attention_prefill",
    )
    for op in (getattr(torch.ops.mlalab, name), getattr(torch.ops.mlalab, name).default)
)
"""Ops that stay outside of CUDA graphs."""


def cut(gm: fx.GraphModule, activations: Collection[int]) -> tuple[fx.GraphModule, dict[str, bool]]:
    """Return the graph as a sequence of submodules, and which of them a CUDA graph may hold.

    Args:
        gm: a Dynamo graph; the order of its calls is kept.
        activations: which of its inputs change from batch to batch; the others are weights.
    """
    placeholders = gm.graph.find_nodes(op="placeholder")
    inputs = [placeholders[i] for i in activations]
    own = {symbol for node in inputs for symbol in made_up_sizes(node)}
    changing = {node for node in inputs if isinstance(node.meta["example_value"], Tensor)}
    pieces: dict[fx.Node, int] = {}
    kinds: list[bool] = []
    for node in gm.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        safe = not _is_unsafe(node, own)
        if not safe or not (_is_of_sizes(node) or changing.isdisjoint(node.all_input_nodes)):
            changing.add(node)
            if not kinds or kinds[-1] != safe:
                kinds.append(safe)
        # What depends on weights and sizes alone goes where it stands.
        pieces[node] = max(len(kinds) - 1, 0)
    split = split_module(gm, None, lambda node: pieces[node], keep_original_order=True)
    return split, {f"submod_{index}": safe for index, safe in enumerate(kinds or [True])}


def _is_unsafe(node: fx.Node, own: AbstractSet[Any]) -> bool:
    if node.target in SPLITTING_OPS:
        return True
    return any(not made_up_sizes(x) <= own for x in (node, *node.all_input_nodes))


def _is_of_sizes(node: fx.Node) -> bool:
    """Return whether this reads, computes or asserts a size: nothing that the device does."""
    value = node.meta.get("example_value")
    is_size = isinstance(value, (int, torch.SymInt, torch.SymBool))
    return is_size or node.target is torch.ops.aten._assert_scalar.default


def made_up_sizes(node: fx.Node) -> set[Any]:
    """Return the sizes made up while a Dynamo graph was traced that this node's value has."""
    value = node.meta.get("example_value")
    values = value if isinstance(value, (tuple, list)) else [value]
    sized = (x for x in values if isinstance(x, (Tensor, torch.SymInt, torch.SymBool)))
    return {symbol for x in sized for symbol in free_unbacked_symbols(x)}


def compile_pieces(
    gm: fx.GraphModule,
    inputs: Sequence[Any],
    activations: Collection[int],
    compile_piece: Callable[[fx.GraphModule, Sequence[Any]], Entry],
    replays: Replays,
) -> Entry:
    """Compile each piece on its own; returns what runs them one after the other.

    Args:
        inputs: fake ones of the whole graph.
        compile_piece: compiles one piece for fake inputs.
        replays: what the pieces that may be captured share.
    """
    split, safe = cut(gm, activations)
    entries: dict[str, Entry] = {}
    mode = fake_mode_of([x for x in inputs if isinstance(x, Tensor)])
    sizes = mode.shape_env
    assert sizes is not None

    def propagate(module: fx.GraphModule, arguments: Sequence[Any]) -> Any:
        # The sizes that ops make up here are those of the trace, and nobody waits for new ones.
        with mode, sizes.ignore_fresh_unbacked_symbols():
            return _Propagate(module, sizes).run(*arguments)

    class Compile(fx.Interpreter):
        def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
            module = getattr(split, target)
            if not _only_calls_ops(module):
                entries[target] = compile_piece(module, args)
            return propagate(module, args)

    Compile(split).run(*inputs)
    pieces = []
    for name, may_capture in safe.items():
        call = entries[name].call if name in entries else getattr(split, name)
        delattr(split, name)
        # A plain attribute: a module's own call costs time, and none of its hooks are wanted.
        split.__dict__[name] = Piece(call, replays) if may_capture else call
        pieces += [split.__dict__[name]] if may_capture else []
    return merged(split.forward, list(entries.values()), len(safe), tuple(pieces))


class _Propagate(fx.Interpreter):
    """Computes fake values; a size that an op makes up keeps the name it got while tracing."""

    def __init__(self, module: fx.GraphModule, sizes: ShapeEnv) -> None:
        super().__init__(module)
        self._sizes = sizes

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        rebind_unbacked(self._sizes, n, result)
        return result


def _only_calls_ops(module: fx.GraphModule) -> bool:
    """Return whether a piece is nothing but ops of ours: there is nothing to compile."""
    return all(node.target in SPLITTING_OPS for node in calls(module.graph))


def calls(graph: fx.Graph) -> Iterator[fx.Node]:
    """Yield the nodes of a graph that call something, in order."""
    return (node for node in graph.nodes if node.op.startswith("call_"))
