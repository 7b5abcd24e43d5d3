"""The Triton decode attention against its reference, on poisoned caches and tables."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from mlalab_kernels.mla_decode_attention import reference
from mlalab_kernels.mla_decode_attention.launch_config import Config
from mlalab_kernels.mla_decode_attention.triton_kernel import (
    mla_decode_attention,
    mla_decode_attention_of_batch,
)
from mlalab_kernels.numerics import quantize

FP32, BF16, FP16, FP8 = torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn
# By the type that the weights of the second product are rounded to; over FP8 that is fp16.
TOLERANCE = {FP32: 2e-5, BF16: 1.5e-2, FP16: 2e-3, FP8: 2e-3}
SCALE = 0.21
GARBAGE = (-1, 2**31 - 1)


@dataclass
class Batch:
    """Requests over a cache whose unused rows hold NaN and a table that ends in garbage."""

    query_lens: tuple[int, ...] = (1, 2, 1, 4)
    seq_lens: tuple[int, ...] = (9, 5, 1, 37)
    N: int = 3
    L: int = 8
    R: int = 4
    block_size: int = 16
    query: torch.dtype = FP32
    cache: torch.dtype = FP32
    padding: int = 0
    index: torch.dtype = torch.int32
    device: torch.device | str = "cpu"

    def __post_init__(self):
        used = [-(-n // self.block_size) for n in self.seq_lens]
        blocks, C = sum(used) + 2, self.L + self.R
        self.table = (
            torch.tensor(GARBAGE).repeat(len(used), max(used, default=0) + 1).to(self.index)
        )
        rows = torch.full((blocks, self.block_size, C), torch.nan)
        places = iter(torch.randperm(blocks).tolist())
        for request, (count, length) in enumerate(zip(used, self.seq_lens, strict=True)):
            own = torch.tensor([next(places) for _ in range(count)], dtype=torch.long)
            self.table[request, :count] = own
            filled = torch.full((count * self.block_size, C), torch.nan)
            filled[:length] = torch.randn(length, C)
            rows[own] = filled.view(count, self.block_size, C)
        self.q_scale, self.k_scale = torch.tensor(0.04), torch.tensor(0.05)
        self.kv = quantize(rows, self.k_scale, self.cache)
        tokens = sum(self.query_lens) + self.padding
        self.q = quantize(torch.randn(tokens, self.N, C), self.q_scale, self.query)
        for name in ("table", "q", "kv", "q_scale", "k_scale"):
            setattr(self, name, getattr(self, name).to(self.device))

    def run(self, config=None, **changes):
        names = ("q", "kv", "table", "query_lens", "seq_lens", "scale", "L", "q_scale", "k_scale")
        given = {"scale": SCALE, **vars(self), **changes}
        return mla_decode_attention(*(given[name] for name in names), config=config)

    def expected(self):
        arguments = (x.cpu() for x in (self.q, self.kv, self.table))
        out, lse = reference.mla_decode_attention(
            *arguments, self.query_lens, self.seq_lens, SCALE, self.L,
            self.q_scale.cpu(), self.k_scale.cpu(),
        )  # fmt: skip
        tokens = sum(self.query_lens)
        out[tokens:], lse[tokens:] = 0.0, -torch.inf
        return out, lse

    def check(self, got):
        tolerances = (TOLERANCE[self.cache if self.query == FP8 else self.query], 2e-5)
        for x, wanted, close in zip(got, self.expected(), tolerances, strict=True):
            assert x.dtype == FP32
            assert x.is_contiguous()
            torch.testing.assert_close(x.cpu(), wanted, atol=close, rtol=close)


def tiles(splits=None, block_h=16, stages=1):
    return Config(block_h, 16, stages, splits=splits)


@pytest.mark.parametrize(("splits", "stages"), [(None, 1), (1, 2), (3, 2)])
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16, FP8], ids=str)
@pytest.mark.parametrize("block_size", [1, 16, 64])
def test_every_type_and_block_size(dtype, block_size, splits, stages, device):
    batch = Batch(block_size=block_size, query=dtype, cache=dtype, device=device)
    batch.check(batch.run(tiles(splits, stages=stages)))


@pytest.mark.parametrize("N", [1, 2, 7, 8, 16, 40])
@pytest.mark.parametrize("dtype", [FP32, FP8], ids=str)
def test_every_number_of_heads(N, dtype, device):
    batch = Batch((1, 2), (20, 17), N=N, query=dtype, cache=dtype, device=device)
    batch.check(batch.run(tiles(2)))


@pytest.mark.parametrize(("L", "R"), [(6, 2), (8, 4), (16, 2), (24, 16), (33, 6)])
@pytest.mark.parametrize("dtype", [FP32, BF16, FP8], ids=str)
def test_any_widths(L, R, dtype, device):
    batch = Batch(L=L, R=R, query=dtype, cache=dtype, device=device)
    batch.check(batch.run())


@pytest.mark.parametrize("config", [None, Config(16, 64, 2, 4), Config(32, 64, 1, 8)], ids=str)
@pytest.mark.parametrize("dtype", [BF16, FP8], ids=str)
@pytest.mark.parametrize("N", [16, 128])
def test_model_sizes(N, dtype, config, device):
    batch = Batch((1, 1), (130, 63), N, 512, 64, 64, dtype, dtype, device=device)
    batch.check(batch.run(config))


@pytest.mark.parametrize("query", [FP32, BF16, FP16], ids=str)
def test_query_wider_than_the_cache(query, device):
    batch = Batch(query=query, cache=FP8, device=device)
    batch.check(batch.run(tiles()))


@pytest.mark.parametrize("seq_len", [1, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65])
@pytest.mark.parametrize(("splits", "stages"), [(1, 1), (2, 1), (5, 2)])
def test_every_remainder(seq_len, splits, stages, device):
    batch = Batch((1, 1), (seq_len, 40), query=BF16, cache=BF16, device=device)
    batch.check(batch.run(tiles(splits, stages=stages)))


@pytest.mark.parametrize("block_h", [16, 32])
@pytest.mark.parametrize("query_lens", [(5, 1), (17, 2), (9, 9)])
def test_rows_of_several_tokens_in_one_program(query_lens, block_h, device):
    """Each sees a different part of the last tiles; some programs have no rows at all."""
    batch = Batch(query_lens, (40, 33), N=5, device=device)
    batch.check(batch.run(tiles(2, block_h)))


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("dtype", [FP32, FP8], ids=str)
def test_padding(dtype, splits, device):
    """Requests without cached rows, and tokens without a request."""
    batch = Batch((1, 1, 0, 1), (0, 9, 3, 0), padding=21, query=dtype, cache=dtype, device=device)
    out, lse = batch.run(tiles(splits))
    batch.check((out, lse))
    empty = [0, *range(2, len(batch.q))]
    assert not out[empty].any()
    assert torch.isneginf(lse[empty]).all()


@pytest.mark.parametrize("splits", [1, 2])
def test_more_query_than_sequence(splits, device):
    """A stale length: the tokens that see nothing get 0, not NaN."""
    batch = Batch((3,), (1,), device=device)
    out, lse = batch.run(tiles(splits))
    assert not out[:2].any()
    assert torch.isneginf(lse[:2]).all()
    assert torch.isfinite(out[2]).all()
    assert torch.isfinite(lse[2]).all()


@pytest.mark.parametrize(("query_lens", "seq_lens"), [((), ()), ((0, 0), (3, 0))])
@pytest.mark.parametrize("padding", [0, 3])
def test_nothing_to_attend_from(query_lens, seq_lens, padding, device):
    batch = Batch(query_lens, seq_lens, padding=padding, device=device)
    out, lse = batch.run()
    assert (out.shape, lse.shape) == ((padding, 3, 8), (padding, 3))
    assert not out.any()
    assert torch.isneginf(lse).all()


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_strides_and_index_types(index, device):
    batch = Batch(index=index, query=BF16, cache=BF16, device=device)
    heads_first = batch.q.transpose(0, 1).contiguous().transpose(0, 1)
    wide_q, wide_kv, wide_table = (
        torch.nn.functional.pad(x, (0, 5)) for x in (batch.q, batch.kv, batch.table)
    )
    C = batch.L + batch.R
    transposed = batch.q.transpose(1, 2).contiguous().transpose(1, 2)
    for q in (heads_first, wide_q[..., :C], transposed):
        got = batch.run(tiles(2), q=q, kv=wide_kv[..., :C], table=wide_table[:, :-5])
        batch.check(got)


@pytest.mark.parametrize("dtype", [BF16, FP8], ids=str)
def test_two_runs_are_the_same_bits(dtype, device):
    batch = Batch(query=dtype, cache=dtype, device=device)
    for first, second in zip(batch.run(tiles(3)), batch.run(tiles(3)), strict=True):
        assert first.equal(second)


@pytest.mark.parametrize("name", ["q", "kv"])
def test_raw_bytes_are_refused(name, device):
    batch = Batch(query=FP8, cache=FP8, device=device)
    with pytest.raises(RuntimeError, match=r"is torch.uint8; .*view\(torch.float8_e4m3fn\)"):
        batch.run(**{name: getattr(batch, name).view(torch.uint8)})


def test_a_strided_cache_row_is_refused(device):
    batch = Batch(device=device)
    with pytest.raises(RuntimeError, match="contiguous in its last dimension"):
        batch.run(kv=batch.kv.transpose(1, 2).contiguous().transpose(1, 2))


@pytest.mark.parametrize("change", ["table", "scale", "k_scale", "q_scale", "seq_lens"])
def test_a_wrong_result_is_noticed(change, device):
    batch = Batch(query=FP8, cache=FP8, device=device)
    wrong = {
        "table": batch.table.roll(1, 0).clamp(0, len(batch.kv) - 1),
        "scale": 1.02 * SCALE,
        "k_scale": 1.02 * batch.k_scale,
        "q_scale": 1.02 * batch.q_scale,
        "seq_lens": (9, 5, 1, 36),
    }
    with pytest.raises(AssertionError):
        batch.check(batch.run(**{change: wrong[change]}))


def test_tokens_that_the_query_does_not_have_are_not_written(device):
    """Lengths on the device cannot be checked by the host."""
    batch = Batch(query_lens=(1, 1), seq_lens=(9, 20), device=device)
    one, lens = batch.q[:1], torch.tensor([9, 20], dtype=torch.int32, device=device)
    starts = torch.tensor([0, 1, 2], dtype=torch.int32, device=device)
    scales = (batch.q_scale, batch.k_scale)
    given = (batch.kv, batch.table, starts, lens, 1, 20, SCALE, batch.L, *scales)
    for query in (batch.q, one):
        out, lse = mla_decode_attention_of_batch(query, *given)
        assert len(out) == len(lse) == len(query)
        torch.testing.assert_close(out[0].cpu(), batch.expected()[0][0], rtol=2e-5, atol=2e-5)
