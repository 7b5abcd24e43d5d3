"""Every Triton kernel once on a GPU, small and large, for a checker of memory to watch.

Run as `compute-sanitizer --tool memcheck python benchmarks/sanitize.py`, likewise with `racecheck`
and `initcheck`; `PYTORCH_NO_CUDA_MEMORY_CACHING=1` makes every tensor an allocation of its own.
Each result is compared with its reference as well, unless `--alone` is given: for `initcheck`,
which otherwise reports libraries that the references call.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mlalab_kernels.fused_absorb_qk_rope_concat_and_cache_mla.triton_kernel import (
    fused_absorb_qk_rope_concat_and_cache_mla,
)
from mlalab_kernels.mla_decode_attention import reference as attention
from mlalab_kernels.mla_decode_attention.triton_kernel import mla_decode_attention
from mlalab_kernels.rotary_embedding import reference, triton_kernel
from tests.kernels import decode_prep_case, rows_case, test_row_kernels

DEVICE = torch.device("cuda")
ROWS = ({"T": 3}, {"T": 33, "N": 20, "P": 128, "L": 512, "R": 64, "G": 4, "is_neox": True})
ALONE = "--alone" in sys.argv[1:]
STEPS = ((1, 3), (17, 16), (65, 3), (130, 16))


def rows() -> None:
    """The ops that rotate and write rows."""
    for op in test_row_kernels.ALL:
        for size in ROWS:
            rows_case.agree(op, getattr(rows_case.Case(**size), op)(), DEVICE)
        print(op, flush=True)


def steps() -> None:
    """The whole preparation, by pointer and by descriptor."""
    for T, N in STEPS:
        step = decode_prep_case.Step(T, N, 128, 64, 512, device=DEVICE)
        step.q, step.w_uk = step.q.contiguous(), step.w_uk.contiguous()
        for more in ({}, {"rotated": True}):
            got = step.run(fused_absorb_qk_rope_concat_and_cache_mla, **more)
            assert ALONE or not decode_prep_case.unlike(got, step.expected(**more))
    print("fused_absorb_qk_rope_concat_and_cache_mla", flush=True)


def rotary() -> None:
    """RoPE alone, in place."""
    for T, N in STEPS:
        query, key = (torch.randn(T, n, 192, device=DEVICE).bfloat16() for n in (N, 1))
        positions, table = torch.arange(T, device=DEVICE), torch.randn(T, 64, device=DEVICE)
        results = []
        for module in (triton_kernel,) if ALONE else (reference, triton_kernel):
            tensors = query.clone(), key.clone()
            module.rotary_embedding(positions, *tensors, 192, table, False)
            results.append(tensors)
        assert ALONE or all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    print("rotary_embedding", flush=True)


def attend() -> None:
    """Decode attention, split and not, over a cache of either kind."""
    one = torch.ones(1, device=DEVICE)
    for heads, seq_lens in ((16, [70, 0, 300]), (3, [1, 5, 64])):
        for stored in (torch.bfloat16, torch.float8_e4m3fn):
            query = torch.randn(3, heads, 576, device=DEVICE).to(stored)
            cache = torch.randn(16, 64, 576, device=DEVICE).to(stored)
            blocks = torch.randperm(16, device=DEVICE)[:15].view(3, 5).int()
            query_lens = [min(1, n) for n in seq_lens]
            given = (blocks, query_lens, seq_lens, 0.07, 512, one, one)
            query = query[: sum(query_lens)]
            ours = mla_decode_attention(query, cache, *given)
            if ALONE:
                continue
            theirs = attention.mla_decode_attention(query, cache, *given)
            for got, wanted in zip(ours, theirs, strict=True):
                torch.testing.assert_close(got, wanted, rtol=2e-2, atol=2e-2)
    print("mla_decode_attention", flush=True)


if __name__ == "__main__":
    rows()
    steps()
    rotary()
    attend()
    torch.cuda.synchronize()
