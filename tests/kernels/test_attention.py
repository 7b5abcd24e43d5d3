"""The two attention references against torch's own attention, request by request."""

from __future__ import annotations

import pytest
import torch

from mlalab_kernels.mla_decode_attention.reference import gather_rows, mla_decode_attention
from mlalab_kernels.mla_prefill_attention.reference import mla_prefill_attention
from mlalab_kernels.numerics import quantize

N, L, R, P, V, BLOCK = 3, 24, 16, 8, 10, 4
SCALE = 0.21
ONE = torch.ones(())


def causal(query_len, seq_len):
    return torch.ones(query_len, seq_len, dtype=torch.bool).tril(seq_len - query_len)


def attend(q_TNH, k_SNH, v_SNV, scale=SCALE):
    """Return torch's attention of the last T of S tokens, in fp64."""
    q, k, v = (x.double().transpose(0, 1) for x in (q_TNH, k_SNH, v_SNV))
    mask = causal(q.size(1), k.size(1))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=scale)
    return out.transpose(0, 1).float()


class Decode:
    """A paged cache with blocks in disorder and requests of several lengths."""

    query_lens, seq_lens = (1, 2, 1, 4), (9, 5, 1, 4)

    def __init__(self, cache_dtype=torch.float32):
        scale = torch.tensor(0.05)
        self.table = torch.randperm(12, dtype=torch.int32).view(4, 3)
        self.cache = quantize(torch.randn(12, BLOCK, L + R), scale, cache_dtype)
        self.q = quantize(torch.randn(sum(self.query_lens), N, L + R), scale, cache_dtype)
        self.scale = ONE if cache_dtype == torch.float32 else scale

    def run(self, **changes):
        table, softmax_scale = changes.get("table", self.table), changes.get("scale", SCALE)
        return mla_decode_attention(
            *(self.q, self.cache, table, self.query_lens, self.seq_lens, softmax_scale, L),
            *(self.scale, changes.get("k_scale", self.scale)),
        )

    def expected(self):
        outputs, sums, start = [], [], 0
        for request, (length, total) in enumerate(zip(self.query_lens, self.seq_lens, strict=True)):
            slots = [int(self.table[request, t // BLOCK]) * BLOCK + t % BLOCK for t in range(total)]
            rows = self.cache.float().flatten(0, 1)[slots] * self.scale
            q = self.q[start : start + length].float() * self.scale
            k = rows[:, None].expand(-1, N, -1)
            outputs.append(attend(q, k, k[..., :L]))
            scores = torch.einsum("tnc,sc->tns", q, rows) * SCALE
            hidden = ~causal(length, total)[:, None].expand_as(scores)
            sums.append(scores.masked_fill(hidden, -torch.inf).logsumexp(-1))
            start += length
        return torch.cat(outputs), torch.cat(sums)


@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.float8_e4m3fn])
def test_decode(cache_dtype):
    case = Decode(cache_dtype)
    torch.testing.assert_close(case.run(), case.expected(), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("change", ["table", "scale", "k_scale"])
def test_a_broken_decode_is_noticed(change):
    case = Decode(torch.float8_e4m3fn)
    wrong = {"table": case.table.roll(1, 0), "scale": 1.0, "k_scale": ONE}
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            case.run(**{change: wrong[change]}), case.expected(), atol=1e-3, rtol=1e-3
        )


def test_decode_of_nothing():
    out, lse = mla_decode_attention(
        *(torch.randn(0, N, L + R), torch.randn(2, BLOCK, L + R)),
        *(torch.zeros(2, 1, dtype=torch.int32), (0, 0), (3, 0), SCALE, L, ONE, ONE),
    )
    assert (out.shape, lse.shape) == ((0, N, L), (0, N))


def test_gather_follows_the_blocks():
    cache = torch.arange(12.0).view(3, 4, 1)
    blocks = torch.tensor([2, 0, 1], dtype=torch.int32)
    assert gather_rows(cache, blocks, 6).flatten().tolist() == [8, 9, 10, 11, 0, 1]
    assert gather_rows(cache, blocks, 0).shape == (0, 1)


def prefill_case(new, total):
    """Return inputs of the prefill reference and the keys and values they stand for."""
    q, kv_c, k_pe = torch.randn(new, N, P + R), torch.randn(total, L), torch.randn(total, R)
    w_kv_b = torch.randn(N, P + V, L) * L**-0.5
    up = torch.einsum("sl,nhl->snh", kv_c, w_kv_b)
    k = torch.cat((up[..., :P], k_pe[:, None].expand(-1, N, -1)), -1)
    return (q, kv_c, k_pe, w_kv_b, SCALE), k, up[..., P:]


@pytest.mark.parametrize(("new", "total"), [(0, 0), (0, 3), (1, 1), (1, 9), (5, 9), (63, 63)])
def test_prefill(new, total):
    arguments, k, v = prefill_case(new, total)
    out = mla_prefill_attention(*arguments)
    assert out.shape == (new, N, V)
    torch.testing.assert_close(out, attend(arguments[0], k, v), atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "broken",
    [
        lambda q, k, v: attend(q, k.roll(1, 0), v),
        lambda q, k, v: attend(q, k, v.flip(1)),
        lambda q, k, v: attend(q, k, v, scale=2 * SCALE),
        lambda q, k, v: attend(torch.cat((q, q)), k, v)[: len(q)],
    ],
    ids=["keys shifted", "heads swapped", "scale", "mask"],
)
def test_a_broken_prefill_is_noticed(broken):
    arguments, k, v = prefill_case(4, 9)
    out = mla_prefill_attention(*arguments)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(out, broken(arguments[0], k, v), atol=1e-3, rtol=1e-3)
