"""The references of ordinary attention: fused is rotate then write; attention is torch's own."""

from __future__ import annotations

import pytest
import torch

from mlalab_kernels.fused_rope_and_unified_kv_cache_update.reference import (
    fused_rope_and_unified_kv_cache_update,
)
from mlalab_kernels.numerics import quantize, rotate
from mlalab_kernels.paged_attention.reference import paged_attention
from mlalab_kernels.unified_kv_cache_update.reference import unified_kv_cache_update
from tests.kernels.test_attention import attend

N, G, H, M, BLOCKS, BLOCK = 6, 2, 8, 50, 18, 4
FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
K_SCALE, V_SCALE = torch.tensor(0.37), torch.tensor(0.53)


def cache_of(dtype):
    cache = torch.zeros(2, BLOCKS, BLOCK, G, H, dtype=dtype)
    cache.view(torch.uint8).fill_(0x55)
    return cache


def bits(x):
    return x.contiguous().view(torch.uint8)


class Case:
    """Inputs of the fused reference, strided as in a layer; `run` returns all it wrote."""

    def __init__(self, tokens, dtype, cache_dtype, slots=None):
        self.qkv = torch.randn(tokens, (N + 2 * G) * H).to(dtype)
        self.positions = torch.randint(M, (tokens,))
        angles = torch.randn(M, H // 2)
        self.table = torch.cat((angles.cos(), angles.sin()), -1)
        self.slots = torch.randperm(BLOCKS * BLOCK)[: max(tokens - 1, 0)]
        self.slots[1::3] = -1
        self.cache_dtype = cache_dtype or dtype

    def run(self, function, is_neox, in_fp32):
        qkv, cache = self.qkv.clone(), cache_of(self.cache_dtype)
        heads = qkv.split([N * H, G * H, G * H], -1)
        function(
            *(x.view(-1, x.size(-1) // H, H) for x in heads),
            *(self.positions, self.table, is_neox, cache, self.slots, K_SCALE, V_SCALE, in_fp32),
        )
        return qkv, cache


def two_steps(q, k, v, positions, table, is_neox, cache, slots, k_scale, v_scale, in_fp32):
    cos, sin = table[positions].chunk(2, dim=-1)
    for x in (q, k):
        x.copy_(rotate(x, cos, sin, is_neox, in_fp32))
    unified_kv_cache_update(k, v, cache, slots, k_scale, v_scale)


def assert_same(case, reference, is_neox, in_fp32):
    fused = case.run(fused_rope_and_unified_kv_cache_update, is_neox, in_fp32)
    for a, b in zip(fused, case.run(reference, is_neox, in_fp32), strict=True):
        assert torch.equal(bits(a), bits(b))


@pytest.mark.parametrize("in_fp32", [True, False])
@pytest.mark.parametrize("is_neox", [False, True])
@pytest.mark.parametrize("cache_dtype", [None, FN, FNUZ])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [0, 1, 3, 63])
def test_fused_is_rotate_then_write(tokens, dtype, cache_dtype, is_neox, in_fp32):
    assert_same(Case(tokens, dtype, cache_dtype), two_steps, is_neox, in_fp32)


def swap_scales(*arguments):
    *first, k_scale, v_scale, in_fp32 = arguments
    two_steps(*first, v_scale, k_scale, in_fp32)


def swap_key_and_value(q, k, v, p, t, n, cache, *rest):
    two_steps(q, k, v, p, t, n, cache.flip(0), *rest)


def flip_pairing(q, k, v, positions, table, is_neox, *rest):
    two_steps(q, k, v, positions, table, not is_neox, *rest)


def write_before_rotating(q, k, v, p, t, n, cache, slots, ks, vs, in_fp32):
    unified_kv_cache_update(k, v, cache, slots, ks, vs)
    two_steps(q, k, v, p, t, n, cache, slots[:0], ks, vs, in_fp32)


def write_padding(*arguments):
    *first, slots, ks, vs, in_fp32 = arguments
    two_steps(*first, slots % (BLOCKS * BLOCK), ks, vs, in_fp32)


@pytest.mark.parametrize(
    "broken",
    [swap_scales, swap_key_and_value, flip_pairing, write_before_rotating, write_padding],
    ids=lambda f: f.__name__,
)
def test_a_broken_reference_is_noticed(broken):
    with pytest.raises(AssertionError):
        assert_same(Case(63, torch.bfloat16, FN), broken, True, True)


def test_without_slots_it_only_rotates():
    case = Case(5, torch.float32, FN)

    def no_slots(*arguments):
        fused_rope_and_unified_kv_cache_update(*arguments[:6], None, None, *arguments[8:])

    qkv, cache = case.run(no_slots, True, True)
    assert torch.equal(qkv, case.run(two_steps, True, True)[0])
    assert torch.equal(bits(cache), bits(cache_of(FN)))


class Attention:
    """A paged cache with blocks in disorder and requests of several lengths."""

    query_lens, seq_lens = (1, 2, 1, 4), (9, 5, 1, 4)

    def __init__(self, cache_dtype=torch.float32):
        self.table = torch.randperm(12, dtype=torch.int32).view(4, 3)
        drawn = torch.randn(2, 12, BLOCK, G, H)
        scales = (K_SCALE, V_SCALE)
        stored = [quantize(x, s, cache_dtype) for x, s in zip(drawn, scales, strict=True)]
        self.cache = torch.stack([x.view(torch.uint8) for x in stored]).view(cache_dtype)
        self.scales = scales if cache_dtype == FN else (torch.ones(()), torch.ones(()))
        self.q = torch.randn(sum(self.query_lens), N, H)

    def run(self, scales=None, table=None):
        table = self.table if table is None else table
        lens = (self.query_lens, self.seq_lens)
        return paged_attention(self.q, self.cache, table, *lens, 0.21, *(scales or self.scales))

    def expected(self):
        outputs, start = [], 0
        for request, (length, total) in enumerate(zip(self.query_lens, self.seq_lens, strict=True)):
            slots = [int(self.table[request, t // BLOCK]) * BLOCK + t % BLOCK for t in range(total)]
            k, v = (
                (x.float().flatten(0, 1)[slots] * s).repeat_interleave(N // G, 1)
                for x, s in zip(self.cache, self.scales, strict=True)
            )
            outputs.append(attend(self.q[start : start + length], k, v))
            start += length
        return torch.cat(outputs)


@pytest.mark.parametrize("cache_dtype", [torch.float32, FN])
def test_attention_is_torchs(cache_dtype):
    case = Attention(cache_dtype)
    torch.testing.assert_close(case.run(), case.expected(), atol=1e-5, rtol=0)
    wrongs = [{"table": case.table.flip(0)}]
    wrongs += [{"scales": case.scales[::-1]}] if cache_dtype == FN else []
    for wrong in wrongs:
        with pytest.raises(AssertionError):
            torch.testing.assert_close(case.run(**wrong), case.expected(), atol=1e-5, rtol=0)


def test_attention_of_nothing():
    nothing = torch.zeros(0, 1, dtype=torch.int32)
    scales = (torch.ones(()), torch.ones(()))
    cache = cache_of(torch.bfloat16)
    query = torch.randn(0, N, H, dtype=torch.bfloat16)
    output = paged_attention(query, cache, nothing, (), (), 1.0, *scales)
    assert (output.shape, output.dtype) == ((0, N, H), torch.bfloat16)
