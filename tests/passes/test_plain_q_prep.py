"""An exposed layer's query preparation: recognised when it is the layer's own, and then fused."""

from __future__ import annotations

import pytest
import torch

import mlalab
from mlalab.compile.config import PassConfig
from mlalab.context import make_batch
from mlalab.layers import mla_paths
from mlalab.layers.mla_paths import MLAPaths
from mlalab_kernels.mla_decode_q_prep.reference import mla_decode_q_prep
from tests.passes.models import targets

ON = PassConfig(fuse_aiter_qk_rope_kvcache_mla=True)
LIFT, FUSE = "MLADecodeQPrepLiftPass", "MLAAiterQkRopeKVCacheFusionPass"
FUSED = "mlalab.fused_aiter_qk_rope_kvcache_q_concat_quant_mla"
DECODE = "mlalab.mla_attention_decode"


def trace(metadata=None, layers=1, dynamic=False, tokens=5, **options):
    options = {"dtype": torch.bfloat16, "kv_cache_dtype": "fp8"} | options
    return mlalab.trace(
        "tiny",
        tokens=tokens,
        num_layers=layers,
        options=mlalab.LayerOptions(exposed=True, **options),
        metadata=metadata,
        config=ON,
        dynamic=dynamic,
    )


@pytest.mark.parametrize(
    "case",
    [
        {"dynamic": True},
        {"tokens": 1, "kv_cache_dtype": "auto"},
        {"layers": 2, "dtype": torch.float32},
        {"rope_custom_op": True},
        {"rope_in_fp32": False, "rope_cache_dtype": None, "kv_cache_dtype": "auto"},
    ],
    ids=["any size", "one token", "two layers, fp32", "custom op", "rounding each step"],
)
def test_the_decode_graph_holds_one_op_and_computes_the_same(case):
    result = trace(**case).check()
    assert result.ok
    layers = case.get("layers", 1)
    assert [len(result[name].matches) for name in (LIFT, FUSE)] == [layers, layers]
    names = targets(result)
    assert names.count(FUSED) == names.count(DECODE) == layers
    assert not {"aten.cat", "mlalab.mla_decode_q_prep"} & set(names)


def test_the_match_names_every_node_that_went():
    lifted = trace()[LIFT]
    (match,) = lifted.matches
    assert match.variant == "plain" and set(match.matched) == set(lifted.erased)
    assert {"bmm", "cat"} <= {name.rsplit("_", 1)[0] for name in match.matched}


def test_a_graph_for_any_batch_keeps_its_plain_preparation():
    mixed = make_batch([1, 4], [3, 0], num_decodes=1, block_size=16)
    result = trace(mixed)
    assert result.skipped[LIFT] == "not decode only"
    assert "aten.bmm" in targets(result) and FUSED not in targets(result)


def scaled_twice(q, w_uk, q_scale, dtype):
    return mla_decode_q_prep(q, w_uk, q_scale * 2, dtype)


def in_another_order(q, w_uk, q_scale, dtype):
    return mla_decode_q_prep(q, w_uk, q_scale, torch.float32).to(dtype)


def with_a_copied_weight(q, w_uk, q_scale, dtype):
    return mla_decode_q_prep(q, w_uk + 0, q_scale, dtype)


def with_the_other_half(q, w_uk, q_scale, dtype):
    """W_UV in place of W_UK: in `tiny` it is as large."""
    rows = w_uk.size(1)
    return mla_decode_q_prep(
        q, w_uk.as_strided(w_uk.shape, w_uk.stride(), rows * w_uk.size(2)), q_scale, dtype
    )


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (in_another_order, "not prepared as the layer does it"),
        (scaled_twice, "a q_scale that is not an input of the graph"),
        (with_a_copied_weight, "a w_uk that is not an input of the graph"),
        (with_the_other_half, "a weight that does not lie like the layer's W_UK"),
    ],
)
def test_another_preparation_is_left_alone_and_named(wrong, reason, monkeypatch):
    monkeypatch.setattr(mla_paths, "mla_decode_q_prep", wrong)
    result = trace().check()
    assert result.ok
    (refusal,) = result[LIFT].refusals
    assert reason in refusal.reason and refusal.layer == "model.layers.0.self_attn"
    assert FUSED not in targets(result)


def test_it_is_the_layers_own_code_that_is_recognised():
    assert MLAPaths._decode_query.__globals__["mla_decode_q_prep"] is mla_decode_q_prep
