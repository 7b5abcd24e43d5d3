"""A wrapped method is a plain call in a layer that hides it, and an op in one that shows it."""

import torch

from mlalab.context import forward_context
from mlalab.ops.exposed import inlined
from tests.ops.cases import SHAPE, context_of, make_layer


def test_only_an_exposed_layer_calls_the_op(monkeypatch):
    seen = []
    op = torch.ops.mlalab.mla_split_batch
    monkeypatch.setattr(op, "default", lambda *arguments: seen.append(arguments) or 1)
    kv_c = torch.randn(4, SHAPE.kv_lora_rank)
    for exposed, expected in [(False, 0), (True, 1)]:
        layer = make_layer(exposed=exposed)
        with forward_context(context_of(layer, 4)):
            assert layer.split_batch(kv_c) == expected
            assert inlined(layer, "split_batch")(kv_c) == 0
    assert seen == [(kv_c, layer.layer_name)]


def test_dependencies_reach_the_op_alone(monkeypatch):
    seen = {}
    op = torch.ops.mlalab.mla_attention_decode
    monkeypatch.setattr(op, "default", lambda *_, **dependencies: seen.update(dependencies))
    dummy = torch.empty(0)
    for exposed in (False, True):
        layer = make_layer(exposed=exposed)
        q = torch.zeros(0, SHAPE.num_heads, SHAPE.cache_dim)
        with forward_context(context_of(layer, 4, metadata=None)):
            layer.attend_decode(q, kv_cache_dummy_dep=dummy)
        assert (seen.get("kv_cache_dummy_dep") is dummy) == exposed
