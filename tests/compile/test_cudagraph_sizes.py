"""Capture sizes, against lists written down from vLLM's rule by hand."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlalab.compile.cudagraph_sizes import capture_sizes


@pytest.mark.parametrize(
    ("limits", "decode", "mixed"),
    [
        ((1, 0, 8192), (1,), (1, 2)),
        ((1, 0, 1), (1,), (1,)),
        ((3, 0, 8192), (1, 2), (1, 2, 4)),
        ((8, 0, 8192), (1, 2, 4, 8), (1, 2, 4, 8, 16)),
        ((8, 0, 8), (1, 2, 4, 8), (1, 2, 4, 8)),
        # Whole requests of 3 tokens: 1 and 2 become 3, 4 becomes 6, 8 becomes 9, 16 is too many.
        ((3, 2, 8192), (3, 6, 9), (3, 6, 9)),
        # The list ends at 4, so that 6 is too many though twice the bound.
        ((1, 2, 8192), (3,), (3,)),
        # One request is more than the largest batch.
        ((4, 7, 4), (), ()),
    ],
)
def test_small_settings(limits, decode, mixed):
    assert capture_sizes(*limits) == (decode, mixed)


def test_a_server_of_256_sequences():
    decode, mixed = capture_sizes(256, 0, 8192)
    assert mixed[:5] == (1, 2, 4, 8, 16)
    assert mixed[-2:] == (496, 512)
    assert {b - a for a, b in itertools.pairwise(mixed[3:])} == {8, 16}
    assert decode == tuple(size for size in mixed if size <= 256)
    assert len(mixed) == 3 + 31 + 17


@given(st.integers(1, 600), st.integers(0, 9), st.integers(1, 9000))
def test_every_size_is_whole_requests_within_every_limit(seqs, speculative, batched):
    decode, mixed = capture_sizes(seqs, speculative, batched)
    query_len = 1 + speculative
    assert set(decode) <= set(mixed)
    assert list(mixed) == sorted(set(mixed))
    assert all(size % query_len == 0 and size <= min(batched, 512) for size in mixed)
    assert all(query_len <= size <= seqs * query_len for size in decode)
