"""Every pass on random models: each is equal to what it was before, or is left alone with a reason.

More seeds: `python benchmarks/fuzz_campaign.py`.
"""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

from mlalab.graphs import aten
from mlalab.passes import columns, matching, mla_rope_kvcache_cat
from mlalab.passes import rope_kvcache as gqa
from mlalab.passes.fix_functionalization import Rewrite
from mlalab.passes.pipeline import PIPELINE
from mlalab.passes.placing import Place
from tests.passes.fuzz_harness import run_seed

CHUNK = 100
CHUNKS = range(0, 500, CHUNK)
FUSIONS = (
    *("MLARoPEKVCacheCatFusionPass", "RopeKVCacheFusionPass", "MLADecodeQPrepLiftPass"),
    *("MLAAiterQkRopeKVCacheFusionPass", "FixFunctionalizationPass"),
)
REASONS = (
    *("MLARoPEKVCacheCatFusionPass: expected", "RopeKVCacheFusionPass: expected"),
    *("not from all of one rotated query", "no query is prepared from its rotation alone"),
)
"""Parts of reasons that every chunk must meet."""


RARE = {
    "its input … depends on a result, so fusing would close a cycle": 17,
    "still reads the old value": 7,
    "it overlaps the op's argument": 19,
    "is passed twice": 12,
}
"""Part of a reason → a seed of the first chunk that meets it."""


@pytest.mark.parametrize("start", CHUNKS)
def test_random_models_keep_their_meaning(start):
    problems, matches, refusals, rare = [], Counter(), Counter(), set()
    for seed in range(start, start + CHUNK):
        outcome = run_seed(seed)
        problems += [f"seed {seed}: {problem}" for problem in outcome.problems]
        matches += outcome.matches
        refusals += outcome.refusals
        rare |= {
            part
            for part in RARE
            if RARE[part] == seed and any(part in reason for reason in outcome.refusals)
        }
    assert problems == []
    assert all(matches[name] for name in FUSIONS), matches
    assert all(any(part in reason for reason in refusals) for part in REASONS), refusals
    assert rare == (set(RARE) if start == 0 else set())


def anywhere(monkeypatch):
    """A replacement may stand wherever its match was."""
    place_of = matching.place_of

    def accepting(taken, anchor, inputs, writes):
        place = place_of(taken, anchor, inputs, writes)
        return place if isinstance(place, Place) else Place(max(inputs), ())

    monkeypatch.setattr(matching, "place_of", accepting)


def through_products(monkeypatch):
    """A query that was scaled after RoPE passes for the rotated query."""
    rule = lambda node: columns._whole(node.args[0])  # noqa: E731
    monkeypatch.setitem(columns._RULES, aten.mul.Tensor, rule)


def always_in_place(monkeypatch):
    """Every argument is written in place, whoever still reads its old value."""
    monkeypatch.setattr(Rewrite, "_unsafe", lambda *_: None)


DAMAGE = {anywhere: range(17, 20), through_products: range(20, 23), always_in_place: range(7, 10)}
"""What is broken → seeds of which one must fail; as it is none does, by the test above."""


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_broken_pass_is_found(damage, monkeypatch):
    damage(monkeypatch)
    assert any(run_seed(seed).problems for seed in DAMAGE[damage])


def mispaired(pass_, replacement_with):
    variants = tuple(
        dataclasses.replace(v, replacement=replacement_with("gptj" in v.name, True))
        for v in pass_.variants
    )
    return dataclasses.replace(pass_, variants=variants)


@pytest.mark.parametrize(
    ("pass_", "module", "first"),
    [
        (mla_rope_kvcache_cat.MLARoPEKVCacheCatFusionPass, mla_rope_kvcache_cat, 0),
        (gqa.RopeKVCacheFusionPass, gqa, 6),
    ],
    ids=["mla", "gqa"],
)
def test_a_wrong_replacement_is_found(pass_, module, first):
    wrong = mispaired(pass_, module.replacement_with)
    passes = [wrong if p is pass_ else p for p in PIPELINE]
    assert any(run_seed(seed, passes).problems for seed in range(first, first + 4))
