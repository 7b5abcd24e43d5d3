"""From a pattern function to a pattern: tracing, wildcards, and literal or blind sizes.

Torch's matcher compares strings as constants and either ignores every int or none. Here a string
argument is traced as a sentinel and becomes a wildcard, and a size that depends on a symbolic
dimension becomes one too, so that one pattern serves all layers and all token counts.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._inductor import pattern_matcher as pm
from torch._inductor.fx_passes.post_grad import view_to_reshape
from torch.utils._ordered_set import OrderedSet

from mlalab.graphs import aten, is_call, value_of, written_nodes

_SIZES = (int, float, torch.device, torch.dtype)
"""Types of the constants that a blind pattern ignores."""

Meaning = tuple[tuple[int | str, ...], str]


def meaning(value: Any) -> Meaning | None:
    """Return shape and dtype of a tensor, symbolic sizes as text; None for anything else."""
    if not isinstance(value, Tensor):
        return None
    return dims(value.shape), str(value.dtype).removeprefix("torch.")


def dims(values: Iterable[Any]) -> tuple[int | str, ...]:
    """Return sizes or strides as ints, symbolic ones as text."""
    return tuple(v if isinstance(v, int) else str(v) for v in values)


class Call(pm.CallFunction):
    """A call with exactly these keywords and, where `meaning` is given, a result of that kind.

    Torch's own ignores keywords that the pattern does not mention, so that `add(a, b, alpha=2)`
    would pass for `add(a, b)`.
    """

    def __init__(
        self, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any], expected: Meaning | None
    ) -> None:
        # Any number of users: interior nodes are pure, so a reader outside the match keeps its
        # node alive and stays right.
        super().__init__(target, *args, _users=pm.MULTIPLE, **kwargs)
        self.expected = expected

    def extra_keywords(self, node: fx.Node) -> list[str]:
        """Return the keywords of `node` that the pattern does not have."""
        return [name for name in node.kwargs if name not in self.kwargs]

    def _match(self, node: Any, ctx: pm.MatchContext) -> Any:
        if self._match_fns(node) and self.extra_keywords(node):
            return pm.FailedMatch("keywords")
        result = super()._match(node, ctx)
        if result and self.expected is not None and meaning(value_of(node)) != self.expected:
            return pm.FailedMatch("shape or dtype")
        return result


class Copied(pm.PatternExpr):
    """A value or a copy of it: whether torch copies before a reshape depends on the sizes.

    Without tokens, for one, every layout is contiguous and there is nothing to copy.
    """

    def __init__(self, source: pm.PatternExpr) -> None:
        super().__init__()
        self.source = source

    def _match(self, node: Any, ctx: pm.MatchContext) -> Any:
        return ctx.match(self.source, node.args[0] if is_call(node, aten.clone.default) else node)


class Outputs(pm.MultiOutputPattern):
    """A multi-output pattern that looks for each further output near the first.

    Torch takes the first node that fits, in the order of users. When layers share their cos and
    sin that may be another layer's query, or the key itself, so candidates are tried from the
    first output backwards and one node never serves as two outputs.

    Args:
        traced: the graph that the pattern was made of.
        names: part of the pattern → name of the node of `traced` that it was made of.
        blind: it compares no sizes and no dtypes.
    """

    def __init__(
        self,
        outputs: Sequence[Any],
        traced: fx.Graph,
        names: Mapping[pm.PatternExpr, str],
        *,
        blind: bool,
    ) -> None:
        super().__init__(outputs)
        self.traced, self.names, self.blind = traced, names, blind

    def _match_from_anchors(self, pattern: pm.PatternExpr, ctx: pm.MatchContext) -> Any:
        known = ctx.pattern_to_node.get(pattern)
        if known is not None:
            return ctx.match(pattern, known)
        prior = dict(ctx.pattern_to_node)
        first = prior[self.outputs[0]]
        taken = {prior[output] for output in self.outputs if output in prior}
        found = dict.fromkeys(pattern.find_anchor_nodes(ctx, OrderedSet()))
        candidates = sorted((node for node in found if node not in taken), reverse=True)
        candidates.sort(key=lambda node: node > first)
        result: Any = pm.FailedMatch("no anchor found")
        for node in candidates:
            result = ctx.match(pattern, node)
            if result:
                return result
            ctx.pattern_to_node = dict(prior)
        return result


def sentinel(name: str) -> str:
    """Return the string that stands for wildcard `name` while tracing."""
    return f"<wildcard {name}>"


def trace(
    function: Callable[..., Any], tensors: Sequence[Any], wildcards: Sequence[str]
) -> fx.GraphModule:
    """Trace `function` the way Inductor prepares patterns; views become reshapes, as post-grad.

    The result is functional, as the graphs are that it is compared with.
    """
    strings = {name: sentinel(name) for name in wildcards}

    def with_strings(*arguments: Any) -> Any:
        results = function(*arguments, **strings)
        return (results,) if isinstance(results, Tensor) else results

    gm = pm.fwd_only(with_strings, list(tensors))
    if any(written_nodes(node) for node in gm.graph.nodes):
        # Decompositions may write in place, as that of a norm does; only then are they seen.
        gm = pm.fwd_only(torch.func.functionalize(gm, remove="mutations"), list(tensors))
    view_to_reshape(gm)
    return gm


@dataclass(slots=True)
class _Converter:
    """Turns the arguments of traced nodes into parts of a pattern."""

    patterns: dict[fx.Node, Any]
    strings: Mapping[str, pm.PatternExpr]
    blind: bool

    def part(self, value: Any, *, indexing: bool = False) -> Any:
        if isinstance(value, fx.Node):
            # The nodes left out are sizes that depend on a symbolic dimension. Each is a wildcard
            # of its own: one that occurred twice would demand one and the same node twice.
            return self.patterns.get(value) or pm.Ignored()
        if isinstance(value, str):
            return self.strings.get(value, value)
        if isinstance(value, (list, tuple)):
            items = [self.part(x) for x in value]
            if self.blind and items and all(isinstance(x, pm.Ignored) for x in items):
                return pm.Ignored()
            return items
        # Which item of a result is taken is structure, not size.
        ignored = self.blind and not indexing and type(value) in _SIZES
        return pm.Ignored() if ignored else value


def to_pattern(
    gm: fx.GraphModule, names: Sequence[str], wildcards: Sequence[str], *, blind: bool
) -> Outputs:
    """Turn a traced function into a pattern.

    Args:
        names: the function's tensor arguments.
        blind: ignore every int, float, dtype and device (first stage); otherwise compare them,
            apart from sizes that depend on a symbolic dimension, and compare the shape and dtype
            of every result.
    """
    strings = {sentinel(name): pm.KeywordArg(name) for name in wildcards}
    convert = _Converter({}, strings, blind)
    arguments = iter(names)
    for node in gm.graph.nodes:
        value = value_of(node)
        if node.op == "placeholder":
            name = next(arguments)
            node._rename(name)
            convert.patterns[node] = pm.KeywordArg(name)
        elif blind and is_call(node, aten.clone.default):
            convert.patterns[node] = Copied(convert.patterns[node.args[0]])
        elif node.op == "call_function" and not isinstance(value, torch.SymInt):
            indexing = is_call(node, operator.getitem)
            convert.patterns[node] = Call(
                node.target,
                [convert.part(x, indexing=indexing) for x in node.args],
                {k: convert.part(v) for k, v in node.kwargs.items()},
                None if blind else meaning(value),
            )
    outputs = [convert.patterns[x] for x in gm.graph.output_node().args[0]]
    # A node that is left out of the pattern stands for nothing.
    parts = {part: node.name for node, part in convert.patterns.items()}
    return Outputs(outputs, gm.graph, parts, blind=blind)


def with_wildcard_inputs(gm: fx.GraphModule, wildcards: Sequence[str]) -> fx.GraphModule:
    """Turn sentinel strings of a traced replacement into inputs after its tensors."""
    placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
    added: dict[str, fx.Node] = {}
    with gm.graph.inserting_after(placeholders[-1]):
        for name in reversed(wildcards):
            added[sentinel(name)] = gm.graph.placeholder(name)
    for node in gm.graph.nodes:
        swap = _swapper(added)
        node.args = fx.node.map_aggregate(node.args, swap)
        node.kwargs = fx.node.map_aggregate(node.kwargs, swap)
    gm.recompile()
    return gm


def _swapper(added: Mapping[str, fx.Node]) -> Callable[[Any], Any]:
    return lambda value: added.get(value, value) if isinstance(value, str) else value
