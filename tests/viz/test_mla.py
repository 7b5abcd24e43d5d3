"""What a token costs in a cache, by kind of attention."""

from __future__ import annotations

import pytest

from mlalab.errors import ConfigError
from mlalab.shapes import preset
from mlalab.viz.mla import cached_bytes, cached_bytes_figure


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Heads × (192 + 128) numbers of 2 bytes; 8 such heads; 512 + 64 numbers.
        ("deepseek-v3", {"MHA": 128 * 320 * 2, "GQA": 8 * 320 * 2, "MLA": 576 * 2}),
        ("deepseek-v2-lite", {"MHA": 16 * 320 * 2, "GQA": 8 * 320 * 2, "MLA": 576 * 2}),
        ("llama-3-8b", {"MHA": 32 * 256 * 2, "GQA": 8 * 256 * 2}),
        # Fewer heads than groups: nothing to share.
        ("tiny", {"MHA": 4 * 80 * 2, "GQA": 4 * 80 * 2, "MLA": 80 * 2}),
    ],
)
def test_bytes_of_a_token(name, expected):
    assert cached_bytes(preset(name)) == expected


def test_fp8_halves_everything():
    shape = preset("kimi-k2")
    assert {k: 2 * v for k, v in cached_bytes(shape, 1).items()} == cached_bytes(shape)


def test_the_cached_width_is_that_of_the_layer():
    assert preset("llama-3-8b").cache_dim == 2 * preset("llama-3-8b").kv_size


def test_figure_states_the_finding_and_prints_the_same_numbers():
    figure = cached_bytes_figure(["llama-3-8b", "deepseek-v2-lite", "deepseek-v3"])
    assert "deepseek-v3 would keep 81,920 bytes" in figure.alt
    assert "71 times less" in figure.alt
    assert figure.text.splitlines()[1].split() == ["llama-3-8b", "16384", "4096", "-"]
    assert figure.text.splitlines()[3].split() == ["deepseek-v3", "81920", "5120", "1152"]
    for drawn in ("MHA 81,920", "GQA 4,096", "MLA 1,152", "deepseek-v2-lite"):
        assert drawn in figure.svg
    assert figure.svg.count("MLA 1,152") == 2


@pytest.mark.parametrize("names", [["nonsense"], ["llama-3-8b"], []])
def test_what_cannot_be_drawn_is_an_error(names):
    with pytest.raises(ConfigError, match="deepseek-v3"):
        cached_bytes_figure(names)
