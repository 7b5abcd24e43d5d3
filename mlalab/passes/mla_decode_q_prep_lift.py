"""The decode query's preparation, out of the attention op and into the graph (vLLM #41839).

Before:  q ──────────────────────────────────► attention(q, …)
After:   q ─► mla_decode_q_prep(q, layer) ─┐
         q ────────────────────────────────┴─► attention(q, …, q_prepped=…)

An exposed layer prepares the query in plain torch; there, that becomes the same node. Alone it
saves nothing: it lets the next fusion see what each layer computes inside.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from mlalab.errors import MlalabError
from mlalab.graphs import (
    aten,
    erase_dead,
    fake_mode_of,
    inherit_origin,
    is_call,
    layer_of,
    value_of,
)
from mlalab.passes.attention import attentions, change_arguments, decode_attentions
from mlalab.passes.fusion import GraphFusion, PassResult
from mlalab.passes.plain_q_prep import PlainPreparations
from mlalab.recorder import watch
from mlalab.records import MatchRecord, Refusal

_PREP = torch.ops.mlalab.mla_decode_q_prep


def lift(graph: fx.Graph) -> PassResult:
    """Put a preparation in front of each attention that has none, in place."""
    matches, refusals = [], []
    for node, arguments in list(attentions(graph)):
        if arguments.get("q_prepped") is not None:
            continue
        layer, q = layer_of(node), arguments["q"]
        prepared = _prepared(q, layer)
        if isinstance(prepared, str):
            refusals.append(Refusal(node=node.name, layer=layer, reason=prepared))
            continue
        with graph.inserting_before(node):
            prep = graph.call_function(_PREP.default, (q, layer))
        prep.meta["val"] = prepared
        inherit_origin([prep], source=node)
        change_arguments(node, q_prepped=prep)
        matches.append(
            MatchRecord(
                layer=layer or "",
                variant="mla_decode_q_prep",
                matched=(node.name,),
                created=(prep.name,),
            )
        )
    plain = _name_plain_preparations(graph)
    return PassResult((*matches, *plain.matches), (*refusals, *plain.refusals))


def _name_plain_preparations(graph: fx.Graph) -> PassResult:
    """Turn what exposed layers compute in plain torch into preparations, in place."""
    matches, refusals, plain = [], [], PlainPreparations()
    for node, arguments in list(decode_attentions(graph)):
        layer, query = layer_of(node), arguments["q"]
        if is_call(query, _PREP.default):
            continue
        parts = plain.parts_of(query, layer)
        if isinstance(parts, str):
            refusals.append(Refusal(node=node.name, layer=layer, reason=parts))
            continue
        with watch(graph.owning_module, rewiring=False) as events:
            with graph.inserting_before(node), fake_mode_of(value_of(query)):
                q = graph.call_function(aten.cat.default, (list(parts), -1))
                q.meta["val"] = torch.cat([value_of(x) for x in parts], -1)
                prep = graph.call_function(_PREP.default, (q, layer))
                prep.meta["val"] = _PREP.default(q.meta["val"], layer)
            inherit_origin([q, prep], source=query)
            change_arguments(node, q=prep)
            erase_dead(query)
        record = MatchRecord(
            layer=layer or "",
            variant="plain",
            matched=events.gone,
            created=events.survivors,
        )
        matches.append(record)
    return PassResult(tuple(matches), tuple(refusals))


def _prepared(q: object, layer: str | None) -> Tensor | str:
    """Return the fake value of the prepared query, or why there can be none."""
    value = value_of(q) if isinstance(q, fx.Node) else None
    if not isinstance(value, Tensor):
        return "it has no query to prepare"
    try:
        with fake_mode_of(value):
            return _PREP.default(value, layer)
    except MlalabError as error:
        return str(error)


MLADecodeQPrepLiftPass = GraphFusion(
    name="MLADecodeQPrepLiftPass",
    note="The decode query's preparation leaves the attention op and becomes a node.",
    flags=("fuse_aiter_qk_rope_kvcache_mla",),
    max_tokens="aiter_qk_rope_kvcache_fusion_max_token_num",
    decode_only=True,
    serves="mla",
    run=lift,
)
