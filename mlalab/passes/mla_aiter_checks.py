"""What may stand against fusing a rotation with the preparation of its query; looking only."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from mlalab.context import current_context
from mlalab.errors import MlalabError
from mlalab.graphs import bound_arguments, is_call, layer_of, value_of, wrapped_op
from mlalab.passes.attention import is_attention
from mlalab.passes.columns import Columns, Piece, Pieces, cut
from mlalab.passes.values import is_dense, layout_readers

ROPE = torch.ops.mlalab.fused_rope_unified_mla_kv_cache_update.default


class RefusedError(Exception):
    """A reason not to fuse, in one sentence."""


@dataclass(frozen=True, slots=True)
class Found:
    """A rotation and where the nope columns come from of the query it is scattered into."""

    rope: fx.Node
    nope: Piece


def find(prep: fx.Node) -> Found:
    """Return whose rotated query, and whose nope columns, `prep` prepares.

    Raises:
        RefusedError: they are not exactly one node's and one rotation's.
    """
    arguments = bound_arguments(prep)
    q, layer = arguments["q"], arguments["layer_name"]
    value = value_of(q)
    if not (isinstance(value, Tensor) and value.dim() == 3 and isinstance(value.shape[2], int)):
        raise RefusedError(f"{q.name} is not [T, N, P + R] with a static width")
    try:
        split = current_context().layer(layer).shape.qk_nope_head_dim
    except MlalabError as error:
        raise RefusedError(str(error)) from error
    pieces, width = Columns().of(q), value.shape[2]
    nope, turned = cut(pieces, 0, split), cut(pieces, split, width)
    rope = turned[0].source.args[0] if _is_item(turned, 1) else None
    if rope is None:
        raise RefusedError(
            f"columns {split}..{width} of the query come from {_names(turned)}, "
            f"not from all of one rotated query"
        )
    if layer_of(rope) != layer:
        raise RefusedError(f"its query was rotated by {rope.name}, an op of layer {layer_of(rope)}")
    if len(nope) != 1:
        raise RefusedError(
            f"columns 0..{split} of the query come from {_names(nope)}, not from one"
        )
    return Found(rope, nope[0])


def _is_item(pieces: Pieces, index: int) -> bool:
    """Return whether `pieces` are all columns of that result of a rotation."""
    if len(pieces) != 1 or not pieces[0].is_all:
        return False
    source = pieces[0].source
    return (
        is_call(source, operator.getitem)
        and source.args[1] == index
        and wrapped_op(source.args[0]) is ROPE
    )


def _names(pieces: Pieces) -> str:
    return " and ".join(dict.fromkeys(piece.source.name for piece in pieces)) or "nothing"


def check_results(rope: fx.Node) -> None:
    """Raise unless the rotation's results can be handed on one by one.

    The dummy dependency must be no more than an edge: it is empty, and what replaces it is not.
    """
    for item in rope.users:
        if not is_call(item, operator.getitem):
            raise RefusedError(f"{item.name} takes the results of {rope.name} whole")
        for user in item.users if item.args[1] == 0 else ():
            arguments = bound_arguments(user) if is_attention(user) else {}
            if [k for k, x in arguments.items() if x is item] != ["kv_cache_dummy_dep"]:
                raise RefusedError(f"{user.name} reads the dummy dependency")


def still_read(
    rope: fx.Node, preps: Sequence[fx.Node], readers: Mapping[fx.Node, dict[str, Any]]
) -> list[fx.Node]:
    """Return the rotated parts that something reads beside `preps` and attention's q and k_pe."""
    dead = set(preps)

    def unread_by(user: fx.Node, node: fx.Node) -> bool:
        names = {name for name, x in readers.get(user, {}).items() if x is node}
        return user in dead or (bool(names) and names <= {"q", "k_pe", "q_prepped"})

    parts = [item for item in rope.users if item.args[1] > 0]
    queue = [*parts, *(x for node in (*preps, *readers) for x in node.all_input_nodes)]
    while queue:
        node = queue.pop()
        if node not in dead and all(unread_by(user, node) for user in node.users):
            dead.add(node)
            queue += node.all_input_nodes
    alive = [item for item in parts if item not in dead]
    for item in alive:
        if not is_dense(value_of(item)) and any(True for _ in layout_readers(item)):
            raise RefusedError(f"how {item.name} lies in memory may be seen, and would change")
    return alive
