"""The kernels that rotate and write rows against their references, bit for bit.

Interpreted on the CPU; `pytest -m gpu` runs the same bodies compiled.
"""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from mlalab_kernels import triton_math, triton_rows
from mlalab_kernels.mla_decode_q_prep.reference import mla_decode_q_prep as reference_q_prep
from mlalab_kernels.mla_decode_q_prep.triton_kernel import mla_decode_q_prep
from tests.kernels.rows_case import BF16, FN, FNUZ, FP16, FP32, Case, agree, module_of, same

ROTATING = [
    "fused_rope_unified_mla_kv_cache_update",
    "fused_qk_rope_concat_and_cache_mla",
    "fused_rope_and_unified_kv_cache_update",
]
WRITING = [*ROTATING, "unified_mla_kv_cache_update", "unified_kv_cache_update"]
ALL = [*WRITING, "mla_decode_q_prep"]
SIZES = [
    {"T": 0},
    {"T": 1, "N": 1, "P": 1, "L": 1, "R": 2, "G": 1},
    {"T": 2, "N": 20, "P": 16, "L": 20, "R": 64, "G": 9, "block_size": 1},
    {"T": 17, "N": 1, "P": 40, "L": 40, "R": 10, "G": 1},
]
TYPES = [
    (BF16, BF16),
    (FP16, FN),
    (FP16, BF16),
    (FP32, FN),
    (FP32, FP32),
    (FP32, FP16),
    (BF16, FNUZ),
]


def check(op, device, **more):
    case = Case(**more)
    agree(op, getattr(case, op)(), device)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("op", ALL)
def test_sizes(op, device, size):
    check(op, device, **size)


@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize("op", ALL)
def test_dtypes(op, device, types):
    check(op, device, dtype=types[0], stored=types[1])


@pytest.mark.parametrize("in_fp32", [True, False])
@pytest.mark.parametrize("is_neox", [True, False])
@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("op", ROTATING)
def test_rotations(op, device, dtype, is_neox, in_fp32):
    for table in (FP32, dtype):
        check(op, device, dtype=dtype, is_neox=is_neox, in_fp32=in_fp32, table=table, T=5)


@pytest.mark.parametrize("op", WRITING)
def test_int32_indices(op, device):
    check(op, device, index=torch.int32, T=7)


@pytest.mark.parametrize("op", ALL)
def test_any_strides(op, device):
    check(op, device, turned=True, T=5)


@pytest.mark.parametrize("stored", [FN, FNUZ, BF16, FP16])
@pytest.mark.parametrize("op", ALL)
def test_values_that_no_format_holds(op, device, stored):
    check(op, device, strange=True, stored=stored, T=7)


@pytest.mark.parametrize("scale", [1.0, 1.7, 1e-3, 1e-40])
@pytest.mark.parametrize("op", ALL)
def test_scales(op, device, scale):
    check(op, device, scale=scale, T=2)


@pytest.mark.parametrize("op", WRITING)
def test_slots_that_name_nothing(op, device):
    for slots in (torch.full((4,), -1), torch.arange(0), torch.tensor([2**40, 3])):
        check(op, device, slots=slots, T=4)


@pytest.mark.parametrize("missing", ["cache", "slots", "both"])
@pytest.mark.parametrize("op", [name for name in ROTATING if "qk" not in name])
def test_a_profile_run_rotates_only(op, device, missing):
    case = Case(T=4)
    arguments = getattr(case, op)()
    assert arguments[6].dtype == FN
    assert arguments[7] is case.slots
    for index in {"cache": [6], "slots": [7], "both": [6, 7]}[missing]:
        arguments[index] = None
    agree(op, arguments, device)


def test_the_rotated_part_first(device):
    check("fused_qk_rope_concat_and_cache_mla", device, nope_first=False, L=20, is_neox=True)


@pytest.mark.parametrize(("cache", "query"), [(torch.uint8, BF16), (BF16, FN)])
def test_types_are_refused_as_the_reference_does(cache, query):
    case, op, messages = Case(), "fused_qk_rope_concat_and_cache_mla", []
    arguments = getattr(case, op)()
    arguments[4], arguments[5] = arguments[4].to(cache), arguments[5].to(query)
    for module in ("reference", "triton_kernel"):
        with pytest.raises(RuntimeError, match="kv cache") as caught:
            getattr(module_of(op, module), op)(*arguments)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("heads", [1, 2, 5, 9])
@pytest.mark.parametrize("sizes", [((0, 1, 2),), ((10**9, 4, 4),), ()])
def test_every_cut_of_the_query_gives_the_same(heads, sizes, device, monkeypatch):
    op = "fused_qk_rope_concat_and_cache_mla"
    monkeypatch.setattr(module_of(op), "_SIZES", sizes)
    check(op, device, N=heads)


@pytest.mark.parametrize("tokens", [16, 33, 70])
def test_tiles_of_the_product(tokens, device):
    check("mla_decode_q_prep", device, T=tokens, N=2, P=140, L=150)
    check("mla_decode_q_prep", device, T=tokens, N=1, P=40, L=36, dtype=FP32, stored=FP32)


@pytest.mark.parametrize("stored", [FN, BF16])
def test_the_order_of_summing_flips_a_rounding_now_and_then(stored, device):
    q, w = torch.randn(33, 2, 192).to(BF16), torch.randn(2, 128, 96).to(BF16)
    wanted = reference_q_prep(q, w, torch.tensor(0.61), stored)
    scale = torch.tensor(0.61, device=device)
    got = mla_decode_q_prep(q.to(device), w.to(device), scale, stored).cpu()
    near = torch.isclose(got.float(), wanted.float(), rtol=0.13 if stored == FN else 0.01)
    assert bool(near.all())
    assert bool(same(got, wanted)[..., 96:].all())
    assert float((~same(got, wanted)).float().mean()) < (1e-3 if stored == FN else 1e-2)


def test_a_cache_with_heads_before_rows(device):
    """Such blocks cannot be flattened, so the reference writes a copy that is laid out plainly."""
    op = "unified_kv_cache_update"
    case = Case(T=9)
    key, value, cache, *rest = getattr(case, op)()
    plain = torch.zeros(cache.shape).to(FN)
    turned = plain.transpose(2, 3).contiguous().transpose(2, 3).to(device)
    module_of(op, "reference").unified_kv_cache_update(key, value, plain, *rest)
    key, value, *rest = (x.to(device) for x in (key, value, *rest))
    module_of(op).unified_kv_cache_update(key, value, turned, *rest)
    assert plain.float().any()
    assert bool(same(turned.cpu().contiguous(), plain).all())


def test_rows_two_gigabytes_away():
    """Of which only the pages that are written exist."""
    op, case = "fused_qk_rope_concat_and_cache_mla", Case(N=1, slots=torch.tensor([2, 0, -1]))
    inputs, rest = getattr(case, op)()[:4], getattr(case, op)()[6:]

    def outputs(stride):
        memory = (torch.UntypedStorage(2 * stride + 64) for _ in range(2))
        shape, strides = (3, case.L + case.R), (stride, 1)
        cache, q_out = (torch.empty(0, dtype=FN).set_(m, 0, shape, strides) for m in memory)
        return cache.copy_(torch.zeros(())), q_out[:, None]

    near, far = outputs(64), outputs(2**30)
    getattr(module_of(op, "reference"), op)(*inputs, *near, *rest)
    getattr(module_of(op), op)(*inputs, *far, *rest)
    for wanted, got in zip(near, far, strict=True):
        assert wanted[2].float().any()
        assert bool(same(got.contiguous(), wanted.contiguous()).all())


@triton.jit
def unrounded(x, DTYPE: tl.constexpr):
    return x


@triton.jit
def beside(slots_ptr, token, num_mapped, num_slots):
    """Slots as they come, but the first that is outside counts as inside."""
    slot = tl.load(slots_ptr + token, mask=token < num_mapped, other=-1).to(tl.int64)
    return slot, (slot >= 0) & (slot <= num_slots)


@pytest.mark.parametrize(
    ("ops", "place", "name", "broken"),
    [(WRITING, triton_rows, "slot_of", beside), (ROTATING, triton_math, "rounded", unrounded)],
    ids=["slot_of", "rounded"],
)
def test_a_broken_kernel_is_noticed(ops, place, name, broken, monkeypatch):
    for op in ops:
        more = {"T": 20, "N": 2, "R": 16, "L": 16}
        check(op, "cpu", **more)
        with monkeypatch.context() as patch:
            for module in (place, module_of(op)):
                if hasattr(module, name):
                    patch.setattr(module, name, broken)
            with pytest.raises(AssertionError, match="elements of argument"):
                check(op, "cpu", **more)


def test_a_product_that_is_not_rounded_is_noticed(monkeypatch):
    op = "mla_decode_q_prep"
    monkeypatch.setattr(module_of(op), "rounded", unrounded)
    with pytest.raises(AssertionError, match="elements of argument"):
        check(op, "cpu", T=40, L=40)
