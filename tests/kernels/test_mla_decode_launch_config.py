"""How the decode attention is cut up: the sum behind the splits, the look-up of tiles."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlalab_kernels.mla_decode_attention.launch_config import (
    MOST_SPLITS,
    Config,
    config_for,
    splits_for,
)

SLOTS = 132
BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn


@pytest.mark.parametrize(
    ("programs", "tiles", "splits"),
    [(1, 0, 1), (1, 1, 1), (32, 64, 4), (128, 64, 1), (132, 64, 1), (8, 256, 16), (1, 4096, 128)],
)
def test_splits_fill_the_device(programs, tiles, splits):
    assert splits_for(programs, tiles, SLOTS) == splits


@given(st.integers(1, 3000), st.integers(0, 3000), st.integers(1, 600))
def test_splits_are_never_empty_nor_too_many(programs, tiles, slots):
    splits = splits_for(programs, tiles, slots)
    assert 1 <= splits <= max(1, min(tiles, MOST_SPLITS))


@pytest.mark.parametrize("heads", [1, 2, 7, 8, 16, 17, 64, 128, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, BF16, FP8], ids=str)
@pytest.mark.parametrize("arch", ["sm_90", "gfx942", "cpu"])
def test_every_device_has_a_configuration(arch, dtype, heads):
    config = config_for(arch, heads, dtype)
    for size in (config.block_h, config.block_s):
        assert size >= 16
        assert size & (size - 1) == 0


def test_an_unknown_device_and_fp32_get_the_plain_configuration():
    assert config_for("gfx942", 16, BF16) == config_for("sm_90", 16, torch.float32) == Config()
    assert config_for("sm_90", 16, BF16) != Config() != config_for("sm_90", 16, FP8)
