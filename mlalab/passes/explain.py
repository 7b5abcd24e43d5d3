"""Why a pattern did not match: the first node that failed, what was expected and what was found."""

from __future__ import annotations

import itertools
import operator
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx
from torch._inductor import pattern_matcher as pm

from mlalab.graphs import is_call, op_name, overload_of, short_name, value_of
from mlalab.node_records import printed
from mlalab.passes.tracing import Call, Outputs, meaning
from mlalab.records import Refusal

_NEARBY = 40
"""How many nodes before an anchor are searched for a part of a pattern."""


@dataclass(frozen=True, slots=True)
class Miss:
    """One variant that did not match at one anchor."""

    variant: str
    node: Any
    """Where it failed: a node, or the constant found in a node's place."""
    reason: str
    matched: int
    """How many parts of the pattern had matched before: the largest is the nearest miss."""
    pattern: Outputs
    agreed: tuple[str, ...]
    """Names of the traced pattern's nodes that agreed, as far as they were compared."""
    expected: str | None = None
    found: str | None = None
    failed: str | None = None
    """Name of the traced pattern's node that did not."""

    @classmethod
    def elsewhere(
        cls, variant: str, pattern: Outputs, anchor: fx.Node, reason: str, matched: int
    ) -> Miss:
        """Return the miss of a pattern that agreed whole, and yet must not be replaced."""
        return cls(variant, anchor, reason, matched, pattern, tuple(pattern.names.values()))

    def refusal(self, anchor: fx.Node, layer: str | None, pattern: int) -> Refusal:
        """Return the miss as a plain record about `anchor`.

        Args:
            pattern: where the step keeps the record of the pattern.
        """
        elsewhere = isinstance(self.node, fx.Node) and self.node is not anchor
        where = f" at {self.node.name}" if elsewhere else ""
        return Refusal(
            node=anchor.name,
            layer=layer,
            reason=f"{self.reason}{where}",
            expected=self.expected,
            found=self.found,
            variant=self.variant,
            pattern=pattern,
            agreed=self.agreed,
            failed=self.failed,
            at=self.node.name if elsewhere else None,
        )


class _ProgressContext(pm.MatchContext):
    """A match context that remembers the failure it got furthest to."""

    def __init__(self, pattern: Outputs, graph: fx.Graph) -> None:
        super().__init__(pattern.outputs, graph=graph)
        self.furthest = (-1, "", "", None)
        """Parts matched by then, what was expected, what was found, and where."""
        self.agreed: tuple[str, ...] = ()
        self.failed: str | None = None
        """Names of the pattern's nodes that had agreed by then, and of the one that did not."""
        self._names = pattern.names
        self._open: list[Any] = []
        """Parts being matched, outermost first: their op agrees, and so do inputs before this."""
        self._failure: Any = None

    def match(self, pattern: Any, node: Any) -> Any:
        bound = self.pattern_to_node.get(pattern)
        self._open.append(pattern)
        result = super().match(pattern, node)
        self._open.pop()
        # Callers pass one failure object up unchanged: only its first sight is the culprit.
        if not result and result is not self._failure:
            self._failure = result
            if self.matched > self.furthest[0]:
                self.furthest = (self.matched, *self._difference(pattern, node, bound), node)
                self._place(pattern)
        return result

    def _place(self, culprit: Any) -> None:
        """Say in names of the pattern's own nodes what agreed and what did not."""
        if isinstance(culprit, pm.MultiOutputPattern):
            culprit = culprit.outputs[self._absent(culprit)]
        elif culprit not in self._names:  # a wildcard string: its call is to blame
            culprit = self._open[-1]
        done = {part for part, node in self.pattern_to_node.items() if node is not None}
        agreed = (done | set(self._open)) - {culprit}
        self.agreed = tuple(name for part, name in self._names.items() if part in agreed)
        self.failed = self._names[culprit]

    def _absent(self, pattern: pm.MultiOutputPattern) -> int:
        return next(
            i for i, output in enumerate(pattern.outputs) if not self.pattern_to_node.get(output)
        )

    @property
    def matched(self) -> int:
        """How many parts of the pattern stand for a node."""
        return sum(isinstance(node, fx.Node) for node in self.pattern_to_node.values())

    def _difference(self, pattern: Any, node: Any, bound: Any) -> tuple[str, str]:
        if bound is not None:
            return f"{printed(bound)} again", printed(node)
        if isinstance(pattern, pm.MultiOutputPattern):
            index = self._absent(pattern)
            output = _expected(pattern.outputs[index])
            return f"result {index} ({output})", "no node that computes it"
        return _difference(pattern, node)


def attempt(pattern: Outputs, anchor: fx.Node, variant: str) -> pm.Match | Miss:
    """Match `pattern` at `anchor`; return the match, or where it failed."""
    context = _ProgressContext(pattern, anchor.graph)
    match = context.match(pattern, anchor)
    if match:
        return match
    matched, expected, found, node = context.furthest
    return Miss(
        variant=variant,
        node=node,
        reason=f"expected {expected}, found {found}",
        matched=matched,
        pattern=pattern,
        agreed=context.agreed,
        expected=expected,
        found=found,
        failed=context.failed,
    )


def nearest_miss(patterns: Iterable[tuple[str, Outputs]], anchor: fx.Node) -> Miss:
    """Return the miss of the variant that matched most before it failed.

    Most often the first node of all differs, for every variant; then what else of the pattern is
    found before the anchor decides which variant was meant.
    """
    attempts = [attempt(pattern, anchor, name) for name, pattern in patterns]
    misses = [miss for miss in attempts if isinstance(miss, Miss)]
    most = max(miss.matched for miss in misses)
    tied = [miss for miss in misses if miss.matched == most]
    return max(tied, key=lambda miss: _found_nearby(miss.pattern, anchor))


def _found_nearby(pattern: Outputs, anchor: fx.Node) -> int:
    """Return how much of what comes before a pattern's first output occurs before the anchor."""
    parts = [part for part in pattern.outputs[0].args if isinstance(part, Call)]
    nodes = itertools.islice(_upstream(anchor), _NEARBY)
    return max((_matched(pattern, part, x) for x in nodes for part in parts), default=0)


def _matched(pattern: Outputs, part: Call, node: fx.Node) -> int:
    context = _ProgressContext(pattern, node.graph)
    context.match(part, node)
    return context.matched


def _upstream(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the calls that a node depends on, each once, nearest first."""
    queue, seen = deque([node]), {node}
    while queue:
        sources = queue.popleft().all_input_nodes
        new = [x for x in sources if x.op == "call_function" and x not in seen]
        yield from new
        seen.update(new)
        queue += new


def _difference(pattern: Any, node: Any) -> tuple[str, str]:
    """Say in op names and constants how a node differs from its part of the pattern."""
    expected, found = _expected(pattern), _found(node)
    if not isinstance(node, fx.Node) or not pattern._match_fns(node):
        # Two overloads of one op: `x + y` and `x + 1` decomposed differ in nothing else.
        same = expected == found
        return (str(pattern.fns[0]), str(overload_of(node))) if same else (expected, found)
    if is_call(node, operator.getitem):
        return expected, found
    extra = pattern.extra_keywords(node)
    if extra:
        return f"{expected} without {extra[0]}", f"{found} with {extra[0]}={node.kwargs[extra[0]]}"
    wanted = [*pattern.args, *pattern.kwargs.items()]
    given = [*node.args, *((k, node.kwargs.get(k)) for k in pattern.kwargs)]
    for want, have in zip(wanted, given, strict=False):
        if not _constants_agree(want, have):
            return f"{expected} with {_constant(want)}", f"{found} with {_constant(have)}"
    if len(wanted) != len(given):
        return f"{expected} with {len(wanted)} arguments", f"{found} with {len(given)}"
    return (
        f"{expected} of {_kind(pattern.expected)}",
        f"{found} of {_kind(meaning(value_of(node)))}",
    )


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


def _kind(value: Any) -> str:
    return "no tensor" if value is None else f"{value[1]}{list(value[0])}"


def _op_of(pattern: Call) -> str:
    """Return the name of the op that a part of a pattern stands for, as `op_name` of its node."""
    wrapped = next((a for a in pattern.args if hasattr(a, "_schema")), None)
    name = short_name(pattern.fns[0])
    return f"{name}({short_name(wrapped)})" if wrapped is not None else name


def _expected(pattern: Call) -> str:
    if pattern.fns[0] is operator.getitem:
        return f"item {pattern.args[1]} of {_op_of(pattern.args[0])}"
    return _op_of(pattern)


def _found(node: Any) -> str:
    if not isinstance(node, fx.Node):
        return f"the constant {printed(node)}"
    if is_call(node, operator.getitem):
        return f"item {node.args[1]} of {op_name(node.args[0])}"
    return op_name(node) if node.op == "call_function" else f"the {node.op} {node.name}"
