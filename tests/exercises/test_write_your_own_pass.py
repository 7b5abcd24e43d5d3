"""The solutions pass, and what a learner is likely to try first gets a sentence."""

from __future__ import annotations

import pytest

from mlalab.exercises import norm_cache
from mlalab.exercises.norm_cache import EPS, NAME, examples, norm_and_cache, traced
from mlalab.exercises.write_your_own_pass import other_eps
from mlalab.teach import check


def replacement(eps=EPS, swap=True, detour=None):
    def attempt(latent, weight, k_pe, k_scale, *, layer_name, kv_cache_dtype):
        weight = weight if detour is None else detour(weight)
        results = norm_and_cache(latent, weight, k_pe, eps, k_scale, layer_name, kv_cache_dtype)
        return results[::-1] if swap else results

    return attempt


def single():
    return [x.float() for x in examples()]


@pytest.mark.parametrize(
    ("name", "solution"),
    [
        ("11.replacement", replacement()),
        ("11.variant", single),
        ("11.why", "add_1"),
    ],
)
def test_solutions_pass(name, solution):
    verdict = check(name, solution)
    assert verdict, verdict


@pytest.mark.parametrize(
    ("name", "attempt", "words"),
    [
        ("11.replacement", replacement(swap=False), "the results would be"),
        ("11.replacement", replacement(eps=1e-3), "other bits than before"),
        ("11.replacement", replacement(detour=lambda w: w * 1.01), "other bits than before"),
        ("11.replacement", lambda *tensors, **strings: ..., "blank"),
        ("11.replacement", lambda latent, weight: latent, "stopped with TypeError"),
        ("11.replacement", 3, "A function is expected"),
        ("11.variant", examples, "With a layer in float32: no match, expected prims."),
        ("11.variant", lambda: single()[:2], "stopped with TypeError"),
        ("11.variant", lambda: ..., "blank"),
        ("11.variant", lambda: None, "returns nothing"),
        ("11.variant", lambda: 1 / 0, "ZeroDivisionError"),
        ("11.variant", single(), "A function is expected"),
        ("11.why", "unified_mla_kv_cache_update", "is the anchor"),
        ("11.why", "rsqrt_1", "not where the match failed"),
        ("11.why", 1e-5, "none called 1e-05"),
        ("11.why", ..., "blank"),
    ],
)
def test_wrong_attempts_get_one_sentence(name, attempt, words):
    verdict = check(name, attempt)
    assert not verdict
    assert words in repr(verdict)
    assert repr(verdict).startswith(f"{name}: not yet. ")
    assert "\n" not in repr(verdict)
    assert repr(verdict).endswith((".", "?"))


def test_the_fusion_of_the_exercises_is_right():
    assert traced(norm_cache.fusion(), tokens=1).check().ok
    assert traced(norm_cache.fusion(), other_eps())[NAME].status == "refused"
