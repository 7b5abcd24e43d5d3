"""From a pattern function to a pattern: tracing, wildcards, and literal or blind sizes.

Torch's matcher compares strings as constants and either ignores every int or none. Here a string
argument is traced as a sentinel and becomes a wildcard, and a size that depends on a symbolic
dimension becomes one too, so that one pattern serves all layers and all token counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._inductor import pattern_matcher as pm
from torch._inductor.fx_passes.post_grad import view_to_reshape
from torch.utils._ordered_set import OrderedSet

_SYMBOLIC = -987_654_321
"""Stands for a size that depends on a symbolic dimension while a graph becomes a pattern."""

_IGNORED_TYPES = (int, float, list, torch.device, torch.dtype)


class OutputsPattern(pm.MultiOutputPattern):
    """A multi-output pattern that looks for each further output near the first.

    Torch takes the first node that fits, in the order of users. When layers share their cos and
    sin that may be another layer's query, or the key itself, so candidates are tried from the
    first output backwards and one node never serves as two outputs.
    """

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
    """Trace `function` the way Inductor prepares patterns; views become reshapes, as post-grad."""
    strings = {name: sentinel(name) for name in wildcards}

    def with_strings(*arguments: Any) -> Any:
        return function(*arguments, **strings)

    gm = pm.fwd_only(with_strings, list(tensors))
    view_to_reshape(gm)
    return gm


def to_pattern(
    gm: fx.GraphModule, names: Sequence[str], wildcards: Sequence[str], *, blind: bool
) -> pm.MultiOutputPattern:
    """Turn a traced function into a pattern.

    Args:
        names: the function's tensor arguments.
        blind: ignore every int, float, dtype and device (first stage); otherwise compare them,
            apart from sizes that depend on a symbolic dimension.
    """
    _hide_symbolic_sizes(gm)
    ignored = _IGNORED_TYPES if blind else ()
    pattern = pm.fx_to_pattern(gm, ignore_types=ignored, argnames=list(names))
    assert isinstance(pattern, pm.MultiOutputPattern)
    constants: dict[Any, pm.PatternExpr] = {
        sentinel(name): pm.KeywordArg(name) for name in wildcards
    }
    constants[_SYMBOLIC] = pm.Ignored()
    return _rewrite(pattern, constants, {})


def _hide_symbolic_sizes(gm: fx.GraphModule) -> None:
    for node in reversed(gm.graph.nodes):
        if node.op != "placeholder" and isinstance(node.meta.get("val"), torch.SymInt):
            node.replace_all_uses_with(_SYMBOLIC)
            gm.graph.erase_node(node)
    gm.recompile()


def _rewrite(pattern: Any, constants: Mapping[Any, pm.PatternExpr], done: dict[int, Any]) -> Any:
    """Put wildcards in for constants, keeping shared sub-patterns shared.

    Interior nodes may have any number of users: they are pure, so a reader outside the match keeps
    its node alive and stays right.
    """
    if isinstance(pattern, (str, int)) and not isinstance(pattern, bool):
        return constants.get(pattern, pattern)
    if isinstance(pattern, (list, tuple)):
        return type(pattern)(_rewrite(x, constants, done) for x in pattern)
    if id(pattern) in done:
        return done[id(pattern)]
    result = pattern
    if isinstance(pattern, pm.MultiOutputPattern):
        result = OutputsPattern([_rewrite(x, constants, done) for x in pattern.outputs])
    elif isinstance(pattern, pm.CallFunction):
        result = pm.CallFunction(
            pattern.fns,
            *(_rewrite(x, constants, done) for x in pattern.args),
            _users=pm.MULTIPLE,
            **{k: _rewrite(v, constants, done) for k, v in pattern.kwargs.items()},
        )
    done[id(pattern)] = result
    return result


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
