"""Compile ranges and the decode bound: where they are cut, and derived afresh each time."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlalab.compile.config import PassConfig
from mlalab.compile.ranges import CompileRange, decode_bound, ranges_up_to
from mlalab.compile.settings import CompileConfig
from mlalab.errors import ConfigError
from mlalab.passes.pipeline import PIPELINE

FUSED = PassConfig(fuse_aiter_qk_rope_kvcache_mla=True)
BOUND = "aiter_qk_rope_kvcache_fusion_max_token_num"


def ends(config, passes=PIPELINE):
    return [served.end for served in config.ranges(config.passes_of(), passes)]


@given(end=st.integers(1, 40), points=st.lists(st.integers(-3, 50)))
def test_ranges_cover_every_count_once(end, points):
    ranges = ranges_up_to(end, points)
    assert [n for r in ranges for n in range(r.start, r.end + 1)] == [*range(1, end + 1)]
    assert {r.end for r in ranges} == {end, *(p for p in points if 1 <= p < end)}


@pytest.mark.parametrize(("seqs", "spec", "bound"), [(256, 0, 256), (64, 3, 256), (1, 0, 1)])
def test_the_decode_bound_is_that_of_the_cuda_graphs(seqs, spec, bound):
    assert decode_bound(seqs, spec) == bound
    config = CompileConfig(max_num_seqs=seqs, num_speculative_tokens=spec, pass_config=FUSED)
    assert getattr(config.passes_of(), BOUND) == bound
    assert ends(config) == [bound, 8192]


def test_an_explicit_bound_is_honoured():
    asked = dataclasses.replace(FUSED, **{BOUND: 48})
    config = CompileConfig(max_num_seqs=256, pass_config=asked)
    assert ends(config) == [48, 8192]


def test_the_derived_bound_is_never_taken_for_an_explicit_one():
    config = CompileConfig(max_num_seqs=256, pass_config=FUSED)
    assert ends(config) == ends(config) == [256, 8192]
    assert getattr(config.pass_config, BOUND) is None
    smaller = dataclasses.replace(config, max_num_seqs=16)
    assert ends(smaller) == [16, 8192]


def test_a_bound_beyond_the_largest_batch_cuts_nothing():
    config = CompileConfig(max_num_seqs=256, max_num_batched_tokens=128, pass_config=FUSED)
    assert ends(config) == [128]
    assert getattr(config.passes_of(), BOUND) == 256


def test_only_passes_that_are_on_cut_ranges():
    assert ends(CompileConfig()) == [8192]
    both = dataclasses.replace(FUSED, fuse_rope_kvcache=True, **{BOUND: 64})
    assert ends(CompileConfig(pass_config=both)) == [64, 256, 8192]


def test_endpoints_are_sorted_and_not_repeated():
    points = (32, 8, 32, 8192)
    config = CompileConfig(max_num_seqs=32, compile_ranges_endpoints=points, pass_config=FUSED)
    assert ends(config) == [8, 32, 8192]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_num_batched_tokens", 0),
        ("max_num_seqs", 0),
        ("num_speculative_tokens", -1),
        ("max_num_seqs", 2.0),
        ("compile_sizes", (8193,)),
        ("compile_sizes", (-1,)),
        ("compile_ranges_endpoints", (0,)),
        ("compile_ranges_endpoints", ("8",)),
    ],
)
def test_nonsense_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=rf"^{name} must"):
        CompileConfig(**{name: value})


def test_ranges_refuse_nonsense():
    assert str(CompileRange(1, 8)) == "1..8"
    assert 8 in CompileRange(1, 8) and 9 not in CompileRange(1, 8)
    for start, end in ((3, 2), (-1, 2)):
        with pytest.raises(ConfigError):
            CompileRange(start, end)
