"""Time the paged decode attention on a GPU, beside a copy of as many bytes as its cache holds.

Run as `python benchmarks/decode_attention.py`. Each cell is one CUDA graph over three layers with
caches of their own; the copy is timed in the same run. Prints a table, asserts nothing about times.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mlalab.bench import timing
from mlalab.bench.report import machine
from mlalab_kernels.mla_decode_attention.triton_kernel import mla_decode_attention_of_batch

DEVICE = torch.device("cuda")
BLOCK_SIZE, L, R = 64, 512, 64
LAYERS, REPLAYS = 3, 12
BATCHES = ((32, 4096), (128, 1024))


def cell(dtype: torch.dtype, heads: int, requests: int, length: int) -> str:
    """Return one line of the table."""
    query_TNC = torch.randn(requests, heads, L + R, device=DEVICE).to(dtype)
    blocks = requests * length // BLOCK_SIZE
    caches = [
        torch.randn(blocks, BLOCK_SIZE, L + R, device=DEVICE, dtype=torch.bfloat16).to(dtype)
        for _ in range(LAYERS)
    ]
    table = torch.randperm(blocks, device=DEVICE).view(requests, -1).int()
    starts = torch.arange(requests + 1, device=DEVICE, dtype=torch.int32)
    lens, one = torch.full_like(starts[1:], length), torch.ones(1, device=DEVICE)
    steps = [
        functools.partial(
            mla_decode_attention_of_batch,
            *(query_TNC, cache, table, starts, lens, 1, length, (L + R) ** -0.5, L, one, one),
        )
        for cache in caches
    ]
    num_bytes = caches[0].nbytes
    work = {"ours": timing.capture(steps)}
    for name, copy in timing.copies_of(num_bytes, DEVICE).items():
        work[name] = timing.capture([copy] * LAYERS)
    taken = timing.measure(work, REPLAYS)
    ours, copy = taken["ours"], min(taken["node"].median, taken["kernel"].median)
    flops = 2 * requests * length * heads * (2 * L + R)
    return (
        f"{str(dtype).removeprefix('torch.'):>14} {heads:4} {requests:5} x {length} "
        f"{ours.median:8.1f} ±{(ours.high - ours.low) / 2:.1f} us "
        f"{copy / ours.median:6.2f} of a copy's rate {flops / ours.median / 1e6:6.0f} TFLOP/s"
    )


if __name__ == "__main__":
    print(", ".join(f"{name} {value}" for name, value in machine(DEVICE).items()))
    for dtype in (torch.bfloat16, torch.float8_e4m3fn):
        for heads in (16, 128):
            for batch in BATCHES:
                print(cell(dtype, heads, *batch), flush=True)
