"""Where a replacement may stand: behind its inputs, with hidden state touched in the old order.

The cache is no value of the graph: an op finds it by layer name. Between two ops of one layer there
need be no edge, so their order in the graph is the order of their effects, and a replacement that
takes over such an effect must keep it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx
from torch._inductor import pattern_matcher as pm


@dataclass(frozen=True, slots=True)
class Taken:
    """Nodes that a replacement takes the place of.

    Args:
        nodes: all of them.
        outputs: those that are read from outside.
        layer: the layer whose state they touch.
    """

    nodes: Collection[fx.Node]
    outputs: Sequence[fx.Node]
    layer: Any

    @classmethod
    def of(cls, match: pm.Match) -> Taken:
        """Return what a match takes."""
        outputs = [node for node in match.output_nodes() if node is not None]
        return cls(set(match.nodes), outputs, match.kwargs.get("layer_name"))


@dataclass(frozen=True, slots=True)
class Place:
    """A place for a replacement, which goes where the first output stands.

    Args:
        last: the node that must come before it.
        moved: outputs, and what depends on them, that now stand before `last`; in order.
    """

    last: fx.Node
    moved: tuple[fx.Node, ...]

    def make_room(self) -> None:
        """Move what stands too early behind `last`."""
        for node in reversed(self.moved):
            self.last.append(node)


def place_of(
    taken: Taken, anchor: fx.Node, inputs: Sequence[fx.Node], writes: Sequence[fx.Node]
) -> Place | str:
    """Return where the replacement of `taken` may stand, or why it may stand nowhere.

    Args:
        anchor: the node of them that touches the state of the layer that it names.
        inputs: what the replacement reads.
        writes: nodes of the graph that write in place.
    """
    outputs = sorted(taken.outputs)
    earlier = [n for n in _between(outputs[0], anchor) if _same_state(n, taken)]
    last = max([*inputs, *earlier])
    late = _dependents(outputs, up_to=last)
    for node in inputs:
        if node in late:
            return f"its input {node.name} depends on a result, so fusing would close a cycle"
    for node in earlier:
        if node in late:
            return f"{node.name} uses the state of the same layer first, and reads a result"
    for node in _between(anchor, last):
        if node not in late and _same_state(node, taken):
            return f"an input is computed only after {node.name} used the state of the same layer"
    start, end = min(taken.nodes), max(anchor, last)
    for node in writes:
        if start < node < end:
            return f"{node.name}, in between, writes in place"
    return Place(last, tuple(sorted(n for n in late if n < last)))


def _between(start: fx.Node, end: fx.Node) -> Iterator[fx.Node]:
    """Yield the nodes after `start` and before `end`."""
    node = start.next
    while node < end:
        yield node
        node = node.next


def _same_state(node: fx.Node, taken: Taken) -> bool:
    """Return whether a node outside names the layer that is taken."""
    layer = taken.layer
    names = layer is not None and (layer in node.args or layer in node.kwargs.values())
    return names and node not in taken.nodes


def _dependents(outputs: Sequence[fx.Node], *, up_to: fx.Node) -> set[fx.Node]:
    """Return the match's outputs and what depends on them, as far as `up_to`.

    A node of the match may be among them, and stay for a reader outside the match.
    """
    found = {n for n in outputs if not n > up_to}
    queue = list(outputs)
    while queue:
        for user in queue.pop().users:
            if user not in found and not user > up_to:
                found.add(user)
                queue.append(user)
    return found
