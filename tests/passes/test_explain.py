"""Why a pattern did not match: the first node that differs, against the variant that was meant."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mlalab.errors import ConfigError
from mlalab.lab import record
from mlalab.passes.explain import attempt
from mlalab.passes.matching import blind_pattern
from mlalab.passes.mla_rope_kvcache_cat import MLARoPEKVCacheCatFusionPass
from tests.passes import awkward
from tests.passes.models import FUSION, chain, one, shape_of, stand
from tests.passes.mutants import lowered, pattern_of, tensors_of

VARIANTS = {variant.name: variant for variant in MLARoPEKVCacheCatFusionPass.variants}


def neox(**options):
    return {"shape": shape_of("yarn", True), "dtype": torch.bfloat16, **options}


WHY = {
    "extra_op": (awkward.key_scaled, neox()),
    "extra_op_custom": (awkward.key_scaled, neox(rope_custom_op=True)),
    "no_query": (awkward.only_the_cache_is_rotated, {}),
    "exchanged": (awkward.key_rotated_first, {"rope_custom_op": True}),
    "cycle": (awkward.latent_needs_query, {}),
    "half_rotated": (awkward.half_rotated, {}),
}


@pytest.mark.parametrize("case", WHY)
def test_why(case, golden):
    model, options = WHY[case]
    golden(f"why_{case}", record(stand(one(model), **options), keep_graphs=False).why(FUSION))


def test_why_without_rope_names_every_layer_once(golden):
    trace = record(stand(chain, 2, shape=shape_of("none")), keep_graphs=False)
    golden("why_no_rope", trace.why(FUSION))


@pytest.mark.parametrize("name", [n for n in VARIANTS if "2-D" not in n])
def test_the_variant_that_was_meant_is_named(name):
    """One more op between RoPE and the cache: no variant matches even its first node."""
    variant = VARIANTS[name]

    gm, _ = lowered(pattern_of(variant), tensors_of(variant))
    (anchor,) = gm.graph.find_nodes(op="call_function", target=MLARoPEKVCacheCatFusionPass.anchor)
    key = anchor.args[1]
    with gm.graph.inserting_before(anchor):
        doubled = gm.graph.call_function(torch.ops.aten.mul.Tensor, (key, 2))
    doubled.meta["val"] = key.meta["val"]
    anchor.replace_input_with(key, doubled)
    (refusal,) = MLARoPEKVCacheCatFusionPass.apply(gm.graph).refusals
    assert refusal.found == "aten.mul"
    assert refusal.reason.endswith(f"at {doubled.name}")
    # Without conversions the two look alike until dtypes are compared.
    assert refusal.variant == name.replace("(rounding each step)", "(fp32)")


def test_a_wrong_constant_is_told_against_the_right_one():
    variant = VARIANTS["plain/neox (fp32)"]
    gm, _ = lowered(pattern_of(variant), tensors_of(variant))
    split = gm.graph.find_nodes(op="call_function", target=torch.ops.aten.split.Tensor)[0]
    split.args = (split.args[0], 3, split.args[2])
    (refusal,) = MLARoPEKVCacheCatFusionPass.apply(gm.graph).refusals
    assert refusal.expected == "aten.split with 4"
    assert refusal.found == "aten.split with 3"
    assert refusal.variant == variant.name


def test_an_extra_keyword_is_told():
    variant = VARIANTS["plain/neox (fp32)"]
    gm, _ = lowered(pattern_of(variant), tensors_of(variant))
    add = gm.graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor)[0]
    add.kwargs = {"alpha": 2}
    (refusal,) = MLARoPEKVCacheCatFusionPass.apply(gm.graph).refusals
    assert (refusal.expected, refusal.found) == ("aten.add without alpha", "aten.add with alpha=2")


def test_overloads_of_one_op_are_told_apart():
    variant = VARIANTS["plain/neox (fp32)"]
    gm, _ = lowered(pattern_of(variant), tensors_of(variant))
    add = gm.graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor)[0]
    add.target, add.args = torch.ops.aten.add.Scalar, (add.args[0], 1)
    (refusal,) = MLARoPEKVCacheCatFusionPass.apply(gm.graph).refusals
    assert (refusal.expected, refusal.found) == ("aten.add.Tensor", "aten.add.Scalar")


def test_an_attempt_that_succeeds_is_the_match():
    fusion, variant = MLARoPEKVCacheCatFusionPass, VARIANTS["custom op/neox"]
    gm, _ = lowered(pattern_of(variant), tensors_of(variant))
    (anchor,) = gm.graph.find_nodes(op="call_function", target=fusion.anchor)
    pattern = blind_pattern(fusion.tensors, fusion.wildcards, variant)
    assert set(attempt(pattern, anchor, variant.name).kwargs) == {
        *fusion.tensors,
        *fusion.wildcards,
    }


def test_two_variants_of_one_name_are_refused():
    fusion = MLARoPEKVCacheCatFusionPass
    with pytest.raises(ConfigError, match=f"Two variants of {fusion.name} are called"):
        dataclasses.replace(fusion, variants=fusion.variants[:1] * 2)
