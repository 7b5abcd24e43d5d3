"""What AITER's and FlashInfer's decode attention are called with, by stand-ins that compute.

Each stand-in takes the library's own lists, checks what the library checks, and answers with the
reference over a block table rebuilt from those lists.
"""

from __future__ import annotations

import math
import sys
import types

import pytest
import torch

from mlalab import kernels
from mlalab.env import Availability
from mlalab_kernels.mla_decode_attention import aiter_call, flashinfer_call, reference
from mlalab_kernels.mla_decode_attention.library_lists import check_call
from mlalab_kernels.numerics import quantize
from mlalab_kernels.refusal import RefusedError

BF16, FP16, FP8 = torch.bfloat16, torch.float16, torch.float8_e4m3fn
L, R, SCALE = 512, 64, 0.1
OP = "mla_decode_attention"
CPU = torch.device("cpu")
FAILS = {
    96: ValueError("causal tile boundary is unsupported"),
    97: RuntimeError("no nvcc"),
    98: torch.OutOfMemoryError("full"),
}
"""Numbers of heads for which the stand-in for FlashInfer makes no plan."""


class Case:
    """Requests over a cache whose unused rows hold NaN, and a table that ends in garbage."""

    def __init__(
        self, query_lens=(1, 1, 1), seq_lens=(9, 1, 33), heads=16, dtype=BF16, cache=None,
        latent=L, block_size=16, padding=0,
    ):  # fmt: skip
        self.query_lens, self.seq_lens = query_lens, seq_lens
        self.latent, self.width = latent, latent + R
        used = [-(-n // block_size) for n in seq_lens]
        blocks = sum(used) + 1
        rows = torch.full((blocks, block_size, self.width), torch.nan)
        self.table = torch.full((len(used), max(used, default=0) + 2), -1, dtype=torch.int32)
        free = iter(torch.randperm(blocks).tolist())
        for request, (count, length) in enumerate(zip(used, seq_lens, strict=True)):
            own = torch.tensor([next(free) for _ in range(count)], dtype=torch.long)
            self.table[request, :count] = own
            filled = torch.full((count * block_size, self.width), torch.nan)
            filled[:length] = torch.randn(length, self.width)
            rows[own] = filled.view(count, block_size, self.width)
        self.q_scale, self.k_scale = torch.tensor(0.04), torch.tensor(0.05)
        self.cache = quantize(rows, self.k_scale, cache or dtype)
        tokens = sum(query_lens) + padding
        self.q = quantize(torch.randn(tokens, heads, self.width), self.q_scale, dtype)

    def run(self, function, **more):
        return function(
            *(self.q, self.cache, self.table, self.query_lens, self.seq_lens, SCALE, self.latent),
            *(self.q_scale, self.k_scale),
            **more,
        )

    def expected(self):
        out, lse = self.run(reference.mla_decode_attention)
        tokens = sum(self.query_lens)
        out[tokens:], lse[tokens:] = 0.0, -torch.inf
        return out, lse


def by_lists(q, pages, starts, page_starts, page_list, seq_lens, scale, q_scale, k_scale):
    """Attend by a library's lists: pages of request r are page_list[page_starts[r]:...]."""
    assert all(x.dtype == torch.int32 for x in (starts, page_starts, page_list))
    counts = page_starts.diff().tolist()
    table = torch.full((len(counts), max(counts)), -1, dtype=torch.int32)
    for request, own in enumerate(page_list.split(counts)):
        table[request, : len(own)] = own
    return reference.mla_decode_attention(
        *(q, pages, table, starts.diff().tolist(), seq_lens, scale, L, q_scale, k_scale)
    )


@pytest.fixture
def aiter(monkeypatch):
    """Put a stand-in for `aiter.mla` in place; returns the arguments of every call."""
    calls = []

    def mla_decode_fwd(
        q, kv_buffer, o, qo_indptr, kv_indptr, kv_indices, kv_last_page_lens, max_seqlen_q,
        page_size=1, nhead_kv=1, sm_scale=None, logit_cap=0.0, num_kv_splits=None,
        num_kv_splits_indptr=None, work_meta_data=None, work_indptr=None, work_info_set=None,
        reduce_indptr=None, reduce_final_map=None, reduce_partial_map=None, q_scale=None,
        kv_scale=None, intra_batch_mode=False, return_logits=False, return_lse=False,
    ):  # fmt: skip
        calls.append(dict(locals()))
        assert q.is_contiguous()
        assert kv_buffer.shape[1:] == (page_size, nhead_kv, L + R)
        assert o.dtype == BF16
        assert o.shape == (*q.shape[:2], L)
        lengths = kv_indptr.diff()
        assert (lengths >= 1).all()
        assert kv_last_page_lens.tolist() == [1] * len(lengths)
        assert kv_last_page_lens.dtype == torch.int32
        assert (qo_indptr.diff() == max_seqlen_q).all()
        if q.dtype == FP8:
            assert q_scale.shape == kv_scale.shape == (1,)
            assert q_scale.dtype == kv_scale.dtype == torch.float32
        else:
            q_scale = kv_scale = torch.ones(1)
        lists = (qo_indptr, kv_indptr, kv_indices, lengths.tolist())
        o.copy_(by_lists(q, kv_buffer.squeeze(2), *lists, sm_scale, q_scale, kv_scale)[0])
        return None, None

    package, module = types.ModuleType("aiter"), types.ModuleType("aiter.mla")
    module.mla_decode_fwd = mla_decode_fwd
    monkeypatch.setitem(sys.modules, "aiter", package)
    monkeypatch.setitem(sys.modules, "aiter.mla", module)
    return calls


@pytest.fixture
def flashinfer(monkeypatch):
    """Put a stand-in for `flashinfer.mla` in place on an sm_90; returns every plan and run."""
    calls = []

    class Metadata:
        @classmethod
        def csr(cls, *lists):
            made = cls()
            made.lists = lists
            return made

    class BatchMLAPagedAttentionWrapper:
        def __init__(self, float_workspace_buffer, *, backend):
            assert float_workspace_buffer.dtype == torch.uint8
            self.backend = backend

        def plan(
            self, *, metadata, num_heads, head_dim_ckv, head_dim_kpe, page_size, causal, sm_scale,
            q_data_type, kv_data_type, lse_mode="none",
        ):  # fmt: skip
            starts, page_starts, _, kv_lens = metadata.lists
            assert all(x.dtype == torch.int32 and x.is_contiguous() for x in metadata.lists)
            assert all(x.device == CPU for x in (starts, page_starts, kv_lens))
            assert page_starts.diff().tolist() == [-(-n // page_size) for n in kv_lens.tolist()]
            if num_heads in FAILS:
                raise FAILS[num_heads]
            self.planned = dict(locals())
            calls.append(self.planned)

        def run(self, *, query, kv_cache, return_lse=False, return_lse_base_on_e=False):
            p = self.planned
            assert p["lse_mode"] == ("basee" if return_lse_base_on_e else "base2")
            assert (query.dtype, kv_cache.dtype) == (p["q_data_type"], p["kv_data_type"])
            assert query.shape[1:] == (p["num_heads"], p["head_dim_ckv"] + p["head_dim_kpe"])
            assert kv_cache.size(1) == p["page_size"]
            starts, page_starts, pages, kv_lens = p["metadata"].lists
            assert p["causal"] or (starts.diff() == 1).all()
            out, lse = by_lists(
                *(query, kv_cache, starts, page_starts, pages, kv_lens.tolist()),
                *(p["sm_scale"], torch.ones(1), torch.ones(1)),
            )
            return out.to(query.dtype), lse if return_lse_base_on_e else lse / math.log(2)

    package, module = types.ModuleType("flashinfer"), types.ModuleType("flashinfer.mla")
    module.MLAPlanMetadata = Metadata
    module.BatchMLAPagedAttentionWrapper = BatchMLAPagedAttentionWrapper
    monkeypatch.setitem(sys.modules, "flashinfer", package)
    monkeypatch.setitem(sys.modules, "flashinfer.mla", module)
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
