"""The RoPE + cache-write fusion itself: its variants, its replacement, its contract."""

from __future__ import annotations

import pytest
import torch
from torch import fx
from torch._subclasses import FakeTensorMode

from mlalab.compile.config import PassConfig
from mlalab.errors import InputError
from mlalab.graphs import wrapped_op
from mlalab.passes import tracing
from mlalab.passes.driver import verify
from mlalab.passes.matching import blind_pattern
from mlalab.passes.mla_rope_kvcache_cat import MLARoPEKVCacheCatFusionPass, replacement_with
from tests.passes.models import FUSED, FUSION, chain, fuse, shape_of, stand
from tests.passes.mutants import LAYER, lowered, pattern_of, run, tensors_of

PASS = MLARoPEKVCacheCatFusionPass
VARIANTS = {variant.name: variant for variant in PASS.variants}


def traced(function, tensors):
    with FakeTensorMode() as mode:
        return tracing.trace(function, [mode.from_tensor(x) for x in tensors], PASS.wildcards)


def test_names_tell_variants_apart():
    assert len(VARIANTS) == len(PASS.variants) == 44


@pytest.mark.parametrize("name", VARIANTS)
def test_every_form_is_matched_by_its_own_variant_and_computes_the_same(name):
    variant = VARIANTS[name]
    function, tensors = pattern_of(variant), tensors_of(variant)
    gm = traced(lambda *x, **_: function(*x), tensors)
    expected = run(fx.Interpreter(gm).run, tensors)
    (record,) = PASS.apply(gm.graph).matches
    verify(gm.graph, name)
    assert (record.variant, record.layer) == (name, LAYER)
    found = run(fx.Interpreter(gm).run, tensors)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_no_two_variants_of_the_same_dtypes_have_the_same_graph():
    graphs = {}
    for variant in PASS.variants:
        gm = traced(variant.pattern, tensors_of(variant))
        text = [f"{node} {node.target} {node.args} {node.kwargs}" for node in gm.graph.nodes]
        dtypes = [x.dtype for x in variant.examples()]
        graphs.setdefault(str((dtypes, text)), []).append(variant.name)
    assert [names for names in graphs.values() if len(names) > 1] == []


def test_example_sizes_hide_nothing():
    """No two dimensions that mean different things are alike, and none is 1 by accident."""
    for variant in PASS.variants:
        positions, q_pe, k_pe, kv_c, table, scale = variant.examples()
        sizes = [*q_pe.shape, kv_c.size(1), table.size(0)]
        assert len(set(sizes)) == len(sizes)
        assert min(sizes) > 1
        assert positions.shape == q_pe.shape[:1] == k_pe.shape[:1] == kv_c.shape[:1]
        assert k_pe.shape[1:] == (1, table.size(1))
        assert scale.dim() == 0


def test_the_first_output_is_the_anchor():
    for variant in PASS.variants:
        pattern = blind_pattern(PASS.tensors, PASS.wildcards, variant)
        assert pattern.fns == [PASS.anchor]


def test_keywords_of_the_fused_call_are_in_schema_order():
    """A later pattern on this call compares keywords in order."""
    gm, _ = lowered(pattern_of(VARIANTS["custom op/gptj"]), tensors_of(PASS.variants[0]))
    PASS.apply(gm.graph)
    (call,) = [n for n in gm.graph.nodes if wrapped_op(n)]
    arguments = wrapped_op(call)._schema.arguments
    assert list(call.kwargs) == [argument.name for argument in arguments]


def test_pairing_and_arithmetic_reach_the_fused_call():
    for name, variant in VARIANTS.items():
        gm = traced(variant.replacement, tensors_of(variant))
        (call,) = [n for n in gm.graph.nodes if wrapped_op(n)]
        assert call.kwargs["is_neox"] == ("neox" in name)
        assert call.kwargs["rope_in_fp32"] == ("rounding" not in name)


SHAPES = ((5,), (5, 3, 8), (5, 1, 8), (5, 16), (7, 8), ())
"""What the fused op takes: positions, query, key, latent, table, scale."""
MISFITS = {
    0: [(1,), (5, 1), ()],
    1: [(1, 3, 8), (5, 8), (5, 3, 4), (5, 2, 3, 8)],
    2: [(5, 8), (5, 2, 8), (1, 1, 8), (5, 1, 4)],
    3: [(6, 16), (5, 1, 16), (5,)],
    4: [(7, 4), (8,)],
}


def call_replacement(shapes):
    tensors = [torch.empty(shape, device="meta") for shape in shapes]
    strings = dict.fromkeys(PASS.wildcards, "auto")
    return replacement_with(is_neox=False, rope_in_fp32=True)(*tensors, **strings)


@pytest.mark.parametrize(
    ("place", "shape"), [(place, shape) for place in MISFITS for shape in MISFITS[place]]
)
def test_inputs_that_the_kernel_is_not_made_for_are_refused(place, shape):
    call_replacement(SHAPES)
    with pytest.raises(InputError, match="the fused op takes"):
        call_replacement((*SHAPES[:place], shape, *SHAPES[place + 1 :]))


def test_switched_off_it_leaves_the_graph_alone():
    trace = fuse(stand(chain), config=PassConfig(fuse_rope_kvcache_cat_mla=False))
    assert trace.skipped[FUSION] == "disabled"
    assert FUSED not in [node.target for node in trace[-1].nodes]


def test_a_match_names_what_it_took_and_what_it_made():
    trace = fuse(stand(chain, shape=shape_of("default", True)), dynamic=True)
    (match,) = trace[FUSION].matches
    before = {node.name: node for node in trace.before(FUSION).nodes}
    after = {node.name: node for node in trace[FUSION].nodes}
    assert set(match.matched) <= before.keys()
    assert set(match.created) <= after.keys() - before.keys()
    assert set(match.created) == set(trace[FUSION].created)
    assert set(trace[FUSION].erased) <= set(match.matched)
    assert match.variant == "plain/neox (fp32)"
    (fused,) = [node for node in trace[FUSION].nodes if FUSED in node.target]
    assert fused.name in match.created
    assert fused.layer == match.layer == "model.layers.0.self_attn"
