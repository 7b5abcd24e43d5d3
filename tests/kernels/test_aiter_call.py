"""What AITER is called with, by a stand-in that records the call and answers with the reference."""

from __future__ import annotations

import gc
import sys
import types

import pytest
import torch

from mlalab import kernels
from mlalab.env import Availability
from mlalab_kernels.fused_absorb_qk_rope_concat_and_cache_mla import aiter_call, reference
from mlalab_kernels.fused_qk_rope_concat_and_cache_mla import aiter_call as pair
from mlalab_kernels.fused_qk_rope_concat_and_cache_mla.reference import (
    fused_qk_rope_concat_and_cache_mla as in_torch,
)
from mlalab_kernels.refusal import RefusedError

N, P, R, L, M, SLOTS = 2, 8, 64, 32, 16, 24
FP8 = torch.float8_e4m3fn
NAMES = (
    *("q_nope", "q_pe", "kv_c", "k_pe", "kv_cache", "q_out", "slot_mapping", "k_scale", "q_scale"),
    *("positions", "cos", "sin", "is_neox", "is_nope_first"),
)


@pytest.fixture
def calls(monkeypatch):
    """Put a stand-in for AMD's package in place; returns the arguments of every call, by name."""
    seen = []

    def fused_qk_rope_concat_and_cache_mla(*arguments, compute_all_q_rope=False):
        seen.append(dict(zip(NAMES, arguments, strict=True), all_rows=compute_all_q_rope))
        in_torch(*arguments)

    module = types.ModuleType("aiter")
    module.fused_qk_rope_concat_and_cache_mla = fused_qk_rope_concat_and_cache_mla
    monkeypatch.setitem(sys.modules, "aiter", module)
    return seen


class Case:
    """Inputs of one step; the table is in the activation dtype, where AITER's rounding is ours."""

    def __init__(self, tokens=3, stored=FP8, heads=N, latent=L, rope=R):
        self.q = torch.randn(tokens, heads, P + rope).bfloat16()
        self.kv_c, self.k_pe = (
            torch.randn(tokens, latent + rope).bfloat16().split([latent, rope], -1)
        )
        self.w_uk = torch.randn(heads, P, latent).bfloat16()
        self.positions = torch.randint(M, (tokens,))
        self.table = torch.randn(M, rope).bfloat16()
        self.k_scale, self.q_scale = torch.tensor(0.37), torch.tensor(0.61)
        self.cache = torch.zeros(SLOTS, latent + rope).to(stored)
        self.slots = torch.arange(tokens) % SLOTS
        self.stored = stored

    def run(self, function, slots="own", **more):
        tokens, heads, latent = self.q.size(0), self.q.size(1), self.w_uk.size(-1)
        rope = self.q.size(-1) - P
        q_out = torch.empty(tokens, heads, latent + rope).to(self.stored)
        cache = None if slots is None else self.cache.clone()
        given = self.slots if isinstance(slots, str) else slots
        function(
            *(self.q[..., :P], self.q[..., P:], self.w_uk, self.kv_c, self.k_pe, cache, q_out),
            *(given, self.k_scale, self.q_scale, self.positions, self.table),
            **{"is_neox": False, **more},
        )
        return q_out, cache


def absorbed(case, **more):
    return case.run(aiter_call.fused_absorb_qk_rope_concat_and_cache_mla, **more)


def expected(case, **more):
    return case.run(reference.fused_absorb_qk_rope_concat_and_cache_mla, **more)


def same(found, wanted):
    pairs = [(f, w) for f, w in zip(found, wanted, strict=True) if w is not None]
    return all(torch.equal(f.view(torch.uint8), w.view(torch.uint8)) for f, w in pairs)


@pytest.mark.parametrize("stored", [torch.bfloat16, FP8])
@pytest.mark.parametrize("is_neox", [False, True])
@pytest.mark.parametrize("tokens", [0, 1, 3])
def test_two_launches_do_what_the_reference_does(calls, tokens, is_neox, stored):
    case = Case(tokens, stored)
    padded = torch.where(case.slots % 2 == 0, -1, case.slots)
    for slots in ("own", padded, case.slots[: tokens // 2], None):
        assert same(
            absorbed(case, slots=slots, is_neox=is_neox),
            expected(case, slots=slots, is_neox=is_neox),
        )
    assert len(calls) == (4 if tokens else 0)


def test_the_call_is_the_documented_one(calls):
    case = Case(5)
    absorbed(case, slots=case.slots[:2].to(torch.int32))
    (call,) = calls
    assert call["slot_mapping"].tolist() == [0, 1, -1, -1, -1]
    assert call["slot_mapping"].dtype == call["positions"].dtype == torch.int64
    assert call["all_rows"] is True
    assert (call["is_neox"], call["is_nope_first"]) == (False, True)
    assert call["kv_cache"].shape == (SLOTS, 1, L + R)
    assert call["kv_cache"].dtype == call["q_out"].dtype == FP8
    assert call["k_scale"].shape == call["q_scale"].shape == (1,)
    assert call["q_nope"].shape == (5, N, L)
    for name in ("cos", "sin"):
        assert call[name].shape == (M, R // 2)
        assert call[name].is_contiguous()
        assert call[name].dtype == torch.bfloat16
    for name in ("q_nope", "q_pe", "kv_c", "k_pe"):
        assert call[name].stride(-1) == 1


def test_columns_that_are_not_dense_are_made_so(calls):
    case = Case()
    case.k_pe = case.k_pe.t().contiguous().t()
    assert case.k_pe.stride(-1) != 1
    assert same(absorbed(case), expected(case))
    assert calls[0]["k_pe"].stride(-1) == 1


def test_rotated_parts_are_returned_when_asked_for(calls):
    case = Case()
    rotated = [(torch.empty(3, N, R).bfloat16(), torch.empty(3, R).bfloat16()) for _ in range(2)]
    for run, (q_pe, k_pe) in zip((absorbed, expected), rotated, strict=True):
        run(case, q_pe_out=q_pe, k_pe_out=k_pe)
    assert same(*rotated)


def test_a_table_is_split_once_and_again_after_it_changed(calls):
    case = Case()
    case.table = torch.randn(M, R)
    absorbed(case)
    absorbed(case)
    first, second = calls
    assert first["cos"] is second["cos"]
    assert first["sin"] is second["sin"]
    case.table.mul_(-1)
    absorbed(case)
    assert torch.equal(calls[2]["cos"], -first["cos"])
    assert torch.equal(calls[2]["sin"], case.table[:, R // 2 :].bfloat16())
    halves = pair.table_halves(case.table, torch.float16)
    assert halves[0].dtype == torch.float16
    assert pair.table_halves(case.table, torch.bfloat16)[0] is calls[2]["cos"]


def test_a_table_of_inference_mode_is_split_once_too():
    with torch.inference_mode():
        table = torch.randn(M, R)
        assert pair.table_halves(table, FP8)[0] is pair.table_halves(table, FP8)[0]


def test_the_halves_do_not_outlive_their_table():
    table = torch.randn(M, R)
    pair.table_halves(table, torch.bfloat16)
    before = len(pair._halves)
    del table
    gc.collect()
    assert len(pair._halves) == before - 1


def test_bytes_and_unlike_dtypes_are_refused(calls):
    with pytest.raises(RuntimeError, match=r"kv cache data type is not supported: uint8"):
        absorbed(Case(stored=torch.uint8))
    with pytest.raises(RuntimeError, match=r"activations' torch.bfloat16, kv_cache is torch.float"):
        absorbed(Case(stored=torch.float32))
    with pytest.raises(RuntimeError, match="rotates in fp32 only"):
        absorbed(Case(), rope_in_fp32=False)
    assert not calls


@pytest.mark.parametrize(
    ("sizes", "legal"),
    [
        ({"rope": 32}, False),
        ({"tokens": 255}, True),
        ({"tokens": 256}, False),
        ({"latent": 520}, False),
        ({"tokens": 256, "latent": 512, "heads": 3}, False),
        ({"tokens": 256, "latent": 512, "heads": 4}, True),
    ],
)
def test_sizes_without_a_kernel_that_writes_every_row_are_refused(calls, sizes, legal):
    case = Case(**sizes)
    if legal:
        absorbed(case)
        assert len(calls) == 1
    else:
        with pytest.raises(RuntimeError, match="of a padded token only for R = 64"):
            absorbed(case)
        assert not calls


def test_what_is_refused_is_refused_before_the_product(calls, monkeypatch):
    monkeypatch.setattr(aiter_call, "absorb", lambda *given: pytest.fail("multiplied in vain"))
    with pytest.raises(RefusedError, match="of a padded token only"):
        absorbed(Case(rope=32))


def test_strides_beyond_32_bits_are_refused():
    wide = torch.empty(1).expand(3, 1).as_strided((1, 1), (2**31, 1))
    with pytest.raises(RuntimeError, match="a stride of 2147483648"):
        pair._check_strides((wide,))


def test_another_package_of_the_name_is_told_from_the_real_one(monkeypatch):
    monkeypatch.setitem(sys.modules, "aiter", types.ModuleType("aiter"))
    with pytest.raises(RuntimeError, match=r"PyPI's async-iterator package.*github.com/ROCm/aiter"):
        absorbed(Case())
    monkeypatch.setitem(sys.modules, "aiter", None)
    with pytest.raises(RuntimeError, match=r"AITER cannot be imported.*build github.com/ROCm"):
        absorbed(Case())


def test_an_op_served_by_aiter_takes_this_way(calls, monkeypatch):
    monkeypatch.setattr(kernels, "probe_aiter", lambda: Availability(True, "ready"))
    kernels._choose.cache_clear()
    try:
        with kernels.force("aiter"):
            case = Case()
            op = "fused_absorb_qk_rope_concat_and_cache_mla"
            assert same(case.run(kernels.pick(op, case.q.device)), expected(case))
            reason = kernels.choice("rotary_embedding", case.q.device).reason
    finally:
        kernels._choose.cache_clear()
    assert len(calls) == 1
    assert reason == "no aiter kernel"


def test_the_stand_in_notices_a_wrong_argument(calls, monkeypatch):
    monkeypatch.setattr(aiter_call, "table_halves", lambda t, d: t.to(d).chunk(2, -1)[::-1])
    case = Case()
    assert not same(absorbed(case), expected(case))
