"""Lengths that lie on the device, and that count where they differ from the lists."""

from __future__ import annotations

import torch

from mlalab.kernels import load
from mlalab_kernels.mla_decode_attention.lengths import DeviceLengths

L, R, N = 16, 8, 2


def attend(query_lens, seq_lens, lengths=None):
    generator = torch.Generator().manual_seed(0)
    cache = torch.randn(12, 4, L + R, generator=generator)
    q = torch.randn(5, N, L + R, generator=generator)
    table = torch.arange(12, dtype=torch.int32).view(3, 4)
    one = torch.ones(())
    arguments = (q, cache, table, query_lens, seq_lens, 0.2, L, one, one)
    return load("mla_decode_attention", "reference")(*arguments, lengths=lengths)


def test_they_are_copied_in_one_go():
    starts, lens, changing = DeviceLengths.of((1, 3, 1), (4, 9, 0), torch.device("cpu"))
    assert starts.tolist() == [0, 1, 4, 5] and lens.tolist() == [4, 9, 0] and not changing
    assert starts.dtype == lens.dtype == torch.int32


def test_they_lie_alike_for_any_number_of_requests():
    for requests in range(1, 9):
        starts, lens, _ = DeviceLengths.of([1] * requests, [5] * requests, torch.device("cpu"))
        assert starts.data_ptr() % 16 == lens.data_ptr() % 16 == 0
        assert lens.tolist() == [5] * requests


def test_without_requests_there_is_a_start_only():
    starts, lens, _ = DeviceLengths.of((), (), torch.device("cpu"))
    assert starts.tolist() == [0] and lens.tolist() == []


def test_on_the_device_they_count_and_the_lists_do_not():
    lengths = DeviceLengths.of((2, 1, 2), (5, 1, 8), torch.device("cpu"))
    found = attend((5, 5, 5), (16, 16, 16), lengths)
    for ours, wanted in zip(found, attend((2, 1, 2), (5, 1, 8)), strict=True):
        assert torch.equal(ours, wanted)


def test_a_request_that_only_fills_a_batch_attends_to_nothing():
    lengths = DeviceLengths.of((2, 1, 2), (5, 1, 0), torch.device("cpu"))
    out, lse = attend((2, 1, 2), (16, 16, 16), lengths)
    assert not out[3:].any() and (lse[3:] == -torch.inf).all()
    assert out[:3].any() and out.isfinite().all()
