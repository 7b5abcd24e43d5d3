"""FP8 conversion, cache rows, and the fused reference against the two steps it stands for."""

from __future__ import annotations

import pytest
import torch

from mlalab_kernels.fused_rope_unified_mla_kv_cache_update.reference import (
    fused_rope_unified_mla_kv_cache_update,
)
from mlalab_kernels.numerics import (
    FP8_DTYPES,
    dequantize,
    gather_cos_sin,
    quantize,
    rotate,
    write_rows,
)
from mlalab_kernels.unified_mla_kv_cache_update.reference import unified_mla_kv_cache_update

FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
LARGEST = {FN: 448.0, FNUZ: 240.0}
ONE = torch.ones(())
N, L, R, M, SLOTS = 3, 24, 16, 37, 80


def bits(x):
    """Return the bytes of a tensor, so that NaN equals NaN and -0 differs from 0."""
    return x.contiguous().view(torch.uint8)


@pytest.mark.parametrize("dtype", FP8_DTYPES)
class TestQuantize:
    def test_saturates(self, dtype):
        huge = torch.tensor([1e9, -1e9, torch.inf, -torch.inf, LARGEST[dtype] * 1.01])
        stored = quantize(huge, ONE, dtype).float()
        assert stored.tolist() == [LARGEST[dtype] * sign for sign in (1, -1, 1, -1, 1)]

    def test_keeps_nan(self, dtype):
        stored = quantize(torch.tensor([torch.nan, 1.0]), ONE, dtype)
        assert stored.float().isnan().tolist() == [True, False]

    def test_negative_zero(self, dtype):
        stored = quantize(torch.tensor([-0.0, -1e-9]), ONE, dtype)
        assert bits(stored).tolist() == ([0x80, 0x80] if dtype == FN else [0, 0])

    def test_ties_go_to_even(self, dtype):
        middles = torch.tensor([1.0625, 1.1875, -1.0625, 17.0, 19.0])
        assert quantize(middles, ONE, dtype).float().tolist() == [1.0, 1.25, -1.0, 16.0, 20.0]

    def test_every_byte_survives_a_round_trip(self, dtype):
        every = torch.arange(256, dtype=torch.uint8).view(dtype)
        every = every[~every.float().isnan()]
        for scale in (ONE, torch.tensor(0.25)):
            wide = dequantize(every, scale, torch.float32)
            assert torch.equal(bits(quantize(wide, scale, dtype)), bits(every))

    def test_multiplies_by_the_reciprocal(self, dtype):
        x, scale = torch.linspace(-3, 3, 4001), torch.tensor(0.3)
        product = (x * (1 / scale)).to(dtype)
        assert torch.equal(bits(quantize(x, scale, dtype)), bits(product))
        # Not the same as a division, and not the same as the product with the scale.
        assert not torch.equal(x / scale, x * (1 / scale))
        assert not torch.equal(bits((x * scale).to(dtype)), bits(product))

    @pytest.mark.parametrize("shape", [(), (1,)])
    def test_scale_has_one_element_of_any_shape(self, dtype, shape):
        x, scale = torch.full((2, 5), 3.0), torch.full(shape, 1.5)
        stored = quantize(x, scale, dtype)
        assert stored.float().tolist() == [[2.0] * 5] * 2
        assert torch.equal(dequantize(stored, scale, torch.bfloat16), x.bfloat16())

    def test_half_precision_is_scaled_in_fp32(self, dtype):
        x, scale = torch.full((3,), 60000.0, dtype=torch.float16), torch.tensor(1e5)
        assert scale.half().isinf()
        assert quantize(x, scale, dtype).float().tolist() == [0.625] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes_are_only_cast(dtype):
    x = torch.randn(7)
    assert torch.equal(quantize(x, torch.tensor(0.1), dtype), x.to(dtype))
    assert torch.equal(dequantize(x, torch.tensor(0.1), dtype), x.to(dtype))


def test_positions_outside_read_the_nearest_row():
    table = torch.arange(12.0).view(3, 4)
    cos, sin = gather_cos_sin(table, torch.tensor([-5, 0, 2, 3, 2**40]))
    assert torch.equal(torch.cat((cos, sin), -1), table[[0, 0, 2, 2, 2]])


def cache_of(dtype):
    """Return a cache full of a pattern that no row written here has."""
    storage = torch.full((SLOTS, L + R), 0x55, dtype=torch.uint8)
    return storage.view(dtype) if dtype in FP8_DTYPES else storage.to(dtype)


CACHES = [torch.float32, torch.bfloat16, FN, FNUZ]


@pytest.mark.parametrize("dtype", CACHES)
def test_skipped_rows_keep_their_bits(dtype):
    slots = torch.tensor([5, -1, SLOTS, 0, -7, 2**40, SLOTS - 1])
    kv_c, k_pe = torch.randn(9, L), torch.randn(9, R)
    cache = cache_of(dtype)
    write_rows(cache, slots, kv_c, k_pe, torch.tensor(0.5))
    rows = quantize(torch.cat((kv_c, k_pe), -1), torch.tensor(0.5), dtype)
    expected = cache_of(dtype)
    for token, slot in ((0, 5), (3, 0), (6, SLOTS - 1)):
        expected.view(torch.uint8)[slot] = rows.view(torch.uint8)[token]
    assert torch.equal(bits(cache), bits(expected))


@pytest.mark.parametrize("dtype", CACHES)
def test_two_tokens_for_one_slot_do_not_crash(dtype):
    cache = cache_of(dtype)
    write_rows(cache, torch.tensor([3, 3]), torch.randn(2, L), torch.randn(2, R), ONE)
    changed = (bits(cache) != bits(cache_of(dtype))).any(-1)
    assert changed.nonzero().flatten().tolist() == [3]


class Case:
    """Inputs of the fused reference, strided as in a layer; `run` returns all it wrote."""

    def __init__(self, tokens, dtype, cache_dtype, table_dtype):
        self.q = torch.randn(tokens, N, 8 + R).to(dtype)
        self.latent = torch.randn(tokens, L + R).to(dtype)
        self.positions = torch.randint(M, (tokens,))
        angles = torch.randn(M, R // 2)
        self.table = torch.cat((angles.cos(), angles.sin()), -1).to(table_dtype)
        self.slots = torch.randperm(SLOTS)[: max(tokens - 1, 0)]
        self.slots[1::3] = -1
        self.cache_dtype, self.scale = cache_dtype, torch.tensor(0.37)

    def run(self, function, is_neox, in_fp32):
        q, latent, cache = self.q.clone(), self.latent.clone(), cache_of(self.cache_dtype)
        function(
            *(self.positions, q[..., 8:], latent[:, L:], latent[:, :L], self.table, is_neox),
            *(cache, self.slots, self.scale, in_fp32),
        )
        return q, latent, cache


def two_steps(positions, q_pe, k_pe, kv_c, table, is_neox, cache, slots, scale, in_fp32):
    cos, sin = table[positions].chunk(2, dim=-1)
    q_pe.copy_(rotate(q_pe, cos, sin, is_neox, in_fp32))
    k_pe.copy_(rotate(k_pe[:, None], cos, sin, is_neox, in_fp32)[:, 0])
    unified_mla_kv_cache_update(kv_c, k_pe, cache, slots, scale)


def assert_same(case, reference, is_neox, in_fp32):
    fused = case.run(fused_rope_unified_mla_kv_cache_update, is_neox, in_fp32)
    expected = case.run(reference, is_neox, in_fp32)
    for name, a, b in zip(("q", "latent", "cache"), fused, expected, strict=True):
        assert torch.equal(bits(a), bits(b)), name


@pytest.mark.parametrize("in_fp32", [True, False])
@pytest.mark.parametrize("is_neox", [False, True])
@pytest.mark.parametrize("cache_dtype", [None, FN, FNUZ])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [0, 1, 3, 63])
def test_fused_is_rotate_then_write(tokens, dtype, cache_dtype, is_neox, in_fp32):
    for table_dtype in {torch.float32, dtype}:
        case = Case(tokens, dtype, cache_dtype or dtype, table_dtype)
        assert_same(case, two_steps, is_neox, in_fp32)


def negate_sin(p, q, k, c, table, *rest):
    cos, sin = table.chunk(2, -1)
    two_steps(p, q, k, c, torch.cat((cos, -sin), -1), *rest)


def ignore_scale(*arguments):
    two_steps(*arguments[:-2], ONE, arguments[-1])


def flip_pairing(p, q, k, c, table, is_neox, *rest):
    two_steps(p, q, k, c, table, not is_neox, *rest)


def other_arithmetic(*arguments):
    two_steps(*arguments[:-1], not arguments[-1])


def shift_slots(*arguments):
    *first, cache, slots, scale, in_fp32 = arguments
    two_steps(*first, cache, torch.where(slots < 0, slots, (slots + 1) % SLOTS), scale, in_fp32)


def write_padding(*arguments):
    *first, cache, slots, scale, in_fp32 = arguments
    two_steps(*first, cache, slots % SLOTS, scale, in_fp32)


def write_before_rotating(p, q, k, c, table, is_neox, cache, slots, scale, in_fp32):
    unified_mla_kv_cache_update(c, k, cache, slots, scale)
    two_steps(p, q, k, c, table, is_neox, cache, slots[:0], scale, in_fp32)


BROKEN = [
    *(negate_sin, ignore_scale, flip_pairing, other_arithmetic, shift_slots, write_padding),
    write_before_rotating,
]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda f: f.__name__)
def test_a_broken_reference_is_noticed(broken):
    case = Case(63, torch.bfloat16, FN, torch.float32)
    with pytest.raises(AssertionError):
        assert_same(case, broken, is_neox=False, in_fp32=True)


@pytest.mark.parametrize(("cache", "slots"), [(None, None), (cache_of(FN), None), (None, 0)])
def test_without_slots_it_only_rotates(cache, slots):
    case = Case(5, torch.float32, FN, torch.float32)

    def no_slots(*arguments):
        mapping = None if slots is None else case.slots
        fused_rope_unified_mla_kv_cache_update(*arguments[:6], cache, mapping, *arguments[8:])

    rotated, latent, _ = case.run(no_slots, False, True)
    expected = case.run(two_steps, False, True)
    assert torch.equal(rotated, expected[0])
    assert torch.equal(latent, expected[1])
    assert cache is None or torch.equal(bits(cache), bits(cache_of(FN)))
