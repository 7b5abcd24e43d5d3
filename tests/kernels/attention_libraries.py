"""Stand-ins for AITER's and FlashInfer's decode attention, and requests to attend for.

Each stand-in takes the library's own lists, checks what the library checks, and answers with the
reference over a block table rebuilt from those lists.
"""

from __future__ import annotations

import math
import types

import torch

from mlalab_kernels.mla_decode_attention import reference
from mlalab_kernels.numerics import quantize

BF16, FP16, FP8 = torch.bfloat16, torch.float16, torch.float8_e4m3fn
L, R, SCALE = 512, 64, 0.1
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


def aiter_modules(calls):
    """Return packages by name that keep the arguments of every call in `calls`."""

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
    return {"aiter": package, "aiter.mla": module}


class Metadata:
    @classmethod
    def csr(cls, *lists):
        made = cls()
        made.lists = lists
        return made


class BatchMLAPagedAttentionWrapper:
    calls: list  # set by a subclass

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
        self.calls.append(self.planned)

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


def flashinfer_modules(calls):
    """Return packages by name that keep every plan in `calls`."""
    package, module = types.ModuleType("flashinfer"), types.ModuleType("flashinfer.mla")
    module.MLAPlanMetadata = Metadata
    module.BatchMLAPagedAttentionWrapper = type(
        "Wrapper", (BatchMLAPagedAttentionWrapper,), {"calls": calls}
    )
    return {"flashinfer": package, "flashinfer.mla": module}
