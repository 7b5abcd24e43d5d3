"""The interpreter's arithmetic, against torch and against rounding done by hand."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from mlalab_kernels._interpreter import interpret

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
FP8 = [torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2]
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(x):
    return x.contiguous().view(INTEGERS[x.element_size()])


def every(dtype):
    """Every value of an 8-bit or 16-bit type."""
    if dtype.itemsize == 1:
        return torch.arange(256, dtype=torch.uint8).view(dtype)
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)


def probes():
    """Random bit patterns, every bf16, and all ties of the narrow types with their neighbours."""
    found = [torch.randint(-(2**31), 2**31, (2**15,)).to(torch.int32).view(F32)]
    found += [every(BF16).float(), torch.tensor([torch.inf, -torch.inf, torch.nan, -0.0, 1e-45])]
    for dtype in (*FP8, BF16):
        values = every(dtype).float()
        values = values[values.isfinite()].sort().values[:: 7 if dtype == BF16 else 1]
        ties = values[:-1] + (values[1:] - values[:-1]) / 2
        found += [values, ties, ties.nextafter(torch.tensor(9e9)), ties.nextafter(-values[-1:])]
    return torch.cat(found)


@triton.jit
def convert(x_ptr, out_ptr, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    x = tl.load(x_ptr + i, mask=i < n, other=0.0)
    tl.store(out_ptr + i, x.to(out_ptr.dtype.element_ty), mask=i < n)


def converted(x, dtype):
    out = torch.empty(x.shape, dtype=dtype)
    interpret(convert, (triton.cdiv(x.numel(), 65536),), x, out, x.numel(), B=65536)
    return out


def nearest_code(x, dtype):
    """Round fp32 to the nearest code of an FP8 type in fp64, ties to the even code, saturating."""
    codes = torch.arange(128, dtype=torch.uint8)
    values = codes.view(dtype).double()
    codes, values = codes[values.isfinite()], values[values.isfinite()]
    size = x.double().abs().clamp(max=values[-1].item())
    above = torch.searchsorted(values, size).clamp(1, len(values) - 1)
    low, high = size - values[above - 1], values[above] - size
    up = (high < low) | ((high == low) & (codes[above] % 2 == 0))
    code = torch.where(up, codes[above], codes[above - 1])
    signed = code | (x.signbit().to(torch.uint8) << 7)
    # The fnuz types have no negative zero: its code is NaN.
    return torch.where(code == 0, code, signed) if dtype == torch.float8_e4m3fnuz else signed


@pytest.mark.parametrize("dtype", FP8)
def test_fp32_to_fp8_rounds_to_nearest_and_saturates(dtype):
    x = probes()
    out, number = converted(x, dtype), ~x.isnan()
    assert torch.equal(bits(out)[number], nearest_code(x, dtype)[number])
    assert out.float().isnan().equal(~number)
    largest = torch.finfo(dtype).max
    assert torch.equal(bits(out)[number], bits(x.clamp(-largest, largest).to(dtype))[number])


def test_fp32_to_bf16_rounds_to_nearest():
    x = probes()
    out, word = converted(x, BF16), bits(x).long() & 0xFFFFFFFF
    by_hand = ((word + 0x7FFF + ((word >> 16) & 1)) >> 16).to(torch.int16)
    number = ~x.isnan()
    assert torch.equal(bits(out)[number], by_hand[number])
    assert out.isnan().equal(~number)
    assert torch.equal(bits(out), bits(x.to(BF16)))


@pytest.mark.parametrize("wide", [F32, F16, BF16])
@pytest.mark.parametrize("narrow", [BF16, F16, *FP8])
def test_every_narrow_value_converts_as_in_torch(narrow, wide):
    x = every(narrow)
    out, expected = converted(x, wide), x.to(wide)
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(bits(out)[~out.isnan()], bits(expected)[~out.isnan()])


@pytest.mark.parametrize("dtype", FP8)
@pytest.mark.parametrize("source", [BF16, F16, torch.float64])
def test_other_floats_to_fp8_go_through_fp32(source, dtype):
    x = probes()[::3].to(source)
    assert torch.equal(bits(converted(x, dtype)), bits(converted(x.float(), dtype)))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64])
def test_bf16_to_and_from_integers(dtype):
    x = torch.linspace(-120, 120, 1001).to(BF16)
    assert torch.equal(converted(x, dtype), x.to(dtype))
    assert torch.equal(converted(x.to(dtype), BF16), x.to(dtype).to(BF16))


@triton.jit
def binary(x_ptr, y_ptr, out_ptr, B: tl.constexpr, OP: tl.constexpr):
    i = tl.arange(0, B)
    x, y = tl.load(x_ptr + i), tl.load(y_ptr + i)
    if OP == "add":
        z = x + y
    elif OP == "sub":
        z = x - y
    elif OP == "mul":
        z = x * y
    elif OP == "scalar":
        z = x * 3.0 - 1.5 + tl.full((B,), 0.3, tl.bfloat16)
    elif OP == "negate":
        z = -x + tl.abs(y)
    elif OP == "less":
        z = tl.where(x < y, x, y)
    elif OP == "minimum":
        z = tl.minimum(x, y)
    elif OP == "maximum":
        z = tl.maximum(x, y)
    elif OP == "clamp":
        z = tl.clamp(x, -tl.abs(y), tl.abs(y))
    elif OP == "fma":
        z = tl.fma(x, y, x)
    tl.store(out_ptr + i, z)


BINARY = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "scalar": lambda x, y: x * 3.0 - 1.5 + torch.tensor(0.3, dtype=BF16),
    "negate": lambda x, y: -x + y.abs(),
    "less": lambda x, y: torch.where(x < y, x, y),
    "minimum": torch.fmin,
    "maximum": torch.fmax,
    "clamp": lambda x, y: torch.fmin(torch.fmax(x, -y.abs()), y.abs()),
    "fma": lambda x, y: (x.double() * y.double() + x.double()).to(F32).to(BF16),
}


@pytest.mark.parametrize("op", BINARY)
def test_bf16_arithmetic_rounds_once(op):
    x = every(BF16)
    x = x[x.isfinite()][:65024][torch.randperm(65024)[:32768]]
    y = x.flip(0) if op != "fma" else torch.randn(32768).to(BF16)
    x = x if op != "fma" else torch.randn(32768).to(BF16)
    x[:3], y[3:5] = torch.tensor([torch.nan, 1, torch.inf]), torch.tensor([torch.nan, -torch.inf])
    out = torch.empty_like(x)
    interpret(binary, (1,), x, y, out, B=32768, OP=op)
    expected = BINARY[op](x, y)
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out[~out.isnan()], expected[~out.isnan()])


@triton.jit
def fill(out_ptr, B: tl.constexpr):
    tl.store(out_ptr + tl.arange(0, B), tl.full((B,), 0.3, out_ptr.dtype.element_ty))


@pytest.mark.parametrize("dtype", [F32, F16, BF16, *FP8])
def test_a_constant_is_rounded(dtype):
    if dtype in FP8 and triton.__version__.startswith("3.6."):
        pytest.skip("Triton 3.6 compiles no FP8 constant either")
    out = torch.empty(4, dtype=dtype)
    interpret(fill, (1,), out, B=4)
    assert torch.equal(bits(out), bits(torch.full((4,), 0.3).to(dtype)))


def test_fma_of_fp32_rounds_once():
    x, y = torch.randn(2, 32768)
    out = torch.empty(32768)
    interpret(binary, (1,), x, y, out, B=32768, OP="fma")
    assert torch.equal(out, (x.double() * y.double() + x.double()).float())
    assert not torch.equal(out, x * y + x)


@triton.jit
def clamp_keeping_nan(x_ptr, out_ptr, B: tl.constexpr):
    i = tl.arange(0, B)
    x = tl.clamp(tl.load(x_ptr + i), -1.0, 1.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(out_ptr + i, x)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_clamp_keeps_nan_only_when_asked(dtype):
    x = torch.tensor([torch.nan, -5.0, 0.5, 5.0], dtype=dtype)
    kept, dropped = torch.empty_like(x), torch.empty_like(x)
    interpret(clamp_keeping_nan, (1,), x, kept, B=4)
    interpret(binary, (1,), x, torch.ones_like(x), dropped, B=4, OP="clamp")
    assert kept.isnan().tolist() == [True, False, False, False]
    assert kept[1:].tolist() == dropped[1:].tolist() == [-1.0, 0.5, 1.0]
    assert not dropped.isnan().any()


@triton.jit
def dot(a_ptr, b_ptr, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    at = i[:, None] * N + i[None, :]
    product = tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at), input_precision="ieee")
    tl.store(out_ptr + at, tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at), acc=product))


@pytest.mark.parametrize("dtype", [F32, F16, BF16, *FP8])
def test_dot_accumulates_in_fp32(dtype):
    # Sums of small integers are exact in any order.
    a, b = (torch.randint(-8, 9, (32, 32)).to(dtype) for _ in "ab")
    out = torch.empty(32, 32)
    interpret(dot, (1,), a, b, out, N=32)
    assert torch.equal(out, 2 * (a.float() @ b.float()))


@triton.jit
def softmax(x_ptr, out_ptr, N: tl.constexpr):
    row = tl.program_id(0) * N + tl.arange(0, N)
    x = tl.load(x_ptr + row)
    x = x.to(tl.float32) - tl.max(x, 0)
    x = tl.exp(x) / tl.sum(tl.exp(x), 0)
    tl.store(out_ptr + row, x)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_softmax(dtype):
    x, out = torch.randn(5, 64).to(dtype), torch.empty(5, 64)
    x[:, 7] = -torch.inf
    interpret(softmax, (5,), x, out, N=64)
    torch.testing.assert_close(out, x.float().softmax(-1), rtol=1e-6, atol=1e-7)


@triton.jit
def sum_as_it_is(x_ptr, out_ptr, N: tl.constexpr):
    tl.store(out_ptr, tl.sum(tl.load(x_ptr + tl.arange(0, N)), 0))


def test_a_sum_of_bf16_is_refused():
    x = torch.ones(8)
    interpret(sum_as_it_is, (1,), x, out := torch.empty(1), N=8)
    assert out.item() == 8
    with pytest.raises(Exception, match=r"reduction or scan of bf16.*widen"):
        interpret(sum_as_it_is, (1,), x.to(BF16), out.to(BF16), N=8)
