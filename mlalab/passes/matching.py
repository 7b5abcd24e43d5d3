"""Matching a fusion in a graph with Inductor's own patterns, in two stages.

Stage one matches structure only (sizes and dtypes ignored), with one pattern per variant for all
layers. Stage two traces the variant once per signature of its inputs and demands that every size,
dtype and constant agree; layers of one shape share that trace. A match that cannot be replaced
where it stands, e.g. because an input depends on a result, is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx
from torch._inductor import pattern_matcher as pm
from torch._subclasses import FakeTensorMode

from mlalab.errors import InputError, MlalabError
from mlalab.graphs import (
    fake_mode_of,
    give_own_values,
    inherit_origin,
    layer_of,
    value_of,
    written_nodes,
)
from mlalab.passes import tracing
from mlalab.passes.explain import Miss, attempt, nearest_miss
from mlalab.passes.fingerprint import fingerprint
from mlalab.passes.fusion import Fusion, PassResult, Variant
from mlalab.passes.layout_readers import keep_dense
from mlalab.passes.pattern_records import Patterns, source_line
from mlalab.passes.placing import Place, Taken, place_of
from mlalab.passes.tracing import dims, meaning
from mlalab.passes.values import refresh
from mlalab.recorder import watch
from mlalab.records import MatchRecord

Signature = tuple[Any, ...]
"""A variant's name, then shape and dtype, strides and device of each input."""

_UNFIT = (ArithmeticError, AssertionError, LookupError, RuntimeError, ValueError, MlalabError)
"""What tracing may raise for inputs whose sizes do not go together."""


def blind_pattern(
    tensors: tuple[str, ...], wildcards: tuple[str, ...], variant: Variant
) -> tracing.Outputs:
    """Return the stage-one pattern of a variant; traced once per process.

    And again when the code behind it changed: a notebook's cell may redefine what a pattern calls.
    """
    return _blind_pattern(tensors, wildcards, variant, fingerprint(variant))


@functools.cache
def _blind_pattern(
    tensors: tuple[str, ...], wildcards: tuple[str, ...], variant: Variant, _code: str
) -> tracing.Outputs:
    with FakeTensorMode():
        gm = tracing.trace(variant.pattern, variant.examples(), wildcards)
    return tracing.to_pattern(gm, tensors, wildcards, blind=True)


@dataclass(frozen=True, slots=True)
class Specialised:
    """A variant traced for one signature: what must match exactly, and what replaces it."""

    variant: Variant
    signature: Signature
    pattern: tracing.Outputs
    replacement: fx.GraphModule


@dataclass(frozen=True, slots=True)
class Accepted:
    """A match that may be replaced."""

    match: pm.Match
    exact: Specialised
    arguments: tuple[Any, ...]
    place: Place


class FusionRun:
    """One run of a fusion over one graph."""

    def __init__(self, fusion: Fusion, graph: fx.Graph) -> None:
        self.fusion = fusion
        self._traced: dict[Signature, Specialised | str] = {}
        self._blinds: dict[str, tracing.Outputs] = {}
        self._recent: Specialised | None = None
        self._writes = [node for node in graph.nodes if written_nodes(node)]

    def accept(self, anchor: fx.Node) -> Accepted | Miss:
        """Return the match at `anchor` that may be replaced, or the nearest miss.

        The form that matched last is tried first: the layers of a model are alike, so nearly every
        anchor costs one attempt, and a variant that is never tried is never traced.
        """
        if self._recent is not None:
            found = self._stage_two(self._recent, anchor)
            if isinstance(found, Accepted):
                return found
        misses = []
        for exact in self._candidates(anchor):
            found = self._stage_two(exact, anchor) if isinstance(exact, Specialised) else exact
            if isinstance(found, Accepted):
                self._recent = found.exact
                return found
            misses.append(found)
        if not misses:
            patterns = [(v.name, self._blind(v)) for v in self.fusion.variants]
            return nearest_miss(patterns, anchor)
        return max(misses, key=lambda miss: miss.matched)

    def _candidates(self, anchor: fx.Node) -> Iterator[Specialised | Miss]:
        """Yield what stage one finds at `anchor`: an exact pattern to try, or a miss."""
        for variant in self.fusion.variants:
            match = self._blind(variant).match(anchor)
            if match:
                exact = self._specialise(variant, self._values(match))
                if isinstance(exact, str):
                    blind, count = self._blind(variant), len(match.nodes)
                    yield Miss.elsewhere(variant.name, blind, anchor, exact, count)
                else:
                    yield exact

    def _stage_two(self, exact: Specialised, anchor: fx.Node) -> Accepted | Miss:
        name = exact.variant.name
        match = attempt(exact.pattern, anchor, name)
        if isinstance(match, Miss):
            return match
        if _signature(name, self._values(match)) != exact.signature:
            reason = "the inputs are of other sizes"
            return Miss.elsewhere(name, exact.pattern, anchor, reason, 0)
        inputs = [match.kwargs[x] for x in self.fusion.tensors]
        place = place_of(Taken.of(match), anchor, inputs, self._writes)
        if isinstance(place, str):
            return Miss.elsewhere(name, exact.pattern, anchor, place, len(match.nodes) + 1)
        strings = [match.kwargs[x] for x in self.fusion.wildcards]
        return Accepted(match, exact, (*inputs, *strings), place)

    def _values(self, match: pm.Match) -> list[Any]:
        inputs = (match.kwargs[name] for name in self.fusion.tensors)
        return [value_of(x) if isinstance(x, fx.Node) else x for x in inputs]

    def _specialise(self, variant: Variant, values: Sequence[Any]) -> Specialised | str:
        """Return `variant` traced for these inputs, or why it does not fit them."""
        if not all(isinstance(value, Tensor) for value in values):
            return "an input is not a tensor"
        signature = _signature(variant.name, values)
        if signature not in self._traced:
            try:
                self._traced[signature] = self._trace(variant, values)
            except _UNFIT as error:
                self._traced[signature] = f"it does not fit the inputs: {error}"
        return self._traced[signature]

    def _trace(self, variant: Variant, values: Sequence[Tensor]) -> Specialised:
        names, wildcards = self.fusion.tensors, self.fusion.wildcards
        with fake_mode_of(values):
            # Tracing knows inputs by identity, and one node may serve as two of them.
            own = [x.new_empty_strided(x.shape, x.stride()) for x in values]
            searched = tracing.trace(variant.pattern, own, wildcards)
            replaced = tracing.trace(variant.replacement, own, wildcards)
        wanted, given = (
            [meaning(value_of(x)) for x in gm.graph.output_node().args[0]]
            for gm in (searched, replaced)
        )
        if wanted != given:
            raise InputError(f"the results would be {given} instead of {wanted}")
        return Specialised(
            variant=variant,
            signature=_signature(variant.name, values),
            pattern=tracing.to_pattern(searched, names, wildcards, blind=False),
            replacement=tracing.with_wildcard_inputs(replaced, wildcards),
        )

    def _blind(self, variant: Variant) -> tracing.Outputs:
        if variant.name not in self._blinds:
            pattern = blind_pattern(self.fusion.tensors, self.fusion.wildcards, variant)
            self._blinds[variant.name] = pattern
        return self._blinds[variant.name]


def apply_fusion(fusion: Fusion, graph: fx.Graph) -> PassResult:
    """Replace every match of `fusion` in `graph`, in place, and say what was left and why."""
    run, patterns = FusionRun(fusion, graph), Patterns(fusion.variants)
    matches, refusals = [], []
    # Backwards, so that what stands before an anchor is still as it was and a miss names it.
    for anchor in reversed(graph.find_nodes(op="call_function", target=fusion.anchor)):
        found = run.accept(anchor)
        if isinstance(found, Accepted):
            matches.append(replace(found, graph))
        else:
            number = patterns.number(found.variant, found.pattern)
            refusals.append(found.refusal(anchor, layer_of(anchor), number))
    return PassResult(tuple(reversed(matches)), tuple(reversed(refusals)), patterns.records)


def replace(accepted: Accepted, graph: fx.Graph) -> MatchRecord:
    """Put the replacement in the match's place and keep the graph in order."""
    match, exact = accepted.match, accepted.exact
    anchor = match.output_node()
    matched = tuple(node.name for node in match.nodes)
    accepted.place.make_room()
    given = exact.replacement.graph.output_node().args[0]
    with watch(graph.owning_module, rewiring=False) as events:
        for node, by in zip(match.output_nodes(), given, strict=True):
            if node is not None:
                keep_dense(node, value_of(by))
        match.replace_with_graph(exact.replacement, accepted.arguments)
    created = [node for node in events.created if not node._erased]
    give_own_values(created)
    refresh([*created, *(user for node in created for user in node.users)])
    inherit_origin(created, source=anchor)
    return MatchRecord(
        layer=str(match.kwargs.get("layer_name", "")),
        variant=exact.variant.name,
        matched=matched,
        created=events.survivors,
        source=source_line(exact.variant.pattern),
    )


def _signature(variant: str, values: Sequence[Any]) -> Signature:
    kinds = ((meaning(v), dims(v.stride()), str(v.device)) for v in values if isinstance(v, Tensor))
    return (variant, *kinds)
