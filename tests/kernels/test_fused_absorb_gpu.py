"""What only a GPU can show of the one-launch preparation: real sizes, graphs, large offsets."""

from __future__ import annotations

import pytest
import torch

from mlalab_kernels.fused_absorb_qk_rope_concat_and_cache_mla.launch_config import Config
from mlalab_kernels.fused_absorb_qk_rope_concat_and_cache_mla.triton_kernel import (
    fused_absorb_qk_rope_concat_and_cache_mla,
)
from tests.kernels.decode_prep_case import BF16, FN, Step, absorbed_unlike, unlike

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA or ROCm device"),
]
SIZES = (128, 64, 512)
TOKENS = (0, 1, 2, 3, 17, 63, 64, 65, 257, 513, 4096)
FORMATS = [(FN, FN), (BF16, FN), (BF16, BF16)]


def step_of(T, N, query=FN, cache=FN, **more):
    """DeepSeek's sizes, aligned as a model's own tensors are, so that every path is taken."""
    step = Step(T, N, *SIZES, query=query, cache=cache, device="cuda", **more)
    step.q = step.q.contiguous()
    step.w_uk = step.w_uk.contiguous()
    return step


@pytest.mark.parametrize("formats", FORMATS, ids=str)
@pytest.mark.parametrize("N", [1, 2, 7, 8, 16, 64, 128])
def test_every_size(N, formats):
    for T in TOKENS:
        step = step_of(T, N, *formats)
        got = step.run(fused_absorb_qk_rope_concat_and_cache_mla)
        assert not unlike(got, step.expected()), (T, N)


@pytest.mark.parametrize("formats", FORMATS, ids=str)
@pytest.mark.parametrize("T", [1, 8, 64, 257, 512])
def test_random_weights(T, formats):
    """With sums that the order changes: at most 0.01 % of FP8 values differ, each by one step."""
    step = step_of(T, 128, *formats, exact=False)
    got, wanted = step.run(fused_absorb_qk_rope_concat_and_cache_mla), step.expected()
    flipped = absorbed_unlike(got["query"], wanted["query"], step.L)
    assert flipped <= 1e-4
    got["query"], wanted["query"] = (x["query"][..., step.L :] for x in (got, wanted))
    assert not unlike(got, wanted)


@pytest.mark.parametrize("T", [1, 64, 257])
def test_two_runs_are_the_same_bits(T):
    step = step_of(T, 16, exact=False)
    first, second = (step.run(fused_absorb_qk_rope_concat_and_cache_mla) for _ in range(2))
    assert not unlike(first, second)


@pytest.mark.parametrize("T", [1, 8, 64, 257])
def test_a_captured_launch_follows_its_inputs(T):
    """Replays back to back, each beginning before the one before has ended."""
    fresh = step_of(T, 16)
    wanted = fresh.expected()
    step = step_of(T, 16)
    fused = fused_absorb_qk_rope_concat_and_cache_mla
    step.run(fused)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step.run(fused)
        for _ in range(3):
            step.run(fused)
    for tensor in (step.q, step.latent):
        tensor.zero_()
    step.slots.fill_(-1)
    step.positions.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert unlike(captured, wanted)
    for name in ("q", "latent", "slots", "positions"):
        getattr(step, name).copy_(getattr(fresh, name))
    graph.replay()
    assert not unlike(captured, wanted)


def test_offsets_beyond_32_bits():
    """T · N · 576 passes 2³¹ at 29 128 tokens of 128 heads."""
    T = 29_200
    step = step_of(T, 128)
    assert T * 128 * 576 > 2**31
    for config in (None, Config(64, 64, 4, 2, 4, 64)):
        got = step.run(fused_absorb_qk_rope_concat_and_cache_mla, config=config)
        tail = step_of(1, 128)
        for name in ("q", "latent", "slots", "positions"):
            setattr(tail, name, getattr(step, name)[-1:])
        tail.w_uk, tail.cos_sin, tail.num_slots = step.w_uk, step.cos_sin, step.num_slots
        wanted = tail.expected()
        assert not unlike({"q": got["query"][T + 2]}, {"q": wanted["query"][3]})
        del got
