"""Why a pattern did not match: the first node that failed, what was expected and what was found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import fx
from torch._inductor import pattern_matcher as pm

from mlalab.graphs import op_name, short_name
from mlalab.node_records import printed
from mlalab.records import Refusal


@dataclass(frozen=True, slots=True)
class Miss:
    """One variant that did not match at one anchor."""

    variant: str
    node: Any
    """Where it failed: a node, or the constant found in a node's place."""
    reason: str
    matched: int
    """How many parts of the pattern had matched before: the largest is the nearest miss."""
    expected: str | None = None
    found: str | None = None

    def refusal(self, anchor: fx.Node, layer: str | None) -> Refusal:
        """Return the miss as a plain record about `anchor`."""
        where = f" at {self.node.name}" if isinstance(self.node, fx.Node) else ""
        return Refusal(
            node=anchor.name,
            layer=layer,
            reason=f"{self.reason}{where}",
            expected=self.expected,
            found=self.found,
            variant=self.variant,
        )


class _ProgressContext(pm.MatchContext):
    """A match context that remembers the failure it got furthest to."""

    def __init__(self, outputs: list[Any], graph: fx.Graph) -> None:
        super().__init__(outputs, graph=graph)
        self.matched = 0
        self.furthest: tuple[int, Any, Any] | None = None
        self._failure: Any = None

    def match(self, pattern: Any, node: Any) -> Any:
        result = super().match(pattern, node)
        if result:
            self.matched += 1
        elif result is not self._failure:
            # Callers pass one failure object up unchanged: only its first sight is the culprit.
            self._failure = result
            if self.furthest is None or self.matched >= self.furthest[0]:
                self.furthest = (self.matched, pattern, node)
        return result


def attempt(pattern: pm.MultiOutputPattern, anchor: fx.Node, variant: str) -> pm.Match | Miss:
    """Match `pattern` at `anchor`; return the match, or where it failed."""
    context = _ProgressContext(pattern.outputs, anchor.graph)
    match = context.match(pattern, anchor)
    if match:
        return match
    assert context.furthest is not None
    matched, culprit, node = context.furthest
    expected, found = _difference(culprit, node)
    return Miss(variant, node, f"expected {expected}, found {found}", matched, expected, found)


def nearest_miss(patterns: Iterable[tuple[str, Any]], anchor: fx.Node) -> Miss:
    """Return the miss of the variant that matched the largest part of its pattern."""
    attempts = [attempt(pattern, anchor, name) for name, pattern in patterns]
    misses = [miss for miss in attempts if isinstance(miss, Miss)]
    return max(misses, key=lambda miss: miss.matched, default=None)


def _difference(pattern: Any, node: Any) -> tuple[str, str]:
    """Say in op names and constants how a node differs from its part of the pattern."""
    if not isinstance(pattern, pm.CallFunction):
        return "the node already bound to this part of the pattern", _describe(node)
    expected = _op_of(pattern)
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return expected, _describe(node)
    if not pattern._match_fns(node):
        return expected, op_name(node)
    wanted = [*pattern.args, *pattern.kwargs.items()]
    given = [*node.args, *((k, node.kwargs.get(k)) for k in pattern.kwargs)]
    for want, have in zip(wanted, given, strict=False):
        if not _constants_agree(want, have):
            return f"{expected} with {_constant(want)}", f"{op_name(node)} with {_constant(have)}"
    return f"{expected} with {len(wanted)} arguments", f"{op_name(node)} with {len(given)}"


def _constants_agree(want: Any, have: Any) -> bool:
    if isinstance(want, (list, tuple)) and isinstance(have, (list, tuple)):
        pairs = zip(want, have, strict=False)
        return len(want) == len(have) and all(_constants_agree(w, h) for w, h in pairs)
    return isinstance(want, pm.PatternExpr) or want == have


def _constant(value: Any) -> str:
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        return f"{value[0]}={_constant(value[1])}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_constant(x) for x in value) + "]"
    return "any" if isinstance(value, pm.PatternExpr) else printed(value)


def _op_of(pattern: pm.CallFunction) -> str:
    wrapped = next((a for a in pattern.args if hasattr(a, "_schema")), None)
    name = short_name(pattern.fns[0])
    return f"{name}({short_name(wrapped)})" if wrapped is not None else name


def _describe(node: Any) -> str:
    if isinstance(node, fx.Node):
        return op_name(node) if node.op == "call_function" else f"the {node.op} {node.name}"
    return f"the constant {printed(node)}"
