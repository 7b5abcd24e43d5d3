"""The decode preparation's kernels: one call equals the chain of three, bit for bit."""

from __future__ import annotations

import pytest
import torch

from mlalab_kernels.fused_absorb_qk_rope_concat_and_cache_mla.reference import (
    fused_absorb_qk_rope_concat_and_cache_mla,
)
from mlalab_kernels.fused_qk_rope_concat_and_cache_mla.reference import (
    fused_qk_rope_concat_and_cache_mla,
)
from mlalab_kernels.fused_rope_unified_mla_kv_cache_update.reference import (
    fused_rope_unified_mla_kv_cache_update,
)
from mlalab_kernels.mla_decode_q_prep.reference import mla_decode_q_prep

N, P, R, L, M, SLOTS = 3, 8, 4, 16, 32, 40
FP8 = torch.float8_e4m3fn
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def same_bits(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(raw(a), raw(b))


def raw(x):
    return x.contiguous().view(torch.uint8)


class Case:
    """Inputs of one step: the query a slice of a wider tensor, the key of the latent's."""

    def __init__(self, tokens, dtype=torch.bfloat16, stored=None):
        self.q = torch.randn(tokens, N, P + R + 1).to(dtype)[..., :-1]
        self.latent = torch.randn(tokens, L + R).to(dtype)
        self.kv_c, self.k_pe = self.latent.split([L, R], dim=-1)
        self.w_uk = torch.randn(N, P + 2, L).to(dtype)[:, :P]
        self.positions = torch.randint(M, (tokens,))
        self.table = torch.randn(M, R)
        self.k_scale, self.q_scale = torch.tensor(0.37), torch.tensor(0.61)
        self.cache = torch.zeros(SLOTS, L + R).to(stored or dtype)
        self.q_out = torch.empty(tokens, N, L + R).to(stored or dtype)

    def fused(self, slots, is_neox=False, in_fp32=True, **more):
        cache = self.cache.clone()
        fused_absorb_qk_rope_concat_and_cache_mla(
            *(self.q[..., :P], self.q[..., P:], self.w_uk, self.kv_c, self.k_pe, cache),
            *(self.q_out, slots, self.k_scale, self.q_scale, self.positions, self.table),
            *(is_neox, in_fp32),
            **more,
        )
        return self.q_out, cache

    def chain(self, slots, is_neox=False, in_fp32=True):
        q, k_pe, cache = self.q.clone(), self.k_pe.clone(), self.cache.clone()
        fused_rope_unified_mla_kv_cache_update(
            *(self.positions, q[..., P:], k_pe, self.kv_c, self.table, is_neox, cache, slots),
            *(self.k_scale, in_fp32),
        )
        prepared = mla_decode_q_prep(q, self.w_uk, self.q_scale, cache.dtype)
        return prepared, cache, q[..., P:], k_pe


def slots_of(tokens):
    slots = torch.arange(tokens).flip(0) % SLOTS
    return [slots, torch.where(slots % 2 == 0, -1, slots), slots[: tokens // 2], None]


@pytest.mark.parametrize("stored", [None, FP8])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [0, 1, 3, 33])
def test_fused_is_the_chain(tokens, dtype, stored):
    for slots in slots_of(tokens):
        for is_neox, in_fp32 in ((False, True), (True, True), (True, False)):
            case = Case(tokens, dtype, stored)
            before = (case.q.clone(), case.latent.clone())
            rotated = torch.empty(tokens, N, R, dtype=dtype), torch.empty(tokens, R, dtype=dtype)
            q_out, cache = case.fused(
                slots, is_neox, in_fp32, q_pe_out=rotated[0], k_pe_out=rotated[1]
            )
            for found, wanted in zip(
                (q_out, cache, *rotated), case.chain(slots, is_neox, in_fp32), strict=True
            ):
                assert same_bits(found, wanted)
            assert same_bits(case.q, before[0])
            assert same_bits(case.latent, before[1])


def test_the_prepared_query_is_contiguous():
    for tokens in (0, 1, 3):
        case = Case(tokens)
        prepared = mla_decode_q_prep(case.q, case.w_uk, case.q_scale, FP8)
        assert prepared.shape == (tokens, N, L + R)
        assert prepared.stride() == (N * (L + R), L + R, 1)


def aiter(case, cache, q_out, **more):
    absorbed = torch.randn(case.q.size(0), N, L).to(case.q.dtype)
    arguments = {
        **{"q_nope": absorbed, "q_pe": case.q[..., P:], "kv_c": case.kv_c, "k_pe": case.k_pe},
        **{"kv_cache": cache, "q_out": q_out, "slot_mapping": torch.arange(case.q.size(0))},
        **{"k_scale": case.k_scale, "q_scale": case.q_scale, "positions": case.positions},
        **{"cos_cache": case.table[:, : R // 2], "sin_cache": case.table[:, R // 2 :]},
        **{"is_neox": False, "is_nope_first": True, **more},
    }
    fused_qk_rope_concat_and_cache_mla(**arguments)
    return absorbed


def test_raw_bytes_are_refused_as_on_rocm():
    case = Case(3)
    cache = torch.zeros(SLOTS, L + R, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match=r"\[AITER\] kv cache data type is not.*uint8; view"):
        aiter(case, cache, case.q_out)
    assert not cache.any()


def test_an_fp8_query_over_a_wide_cache_is_refused():
    case = Case(3)
    with pytest.raises(RuntimeError, match=r"an FP8 query needs an FP8 kv cache, got torch\.bf"):
        aiter(case, case.cache, case.q_out.to(FP8))


def test_the_cache_may_come_in_blocks_and_the_rotated_part_first():
    case = Case(3)
    blocks = case.cache.clone().view(5, 8, L + R)
    absorbed = aiter(case, blocks, case.q_out)
    assert same_bits(case.q_out[..., :L], absorbed)
    assert same_bits(blocks.flatten(0, 1)[:3, :L], case.kv_c)
    turned_q, turned_k = case.q_out[..., L:].clone(), blocks[0, :3, L:].clone()
    absorbed = aiter(case, blocks, case.q_out, is_nope_first=False)
    assert same_bits(case.q_out, torch.cat((turned_q, absorbed), -1))
    assert same_bits(blocks[0, :3], torch.cat((turned_k, case.kv_c), -1))


def test_positions_outside_the_table_read_its_nearest_row():
    case = Case(2)
    case.positions = torch.tensor([-7, M + 5])
    q_out = case.fused(None)[0].clone()
    case.positions = torch.tensor([0, M - 1])
    assert same_bits(q_out, case.fused(None)[0])
