"""Scatters that put a result back where it came from.

An in-place op on a part of a tensor leaves, once functionalised, a scatter of its result into the
whole. When the op writes in place again, such a scatter is its base; any other still copies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from mlalab.graphs import SHAPE_ONLY, aten, fake_mode_of, is_call, value_of
from mlalab.passes.aliasing import Region
from mlalab.passes.values import may_stand_for, same

_PART_OF = {
    aten.slice_scatter.default: aten.slice.Tensor,
    aten.select_scatter.default: aten.select.int,
    aten.diagonal_scatter.default: aten.diagonal.default,
}
"""Scatter → the view of its base that it overwrites, taking the same further arguments."""

_WHOLE = SHAPE_ONLY | {aten.permute.default, aten.transpose.int}
"""Views that leave no element out."""


@dataclass(frozen=True, slots=True)
class Fold:
    """A scatter that may be replaced by its base."""

    scatter: fx.Node
    base: fx.Node
    source: fx.Node


def folds(target: fx.Node, items: Iterable[fx.Node]) -> Iterator[Fold]:
    """Yield each scatter that puts all of a result back exactly where `target` lies."""
    for source, value in _places(items, value_of(target)):
        for user in source.users:
            if user.target in _PART_OF and user.args[1] is source is not user.args[0]:
                base, part = user.args[0], overwritten(user)
                if (
                    part.dtype == value.dtype
                    and Region.of(part).same_as(Region.of(value))
                    and may_stand_for(base, user)
                ):
                    yield Fold(user, base, source)


def only_overwrites(scatter: fx.Node, base: fx.Node, region: Region) -> bool:
    """Return whether what `scatter` needs of its base is all but `region`."""
    return (
        scatter.target in _PART_OF
        and scatter.args[0] is base is not scatter.args[1]
        and Region.of(overwritten(scatter)).same_as(region)
    )


def overwritten(scatter: fx.Node) -> Tensor:
    """Return the part of a scatter's base that it overwrites, as a fake value."""
    base, _, *rest = scatter.args
    return _call(_PART_OF[scatter.target], value_of(base), rest, scatter.kwargs)


def _places(items: Iterable[fx.Node], value: Tensor) -> Iterator[tuple[fx.Node, Tensor]]:
    """Yield what holds all of a result, with the view of `value` that has its elements.

    That is each of `items`, whole views of it, and copies of it into another tensor.
    """
    queue = [(item, value) for item in items]
    while queue:
        source, value = queue.pop(0)
        yield source, value
        for user in source.users:
            if is_call(user, aten.copy.default) and user.args[1] is source:
                copied = value_of(user)
                if same(copied.shape, value.shape) and copied.dtype == value.dtype:
                    queue.append((user, value))
            elif is_call(user, *_WHOLE):
                queue.append((user, _call(user.target, value, user.args[1:], user.kwargs)))


def _call(op: Any, value: Tensor, rest: Any, keywords: Any) -> Tensor:
    args, kwargs = fx.node.map_arg((tuple(rest), dict(keywords)), value_of)
    with fake_mode_of(value):
        return op(value, *args, **kwargs)
