"""Flags: what the level decides, what rules take back or add, and what is never done silently."""

import dataclasses
import itertools
import logging
import warnings

import pytest

from mlalab import env, kernels
from mlalab.compile.config import (
    FLAGS,
    FUSION_FLAGS,
    NUMBERS,
    Facts,
    PassConfig,
    config_of,
    resolve,
)
from mlalab.errors import ConfigError, PassWarning

CAT, AITER, GQA = (
    "fuse_rope_kvcache_cat_mla",
    "fuse_aiter_qk_rope_kvcache_mla",
    "fuse_rope_kvcache",
)


@pytest.fixture
def with_aiter(monkeypatch):
    """A machine on which AITER serves every op."""
    monkeypatch.setattr(kernels, "probe_aiter", lambda: env.Availability(True, "ready"))
    table = {op: {**served, "aiter": None} for op, served in kernels._TABLE.items()}
    monkeypatch.setattr(kernels, "_TABLE", table)


def flags_of(config):
    return {name for name in FLAGS if getattr(config, name)}


@pytest.mark.parametrize(
    ("level", "on"),
    [
        ("O0", set()),
        ("O1", {"eliminate_noops"}),
        ("O2", {"eliminate_noops", CAT}),
        ("O3", {"eliminate_noops", CAT}),
    ],
)
def test_levels_hold_the_defaults_of_vllm(level, on):
    assert flags_of(config_of(level)) == on


@pytest.mark.parametrize(
    ("level", "custom_op", "on"),
    [("O2", True, True), ("O3", True, True), ("O2", False, False), ("O1", True, False)],
)
def test_rope_kvcache_is_on_where_aiter_and_the_custom_op_are(level, custom_op, on, with_aiter):
    facts = Facts(rope_custom_op=custom_op)
    assert resolve(PassConfig(), level, facts).fuse_rope_kvcache is on


def test_another_provider_than_aiter_leaves_rope_kvcache_to_the_user(with_aiter):
    facts = Facts(provider="reference", rope_custom_op=True)
    assert resolve(PassConfig(), "O2", facts).fuse_rope_kvcache is False


def test_unknown_levels_and_providers_are_refused():
    with pytest.raises(ConfigError, match=r"O4.*O0, O1, O2, O3"):
        config_of("O4")
    with pytest.raises(ConfigError, match=r"provider must be one of auto, aiter.*'rocm'"):
        resolve(PassConfig(), "O2", Facts(provider="rocm"))


@pytest.mark.parametrize("level", ["O0", "O1", "O2", "O3"])
@pytest.mark.parametrize("values", [*itertools.product([True, False, None], repeat=3)])
def test_what_is_set_is_kept_or_taken_back_aloud(level, values, caplog):
    given = dict(zip(FUSION_FLAGS, values, strict=True))
    caplog.set_level(logging.INFO, logger="mlalab")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = resolve(PassConfig(**given), level)
    said = " ".join([str(w.message) for w in caught] + caplog.messages)
    for name, value in given.items():
        if value is False:
            assert getattr(config, name) is False
        elif value is True and getattr(config, name) is False:
            assert f"{name} is switched off" in said
        elif value is None and getattr(config, name) != getattr(config_of(level), name):
            assert f"switches {name} on" in said
    assert not (getattr(config, AITER) and not getattr(config, CAT))


def test_a_prerequisite_is_switched_on_with_a_log_line(caplog):
    caplog.set_level(logging.INFO, logger="mlalab")
    config = resolve(PassConfig(fuse_aiter_qk_rope_kvcache_mla=True), "O0")
    assert flags_of(config) == {AITER, CAT}
    assert f"{AITER} switches {CAT} on" in caplog.text


def test_a_prerequisite_that_is_set_to_false_stays_so():
    asked = PassConfig(fuse_aiter_qk_rope_kvcache_mla=True, fuse_rope_kvcache_cat_mla=False)
    with pytest.warns(PassWarning, match=rf"{AITER} is switched off.*{CAT}.*set to False"):
        config = resolve(asked)
    assert not flags_of(config) & {AITER, CAT}


@pytest.mark.parametrize("name", FUSION_FLAGS)
def test_a_provider_that_is_missing_switches_its_fusions_off(name):
    given = dict.fromkeys(FUSION_FLAGS, False)
    with pytest.warns(PassWarning, match=rf"{name} is switched off: aiter cannot serve"):
        config = resolve(PassConfig(**{**given, name: True}), "O2", Facts(provider="aiter"))
    assert not getattr(config, name)


def test_without_eliminate_noops_it_says_that_patterns_may_miss(caplog):
    caplog.set_level(logging.INFO, logger="mlalab")
    resolve(PassConfig(eliminate_noops=False))
    assert "eliminate_noops is off" in caplog.text


@pytest.mark.parametrize("level", ["O0", "O2"])
def test_resolving_twice_changes_nothing(level):
    once = resolve(PassConfig(fuse_rope_kvcache=True), level)
    assert resolve(once, "O3") == once


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("value", [1, 0, "yes"])
def test_flags_are_validated_by_name(name, value):
    with pytest.raises(ConfigError, match=rf"^{name} must be True, False or None, got"):
        PassConfig(**{name: value})


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [0, -1, 2.0, "8", True])
def test_numbers_are_validated_by_name(name, value):
    with pytest.raises(ConfigError, match=rf"^{name} must be a positive integer"):
        PassConfig(**{name: value})


def test_only_the_derived_bound_may_be_left_open():
    assert PassConfig(aiter_qk_rope_kvcache_fusion_max_token_num=None)
    with pytest.raises(ConfigError, match="rope_kvcache_fusion_max_token_num"):
        PassConfig(rope_kvcache_fusion_max_token_num=None)


def test_every_field_is_a_flag_or_a_number():
    assert {f.name for f in dataclasses.fields(PassConfig)} == {*FLAGS, *NUMBERS}
