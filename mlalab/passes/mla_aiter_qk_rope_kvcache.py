"""RoPE + latent cache write + the decode query's preparation → one op (vLLM #41839).

Before:  fused_rope_unified_mla_kv_cache_update ─[1]─► scatter into q ─► mla_decode_q_prep ─┐
                                                └[0]─────────────────────────────► attention(q, …)
After:   fused_aiter_qk_rope_kvcache_q_concat_quant_mla(q_nope, q_pe, k_pe, kv_c, …) ─► attention

The new op reads what the old one did and the query's nope columns, wherever these come from before
anything was scattered over them: so it depends on no result of its own. Attention no longer gets
`q` and `k_pe`, which serve prefill rows only. Whatever else reads the rotated parts is given them
by the op's `rotated` form.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from mlalab.errors import MlalabError
from mlalab.graphs import (
    aten,
    bound_arguments,
    erase_dead,
    fake_mode_of,
    inherit_origin,
    layer_of,
    value_of,
    wrapped_op,
    written_nodes,
)
from mlalab.passes.attention import PREPARED, all_attentions, change_arguments, op_of
from mlalab.passes.columns import Piece
from mlalab.passes.fusion import GraphFusion, PassResult
from mlalab.passes.mla_aiter_checks import ROPE, RefusedError, check_results, find, still_read
from mlalab.passes.placing import Place, Taken, place_of
from mlalab.passes.values import lie_alike, replace
from mlalab.recorder import watch
from mlalab.records import MatchRecord, Refusal

_ops = torch.ops.mlalab
_PREP = _ops.mla_decode_q_prep.default
_FUSED = _ops.fused_aiter_qk_rope_kvcache_q_concat_quant_mla
_FROM_ROPE = (
    *("q_pe", "k_pe", "kv_c", "positions", "cos_sin_cache", "is_neox", "kv_cache_dtype"),
    *("kv_cache_scale", "layer_name", "rope_in_fp32"),
)
"""The old op's arguments in the new one's order, after `q_nope`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done for one rotation, once nothing stands against it.

    Args:
        preps: preparations of its query; equal ones become one.
        readers: attention calls that take them, with their arguments.
        rotated: rotated parts that something else reads.
        query: fake value of the new op's query.
    """

    rope: fx.Node
    preps: Sequence[fx.Node]
    nope: Piece
    readers: Sequence[tuple[fx.Node, dict[str, Any]]]
    rotated: Sequence[fx.Node]
    place: Place
    query: Tensor

    def apply(self) -> MatchRecord:
        """Fuse, in place."""
        graph, rope = self.rope.graph, self.rope
        layer, matched = layer_of(rope) or "", (rope.name, *(prep.name for prep in self.preps))
        with watch(graph.owning_module, rewiring=False) as events:
            self.place.make_room()
            with graph.inserting_before(rope):
                results = self._emit()
            inherit_origin(events.created, source=rope)
            self._redirect(results)
        variant = "rotated" if self.rotated else "default"
        return MatchRecord(layer=layer, variant=variant, matched=matched, created=events.survivors)

    def _emit(self) -> list[fx.Node]:
        """Emit the new op; returns its results: the query and, where needed, the rotated parts."""
        source, start = self.nope.source, self.nope.first
        given = [source if self.nope.is_all else _slice(source, start, start + self.nope.width)]
        given += [self.rope.kwargs[name] for name in _FROM_ROPE]
        if not self.rotated:
            return [_call(_FUSED.default, *given, value=self.query)]
        call = _call(_FUSED.rotated, *given)
        return [_call(operator.getitem, call, index) for index in range(3)]

    def _redirect(self, results: list[fx.Node]) -> None:
        """Let every reader of what was there read the new results, and drop what nobody reads."""
        query, unread = results[0], [*self.preps]
        for node, arguments in self.readers:
            # An exposed layer's attention takes nothing else of the query and the key.
            unrotated = [x for x in ("q", "k_pe") if x in arguments and x != PREPARED[op_of(node)]]
            unread += [x for name in unrotated if isinstance(x := arguments[name], fx.Node)]
            change_arguments(node, **dict.fromkeys(unrotated))
        for prep in self.preps:
            prep.replace_all_uses_with(query)
        for item in list(self.rope.users):
            unread.append(item)
            if item.args[1] == 0:
                for node in list(item.users):
                    change_arguments(node, kv_cache_dummy_dep=query)
            elif item in self.rotated:
                replace(item, results[item.args[1]])
        for node in unread:
            erase_dead(node)


def _call(target: Any, *arguments: Any, value: Any = None) -> fx.Node:
    """Emit a call at the graph's insertion point, with the value that its inputs give it."""
    first = next(x for x in arguments if isinstance(x, fx.Node))
    node = first.graph.call_function(target, arguments)
    node.meta["val"] = _value(target, *arguments) if value is None else value
    return node


def _slice(source: fx.Node, start: int, stop: int) -> fx.Node:
    return _call(aten.slice.Tensor, source, value_of(source).dim() - 1, start, stop)


def _value(target: Any, *arguments: Any) -> Any:
    values = fx.node.map_arg(arguments, value_of)
    with fake_mode_of(values):
        return target(*values)


class Fuser:
    """One run of the fusion over one graph."""

    def __init__(self, graph: fx.Graph) -> None:
        self.preps = graph.find_nodes(op="call_function", target=_PREP)
        self.ropes = [n for n in graph.nodes if wrapped_op(n) is ROPE]
        self.writes = [node for node in graph.nodes if written_nodes(node)]
        self.attentions: dict[fx.Node, list[fx.Node]] = defaultdict(list)
        for node, arguments in all_attentions(graph):
            self.attentions[arguments.get(PREPARED[op_of(node)])].append(node)

    def run(self) -> PassResult:
        """Fuse what can be; every preparation and every rotation is accounted for."""
        groups: dict[fx.Node, list[fx.Node]] = defaultdict(list)
        matches, refusals = [], []
        for prep in self.preps:
            try:
                groups[find(prep).rope].append(prep)
            except RefusedError as refused:
                refusals.append(_refusal(prep, refused))
        for rope, preps in groups.items():
            try:
                matches.append(self.plan(rope, preps).apply())
            except RefusedError as refused:
                refusals += [_refusal(prep, refused) for prep in preps]
        for rope in self.ropes:
            if not rope._erased and rope not in groups:
                refusals.append(_refusal(rope, "no query is prepared from its rotation alone"))
        return PassResult(tuple(matches), tuple(refusals))

    def plan(self, rope: fx.Node, preps: Sequence[fx.Node]) -> Plan:
        """Return what to do about `rope`, looking only.

        Raises:
            RefusedError: it cannot be fused with the preparations of its query.
        """
        found = {find(prep) for prep in preps}
        if len(found) > 1:
            raise RefusedError(f"{len(preps)} different queries are prepared from {rope.name}")
        nope = found.pop().nope
        given = {name: rope.kwargs[name] for name in _FROM_ROPE}
        inputs = [x for x in (nope.source, *given.values()) if isinstance(x, fx.Node)]
        place = place_of(Taken({rope}, [rope], given["layer_name"]), rope, inputs, self.writes)
        if isinstance(place, str):
            raise RefusedError(place)
        for node in self.writes:
            if min(nope.source, rope) < node < max(preps):
                raise RefusedError(f"{node.name}, in between, writes in place")
        readers = [(n, bound_arguments(n)) for prep in preps for n in self.attentions[prep]]
        check_results(rope)
        query = self._query_like(preps, nope, given)
        rotated = still_read(rope, preps, dict(readers))
        return Plan(rope, preps, nope, readers, rotated, place, query)

    def _query_like(self, preps: Sequence[fx.Node], nope: Piece, given: dict[str, Any]) -> Tensor:
        """Return the fake value of the new op's query, which must be like that of `preps`."""
        source, start = value_of(nope.source), nope.first
        with fake_mode_of(source):
            columns = source.narrow(-1, start, nope.width)
        try:
            query: Tensor = _value(_FUSED.default, columns, *given.values())
        except MlalabError as error:
            raise RefusedError(str(error)) from error
        for prep in preps:
            if not lie_alike(query, value_of(prep)):
                raise RefusedError(f"the op's query would not be like {prep.name}")
        return query


def _refusal(node: fx.Node, reason: object) -> Refusal:
    return Refusal(node=node.name, layer=layer_of(node), reason=str(reason))


MLAAiterQkRopeKVCacheFusionPass = GraphFusion(
    name="MLAAiterQkRopeKVCacheFusionPass",
    note="RoPE, latent cache write and the decode query's preparation become one op.",
    flags=("fuse_aiter_qk_rope_kvcache_mla",),
    max_tokens="aiter_qk_rope_kvcache_fusion_max_token_num",
    decode_only=True,
    after=("MLARoPEKVCacheCatFusionPass", "MLADecodeQPrepLiftPass"),
    serves="mla",
    run=lambda graph: Fuser(graph).run(),
)
