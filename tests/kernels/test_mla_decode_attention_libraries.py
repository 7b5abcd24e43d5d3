"""What AITER's and FlashInfer's decode attention are called with, by stand-ins that compute."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from mlalab import kernels
from mlalab.env import Availability
from mlalab_kernels.mla_decode_attention import aiter_call, flashinfer_call
from mlalab_kernels.mla_decode_attention.lengths import DeviceLengths
from mlalab_kernels.mla_decode_attention.library_lists import check_call
from mlalab_kernels.refusal import RefusedError
from tests.kernels.attention_libraries import (
    BF16,
    CPU,
    FP8,
    FP16,
    Case,
    L,
    aiter_modules,
    flashinfer_modules,
)

OP = "mla_decode_attention"


@pytest.fixture
def aiter(monkeypatch):
    """Put a stand-in for `aiter.mla` in place; returns the arguments of every call."""
    calls = []
    for name, module in aiter_modules(calls).items():
        monkeypatch.setitem(sys.modules, name, module)
    return calls


@pytest.fixture
def flashinfer(monkeypatch):
    """Put a stand-in for `flashinfer.mla` in place on an sm_90; returns every plan."""
    calls = []
    for name, module in flashinfer_modules(calls).items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(flashinfer_call, "arch_of", lambda device: "sm_90")
    wrapper = flashinfer_call._wrapper
    wrapper.cache_clear()
    yield calls
    wrapper.cache_clear()


UNIFORM = [
    {},
    {"query_lens": (1,), "seq_lens": (1,)},
    {"query_lens": (2, 2), "seq_lens": (2, 31)},
    {"heads": 128, "block_size": 1},
    {"padding": 2},
]


@pytest.mark.parametrize("dtype", [BF16, FP8])
@pytest.mark.parametrize("sizes", UNIFORM)
def test_aiter_attends_as_the_reference_does(aiter, sizes, dtype):
    case = Case(**sizes, dtype=dtype)
    out, lse = case.run(aiter_call.mla_decode_attention, need_lse=False)
    torch.testing.assert_close(out, case.expected()[0], rtol=1e-2, atol=1e-2)
    assert lse is None
    assert len(aiter) == 1


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("sizes", [*UNIFORM, {"query_lens": (1, 3), "seq_lens": (5, 40)}])
def test_flashinfer_attends_as_the_reference_does(flashinfer, sizes, dtype):
    case = Case(**sizes, dtype=dtype)
    out, lse = case.run(flashinfer_call.mla_decode_attention)
    wanted, wanted_lse = case.expected()
    torch.testing.assert_close(out, wanted, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(lse, wanted_lse)
    assert out.dtype == lse.dtype == torch.float32


def test_padding_gets_zero_and_minus_infinity(flashinfer):
    out, lse = Case(padding=2).run(flashinfer_call.mla_decode_attention)
    assert (out[3:] == 0).all()
    assert (lse[3:] == -torch.inf).all()


def test_one_wrapper_plans_every_batch_and_strided_queries_are_made_dense(flashinfer):
    for heads in (16, 128):
        case = Case(heads=heads)
        case.q = case.q.transpose(0, 1).contiguous().transpose(0, 1)
        out, _ = case.run(flashinfer_call.mla_decode_attention)
        torch.testing.assert_close(out, case.expected()[0], rtol=1e-2, atol=1e-2)
    assert flashinfer[0]["self"] is flashinfer[1]["self"]
    assert flashinfer[0]["self"].backend == "fa3"


COMMON = [
    ({"query_lens": (), "seq_lens": ()}, "at least one new token"),
    ({"query_lens": (1, 0), "seq_lens": (4, 4)}, "at least one new token"),
    ({"query_lens": (1, 1), "seq_lens": (4, 0)}, "at least one new token"),
    ({"latent": 256}, "L = 512, R = 64; got 256, 64"),
    ({"dtype": BF16, "cache": FP8}, "float8_e4m3fn"),
    ({"dtype": torch.float32}, "float32"),
]


@pytest.mark.parametrize(
    ("sizes", "why"),
    [
        *COMMON,
        ({"heads": 32}, "16 or 128 heads; got 32"),
        ({"dtype": FP16}, "float16"),
        ({"query_lens": (1, 2), "seq_lens": (4, 4)}, "as many new tokens of each request"),
        ({"query_lens": (5,), "seq_lens": (5,)}, "at most 4"),
    ],
)
def test_aiter_refuses_what_it_has_no_kernel_for(aiter, sizes, why):
    with pytest.raises(RefusedError, match=why):
        Case(**sizes).run(aiter_call.mla_decode_attention, need_lse=False)
    assert not aiter


def test_aiter_refuses_where_the_log_sum_exp_is_needed(aiter):
    with pytest.raises(RefusedError, match="no log-sum-exp"):
        Case().run(aiter_call.mla_decode_attention)
    assert not aiter


@pytest.mark.parametrize(
    ("sizes", "why"),
    [*COMMON, ({"dtype": FP8}, "FP8 cache only"), ({"heads": 96}, "cannot plan.*tile boundary")],
)
def test_flashinfer_refuses_what_it_has_no_kernel_for(flashinfer, sizes, why):
    with pytest.raises(RefusedError, match=why):
        Case(**sizes).run(flashinfer_call.mla_decode_attention)
    assert not flashinfer


def test_flashinfer_refuses_an_architecture_it_has_other_kernels_for(flashinfer, monkeypatch):
    monkeypatch.setattr(flashinfer_call, "arch_of", lambda device: "sm_100")
    with pytest.raises(RefusedError, match=r"sm_80, .*sm_90; this is sm_100"):
        Case().run(flashinfer_call.mla_decode_attention)


def test_a_kernel_that_cannot_be_built_is_tried_once_and_told_of(flashinfer, monkeypatch):
    monkeypatch.setattr(flashinfer_call, "_unbuilt", {})
    case = Case(heads=97)
    with pytest.warns(UserWarning, match="no nvcc; another provider serves"):  # noqa: SIM117
        with pytest.raises(RefusedError, match="no nvcc"):
            case.run(flashinfer_call.mla_decode_attention)
    with pytest.raises(RefusedError, match="no nvcc"):
        case.run(flashinfer_call.mla_decode_attention)
    with pytest.raises(RefusedError, match="no nvcc"):
        Case().run(flashinfer_call.mla_decode_attention)
    Case(dtype=FP16).run(flashinfer_call.mla_decode_attention)


def test_a_device_without_room_is_no_refusal(flashinfer):
    with pytest.raises(torch.OutOfMemoryError):
        Case(heads=98).run(flashinfer_call.mla_decode_attention)


def test_while_a_graph_is_captured_both_refuse(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    q = types.SimpleNamespace(is_cuda=True)
    with pytest.raises(RefusedError, match="a CUDA graph cannot hold"):
        check_call("FlashInfer", q, Case().cache, [1], [1], L)


def test_before_a_graph_is_captured_both_refuse_too():
    """What is warmed up must be what is captured."""
    lengths = DeviceLengths.of([1], [1], torch.device("cpu"))
    check_call("AITER", torch.empty(1, 16, L + 64), Case().cache, [1], [1], L, lengths)
    with pytest.raises(RefusedError, match="a CUDA graph cannot hold"):
        check_call("AITER", Case().q, Case().cache, [1], [1], L, lengths._replace(changing=True))


@pytest.mark.parametrize("module", [aiter_call, flashinfer_call])
def test_a_cache_that_is_not_dense_is_refused(aiter, flashinfer, module):
    case = Case()
    case.cache = torch.cat((case.cache, case.cache), -1)[..., : case.width]
    with pytest.raises(RefusedError, match="reads the cache as it lies"):
        case.run(module.mla_decode_attention, need_lse=False)


def test_another_package_called_aiter_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "aiter", types.ModuleType("aiter"))
    monkeypatch.delitem(sys.modules, "aiter.mla", raising=False)
    with pytest.raises(RuntimeError, match=r"mla_decode_fwd cannot be imported.*ROCm/aiter"):
        Case().run(aiter_call.mla_decode_attention, need_lse=False)


@pytest.fixture
def cuda_machine(monkeypatch):
    """Have CPU tensors served as a CUDA machine serves its own, with FlashInfer ready."""
    monkeypatch.setattr(kernels, "_place", lambda device_type: "CUDA")
    for probe in ("probe_flashinfer", "probe_triton"):
        monkeypatch.setattr(kernels, probe, lambda: Availability(True, "ready"))
    caches = (kernels._choose, kernels._in_line)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def test_a_refused_call_is_served_by_triton_and_the_next_by_the_library(
    cuda_machine, flashinfer, monkeypatch
):
    by_triton = []
    triton = types.ModuleType("stand_in")
    triton.mla_decode_attention = lambda *a, **k: by_triton.append(k) or "by triton"
    monkeypatch.setitem(sys.modules, "stand_in", triton)
    monkeypatch.setitem(kernels._TABLE[OP], "triton", "stand_in")
    kernels._load.cache_clear()
    try:
        serve = kernels.pick(OP, CPU)
        assert kernels.choice(OP, CPU) == ("flashinfer", "CUDA tensors")
        assert Case(dtype=FP8).run(serve, need_lse=False) == "by triton"
        case = Case()
        out, _ = case.run(serve, need_lse=False)
    finally:
        kernels._load.cache_clear()
    assert by_triton == [{"need_lse": False}]
    torch.testing.assert_close(out, case.expected()[0], rtol=1e-2, atol=1e-2)


def test_a_forced_library_tells_what_it_refuses(cuda_machine, flashinfer):
    with kernels.force("flashinfer"), pytest.raises(RefusedError, match="FP8 cache only"):
        Case(dtype=FP8).run(kernels.pick(OP, CPU))


def test_an_error_that_is_no_refusal_is_not_handed_on(cuda_machine, flashinfer, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(flashinfer_call, "_wrapper", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        Case().run(kernels.pick(OP, CPU))
