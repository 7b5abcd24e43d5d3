"""What only a GPU can show of the decode attention: graphs, long sequences, large offsets."""

from __future__ import annotations

import pytest
import torch

from mlalab_kernels.mla_decode_attention import reference
from mlalab_kernels.mla_decode_attention.triton_kernel import mla_decode_attention_of_batch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA or ROCm device"),
]
L, R, BLOCK, SCALE = 512, 64, 64, 0.07
BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
TOLERANCE = {BF16: 1.5e-2, FP8: 2e-3}


class Batch:
    """One new token for each request, lengths on the device."""

    def __init__(self, seq_lens, N, dtype, blocks=None):
        used = [-(-n // BLOCK) for n in seq_lens]
        blocks = blocks or sum(used) + 1
        self.seq_lens, self.N = seq_lens, N
        self.scale = torch.tensor(0.05, device="cuda")
        self.kv = torch.zeros(blocks, BLOCK, L + R, dtype=dtype, device="cuda")
        # From the end, so that a large cache is used where offsets are large.
        places = iter(range(blocks - 1, -1, -1))
        self.table = torch.full((len(used), max(used)), -1, dtype=torch.int32, device="cuda")
        for request, count in enumerate(used):
            for i in range(count):
                place = next(places)
                self.table[request, i] = place
                self.kv[place] = torch.randn(BLOCK, L + R, device="cuda").to(dtype)
        self.q = torch.randn(len(used), N, L + R, device="cuda").to(dtype)
        self.starts = torch.arange(len(used) + 1, dtype=torch.int32, device="cuda")
        self.lens = torch.tensor(seq_lens, dtype=torch.int32, device="cuda")

    def run(self, max_seq_len=None):
        return mla_decode_attention_of_batch(
            *(self.q, self.kv, self.table, self.starts, self.lens, 1),
            *(max_seq_len or max(self.seq_lens), SCALE, L, self.scale, self.scale),
        )

    def expected(self):
        return reference.mla_decode_attention(
            *(self.q, self.kv, self.table, [1] * len(self.seq_lens), self.seq_lens),
            *(SCALE, L, self.scale, self.scale),
        )

    def check(self, got):
        close = TOLERANCE[self.kv.dtype]
        torch.testing.assert_close(got, self.expected(), atol=close, rtol=close)


@pytest.mark.parametrize("dtype", [BF16, FP8], ids=str)
@pytest.mark.parametrize("N", [16, 128])
def test_long_and_short_together(N, dtype):
    batch = Batch((9000, 1, 64, 4097, 130), N, dtype)
    for max_seq_len in (None, 64, 100_000):
        batch.check(batch.run(max_seq_len))


@pytest.mark.parametrize("dtype", [BF16, FP8], ids=str)
def test_a_captured_launch_follows_its_inputs(dtype):
    """Lengths, table and query change under the graph; the host's bound does not."""
    fresh, batch = Batch((700, 64, 1), 16, dtype), Batch((3, 650, 65), 16, dtype)
    batch.run(4096)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = batch.run(4096)
    graph.replay()
    torch.cuda.synchronize()
    batch.check(captured)
    batch.kv[: len(fresh.kv)] = fresh.kv
    for name in ("table", "q", "lens"):
        mine, other = getattr(batch, name), getattr(fresh, name)
        mine[tuple(map(slice, other.shape))] = other
    graph.replay()
    torch.cuda.synchronize()
    fresh.check(captured)


@pytest.mark.parametrize("dtype", [BF16, FP8], ids=str)
def test_offsets_beyond_32_bits(dtype):
    blocks = 2**31 // (BLOCK * (L + R)) + 40
    batch = Batch((700, 65), 16, dtype, blocks)
    assert int(batch.table.max()) * batch.kv.stride(0) > 2**31
    batch.check(batch.run())
