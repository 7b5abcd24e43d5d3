"""Matching a fusion in a graph with Inductor's own pattern matcher, in two stages.

Stage one matches structure only (sizes and dtypes ignored), with one pattern per variant for all
layers. Stage two traces the variant once per signature of its inputs and demands that every size,
dtype and constant agree; layers of one shape share that trace. A match whose inputs depend on its
own outputs would close a cycle and is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx
from torch._inductor import pattern_matcher as pm
from torch._subclasses import FakeTensorMode

from mlalab.graphs import fake_mode_of, give_own_values, layer_of, value_of
from mlalab.passes import tracing
from mlalab.passes.explain import Miss, attempt, nearest_miss
from mlalab.passes.fusion import Fusion, PassResult, Variant
from mlalab.recorder import watch
from mlalab.records import MatchRecord

Signature = tuple[Any, ...]
"""A variant's name, then shape, dtype, strides and device of each input."""


@functools.cache
def blind_pattern(
    tensors: tuple[str, ...], wildcards: tuple[str, ...], variant: Variant
) -> pm.MultiOutputPattern:
    """Return the stage-one pattern of a variant; traced once per process."""
    with FakeTensorMode():
        gm = tracing.trace(variant.pattern, variant.examples(), wildcards)
    return tracing.to_pattern(gm, tensors, wildcards, blind=True)


@dataclass(slots=True)
class Specialised:
    """A variant traced for one signature: what must match exactly, and what replaces it."""

    variant: Variant
    signature: Signature
    pattern: pm.MultiOutputPattern
    outputs: tuple[Tensor, ...]
    replacement: fx.GraphModule


@dataclass(slots=True, eq=False)
class FusionRun:
    """One run of a fusion over one graph."""

    fusion: Fusion
    matches: list[MatchRecord] = field(default_factory=list)
    _misses: dict[fx.Node, Miss] = field(default_factory=dict)
    _traced: dict[Signature, Specialised] = field(default_factory=dict)
    _accepted: dict[fx.Node, tuple[pm.Match, Specialised]] = field(default_factory=dict)
    _recent: Specialised | None = None

    def accept(self, anchor: fx.Node) -> pm.Match | None:
        """Return the match at `anchor` that may be replaced, or remember why there is none.

        The form that matched last is tried first: the layers of a model are alike, so nearly every
        anchor costs one attempt, and a variant that is never tried is never traced.
        """
        for exact in self._candidates(anchor):
            match = exact if isinstance(exact, Miss) else self._stage_two(exact, anchor)
            if isinstance(match, pm.Match):
                assert isinstance(exact, Specialised)
                self._accepted[anchor], self._recent = (match, exact), exact
                return match
            known = self._misses.get(anchor)
            if known is None or match.matched > known.matched:
                self._misses[anchor] = match
        return None

    def _candidates(self, anchor: fx.Node) -> Iterator[Specialised | Miss]:
        """Yield what stage one finds at `anchor`: an exact pattern to try, or an objection."""
        if self._recent is not None:
            yield self._recent
        for variant in self.fusion.variants:
            match = self.blind(variant).match(anchor)
            if match:
                inputs = [match.kwargs[name] for name in self.fusion.tensors]
                if all(isinstance(x, fx.Node) and isinstance(value_of(x), Tensor) for x in inputs):
                    yield self._specialise(variant, [value_of(x) for x in inputs])
                else:
                    yield Miss(variant.name, anchor, "an input is not a tensor", len(match.nodes))

    def _stage_two(self, exact: Specialised, anchor: fx.Node) -> pm.Match | Miss:
        name = exact.variant.name
        match = attempt(exact.pattern, anchor, name)
        if isinstance(match, Miss):
            return match
        inputs = [match.kwargs[tensor] for tensor in self.fusion.tensors]
        signature = _signature(name, [value_of(x) for x in inputs])
        if signature != exact.signature:
            wanted, found = (
                ", ".join(str(part[0]) for part in s[1:]) for s in (exact.signature, signature)
            )
            return Miss(
                name, anchor, f"expected inputs of {wanted}, found {found}", 0, wanted, found
            )
        for expected, node in zip(exact.outputs, match.output_nodes(), strict=True):
            if _meaning(expected) != _meaning(value_of(node)):
                wanted, found = (str(_meaning(v)) for v in (expected, value_of(node)))
                reason = f"expected a result of {wanted}, found {found}"
                return Miss(name, node, reason, len(match.nodes), wanted, found)
        if any(x in descendants(match, up_to=max(inputs)) for x in inputs):
            reason = "an input depends on a result, so fusing would close a cycle"
            return Miss(name, anchor, reason, len(match.nodes) + 1)
        return match

    def _specialise(self, variant: Variant, values: Sequence[Tensor]) -> Specialised:
        signature = _signature(variant.name, values)
        if signature not in self._traced:
            names, wildcards = self.fusion.tensors, self.fusion.wildcards
            with fake_mode_of(values):
                searched = tracing.trace(variant.pattern, values, wildcards)
                outputs = searched.graph.output_node().args[0]
                replaced = tracing.trace(variant.replacement, values, wildcards)
            self._traced[signature] = Specialised(
                variant=variant,
                signature=signature,
                outputs=tuple(value_of(x) for x in outputs),
                pattern=tracing.to_pattern(searched, names, wildcards, blind=False),
                replacement=tracing.with_wildcard_inputs(replaced, wildcards),
            )
        return self._traced[signature]

    def replace(self, anchor: fx.Node) -> None:
        """Put the replacement in the accepted match's place and keep the graph in order."""
        match, exact = self._accepted.pop(anchor)
        names = (*self.fusion.tensors, *self.fusion.wildcards)
        arguments = [match.kwargs[name] for name in names]
        layer = str(match.kwargs.get("layer_name", ""))
        matched = tuple(n.name for n in match.nodes)
        _make_room(match, [x for x in arguments if isinstance(x, fx.Node)])
        with watch(anchor.graph.owning_module) as events:
            match.replace_with_graph(exact.replacement, arguments)
        give_own_values(n for n in events.created if not n._erased)
        self.matches.append(
            MatchRecord(
                layer=layer,
                variant=exact.variant.name,
                matched=matched,
                created=events.survivors(events.created),
            )
        )

    def result(self, graph: fx.Graph) -> PassResult:
        """Return what was replaced, and for each anchor left in `graph`, why it was not."""
        refusals = []
        for anchor in graph.find_nodes(op="call_function", target=self.fusion.anchor):
            miss = self._misses.get(anchor)
            if miss is None:
                patterns = [(v.name, self.blind(v)) for v in self.fusion.variants]
                miss = nearest_miss(patterns, anchor)
            assert miss is not None
            refusals.append(miss.refusal(anchor, layer_of(anchor)))
        # The matcher walks the graph backwards.
        return PassResult(tuple(reversed(self.matches)), tuple(refusals))

    def blind(self, variant: Variant) -> pm.MultiOutputPattern:
        """Return the stage-one pattern of `variant`."""
        return blind_pattern(self.fusion.tensors, self.fusion.wildcards, variant)


class _AnyVariant(pm.PatternExpr):
    """All variants of a fusion as one pattern, so that the run chooses their order."""

    op = "call_function"

    def __init__(self, run: FusionRun) -> None:
        self.run = run
        self.fns = [run.fusion.anchor]

    def _match(self, node: fx.Node, ctx: pm.MatchContext) -> Any:
        raise AssertionError("a whole pattern is matched by match(), never as a part")

    def match(self, node: fx.Node) -> Any:
        """Return the match of the first variant that the run accepts."""
        return self.run.accept(node) or pm.FailedMatch("no variant")


class _Entry(pm.PatternEntry):
    """What Inductor calls when the pattern matched."""

    def __init__(self, run: FusionRun) -> None:
        super().__init__(pattern=_AnyVariant(run), extra_check=lambda match: True)
        self.run = run

    def apply(self, match: pm.Match, graph: fx.Graph, node: fx.Node) -> None:
        """Replace the match that was accepted at this node."""
        self.run.replace(node)


def apply_fusion(fusion: Fusion, graph: fx.Graph) -> PassResult:
    """Replace every match of `fusion` in `graph`, in place, and say what was left and why."""
    run = FusionRun(fusion)
    matcher = pm.PatternMatcherPass(pass_name=fusion.name)
    _Entry(run).register(matcher)
    matcher.apply(graph)
    return run.result(graph)


def descendants(match: pm.Match, *, up_to: fx.Node) -> dict[fx.Node, None]:
    """Return the nodes outside the match that depend on its outputs, as far as `up_to` in order."""
    inside = set(match.nodes)
    found: dict[fx.Node, None] = {}
    queue = [n for n in match.output_nodes() if n is not None]
    while queue:
        for user in queue.pop().users:
            if user not in inside and user not in found and not user > up_to:
                found[user] = None
                queue.append(user)
    return found


def _make_room(match: pm.Match, inputs: Sequence[fx.Node]) -> None:
    """Move the match's outputs, and what depends on them, behind the last input.

    The replacement goes where the first output stands; afterwards that is behind all its inputs.
    """
    last = max(inputs)
    outputs = sorted(n for n in match.output_nodes() if n is not None and n < last)
    for node in reversed([*outputs, *sorted(descendants(match, up_to=last))]):
        last.append(node)


def _dims(values: Any) -> tuple[Any, ...]:
    return tuple(v if isinstance(v, int) else str(v) for v in values)


def _signature(variant: str, values: Sequence[Tensor]) -> Signature:
    return (variant, *((_meaning(v), _dims(v.stride()), str(v.device)) for v in values))


def _meaning(value: Any) -> tuple[Any, ...]:
    return (_dims(value.shape), str(value.dtype).removeprefix("torch."))
