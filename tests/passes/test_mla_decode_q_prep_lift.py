"""Lifting the preparation: a node per attention of a decode-only graph, and then no more."""

from __future__ import annotations

import contextlib

import pytest
import torch

from mlalab.compile.config import PassConfig
from mlalab.context import ForwardContext, forward_context, make_batch
from mlalab.errors import InputError
from mlalab.graphs import value_of
from mlalab.lab import record
from mlalab.passes.attention import attentions, change_arguments
from mlalab.passes.driver import verify
from mlalab.passes.fusion import CleanUp, PassResult
from mlalab.passes.mla_decode_q_prep_lift import MLADecodeQPrepLiftPass
from mlalab.passes.pipeline import PIPELINE
from mlalab.workbench import BLOCK_SIZE
from tests.passes.models import chain, fuse, stand, targets

PREP = "mlalab.mla_decode_q_prep"
ON = PassConfig(fuse_aiter_qk_rope_kvcache_mla=True)
ALONE = [pass_ for pass_ in PIPELINE if "Aiter" not in pass_.name]


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_each_attention_gets_one(dynamic, kv_cache_dtype):
    bench = stand(chain, 3, dtype=torch.bfloat16, kv_cache_dtype=kv_cache_dtype)
    trace = fuse(bench, config=ON, passes=ALONE, dynamic=dynamic)
    layers = [layer.layer_name for layer in bench.layers]
    assert [match.layer for match in trace[MLADecodeQPrepLiftPass.name].matches] == layers
    assert targets(trace).count(PREP) == 3
    made = [node for node in trace[MLADecodeQPrepLiftPass.name].nodes if node.target == PREP]
    assert {node.dtype for node in made} == {
        "float8_e4m3fn" if kv_cache_dtype == "fp8" else "bfloat16"
    }
    assert [node.layer for node in made] == layers
    assert all(node.source for node in made)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ({"config": PassConfig()}, "disabled"),
        ({"config": ON, "decode_only": False}, "not decode only"),
        ({"config": ON}, "applied"),
    ],
)
def test_gates(arguments, status):
    assert record(stand(chain), **arguments).status_of(MLADecodeQPrepLiftPass.name) == status


def test_the_largest_range_is_respected_and_none_means_any():
    for limit, status in ((4, "out of range"), (5, "applied"), (None, "applied")):
        config = PassConfig(
            fuse_aiter_qk_rope_kvcache_mla=True, aiter_qk_rope_kvcache_fusion_max_token_num=limit
        )
        assert record(stand(chain), config=config).status_of(MLADecodeQPrepLiftPass.name) == status


def test_by_default_the_batch_decides_whether_a_graph_is_decode_only():
    bench = stand(chain)
    for lengths, decodes, status in (([2, 2, 1], 3, "not decode only"), ([5], 1, "applied")):
        bench.metadata = make_batch(lengths, [1] * len(lengths), num_decodes=decodes, block_size=16)
        bench.slot_mapping = bench.metadata.slot_mapping(BLOCK_SIZE)
        assert record(bench, config=ON).status_of(MLADecodeQPrepLiftPass.name) == status


def lifted_by_hand(prepare=lambda node: None, layers=None):
    """Lift in a graph whose attention was first changed; returns result and graph texts."""
    bench, kept = stand(chain), []
    known = {layer.layer_name: layer for layer in bench.layers} if layers is None else layers

    def run(graph):
        ((node, _),) = attentions(graph)
        prepare(node)
        texts = [str(graph)]
        with forward_context(ForwardContext(layers=known)):
            results = [MLADecodeQPrepLiftPass.apply(graph)]
            texts.append(str(graph))
            results.append(MLADecodeQPrepLiftPass.apply(graph))
        texts.append(str(graph))
        verify(graph, MLADecodeQPrepLiftPass.name)
        ((_, arguments),) = attentions(graph)
        kept.append((results, texts, arguments, value_of(node)))
        return PassResult()

    passes = [CleanUp(name="by hand", note="", run=run)]
    with contextlib.suppress(InputError):  # a graph need not run to be looked at
        record(bench, passes=passes, keep_graphs=False)
    return kept[0]


def test_again_it_changes_nothing():
    (first, second), texts, arguments, _ = lifted_by_hand()
    assert len(first.matches) == 1
    assert second == PassResult()
    assert texts[0] != texts[1] == texts[2]
    assert value_of(arguments["q_prepped"]).shape == (5, 4, 80)


def test_an_unknown_layer_is_refused():
    (result, _), texts, _, _ = lifted_by_hand(layers={})
    assert texts[0] == texts[1]
    assert "no layer 'model.layers.0.self_attn'" in result.refusals[0].reason


def test_an_attention_without_query_is_refused():
    (result, _), texts, _, _ = lifted_by_hand(lambda node: change_arguments(node, q=None))
    assert texts[0] == texts[1]
    assert [refusal.reason for refusal in result.refusals] == ["it has no query to prepare"]
