"""FlashInfer's decode attention, called as the sources of 0.7.2.post1 say; never run by us.

A plan is made on the host from the lengths of a batch, at every call: the op does not know which
layers share one. The first plan of a kind compiles FlashInfer's kernel.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from mlalab_kernels.launch import arch_of
from mlalab_kernels.mla_decode_attention.lengths import DeviceLengths
from mlalab_kernels.mla_decode_attention.library_lists import (
    check_call,
    padded,
    request_and_place,
    starts_of,
)
from mlalab_kernels.refusal import RefusedError

_BACKENDS = {"sm_80": "fa2", "sm_86": "fa2", "sm_89": "fa2", "sm_90": "fa3"}
"""Architecture → which of FlashInfer's kernels; later ones have kernels of another interface."""
_WORKSPACE_BYTES = 128 << 20
_unbuilt: dict[tuple[str, torch.dtype], str] = {}
"""Kernels that could not be made ready → why."""


def mla_decode_attention(
    q_TNC: Tensor,
    kv_cache_BKC: Tensor,
    block_table: Tensor,
    query_lens: Sequence[int],
    seq_lens: Sequence[int],
    softmax_scale: float,
    kv_lora_rank: int,
    q_scale: Tensor,
    k_scale: Tensor,
    need_lse: bool = True,
    lengths: DeviceLengths | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attend as the reference does; rounds the result to the query's type on the way.

    The log-sum-exp is asked for to base e, and given even where it is not needed.

    Raises:
        RefusedError: FlashInfer has no kernel for these arguments.
    """
    backend = _backend(q_TNC, kv_cache_BKC)
    check_call("FlashInfer", q_TNC, kv_cache_BKC, query_lens, seq_lens, kv_lora_rank, lengths)
    stream = torch.cuda.current_stream(q_TNC.device) if q_TNC.is_cuda else None
    wrapper, copied = _wrapper(q_TNC.device, backend, stream)
    if copied is not None:
        # A plan goes to the device from memory that the next one may overwrite.
        copied.synchronize()
    plan = functools.partial(
        wrapper.plan,
        metadata=_metadata(block_table, query_lens, seq_lens, kv_cache_BKC.size(1)),
        num_heads=q_TNC.size(1),
        head_dim_ckv=kv_lora_rank,
        head_dim_kpe=q_TNC.size(-1) - kv_lora_rank,
        page_size=kv_cache_BKC.size(1),
        causal=max(query_lens) > 1,
        sm_scale=softmax_scale,
        q_data_type=q_TNC.dtype,
        kv_data_type=kv_cache_BKC.dtype,
        lse_mode="basee",
    )
    _try(plan, (backend, q_TNC.dtype))
    if copied is not None:
        copied.record(stream)
    out_TNL, lse_TN = wrapper.run(
        query=q_TNC[: sum(query_lens)].contiguous(),
        kv_cache=kv_cache_BKC,
        return_lse=True,
        return_lse_base_on_e=True,
    )
    return padded(out_TNL, lse_TN, q_TNC.size(0))


def _metadata(
    block_table: Tensor, query_lens: Sequence[int], seq_lens: Sequence[int], page_size: int
) -> Any:
    """Return FlashInfer's description of a batch; what its plan reads stays on the host."""
    pages = [-(-length // page_size) for length in seq_lens]
    return import_module("flashinfer.mla").MLAPlanMetadata.csr(
        starts_of(query_lens),
        starts_of(pages),
        block_table[request_and_place(pages, block_table.device)].to(torch.int32),
        torch.tensor(list(seq_lens), dtype=torch.int32),
    )


def _try(plan: Callable[[], None], kind: tuple[str, torch.dtype]) -> None:
    """Plan, or refuse: nothing is launched before a plan is made."""
    if kind in _unbuilt:
        raise RefusedError(_unbuilt[kind])
    try:
        plan()
    except ValueError as error:
        raise RefusedError(f"FlashInfer cannot plan this batch: {error}") from error
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, OSError) as error:
        # Most likely there is no compiler; trying again would take as long and end alike.
        _unbuilt[kind] = f"FlashInfer's kernel could not be made ready: {error}"
        warnings.warn(f"{_unbuilt[kind]}; another provider serves.", stacklevel=2)
        raise RefusedError(_unbuilt[kind]) from error


def _backend(q_TNC: Tensor, kv_cache_BKC: Tensor) -> str:
    q, kv, arch = q_TNC.dtype, kv_cache_BKC.dtype, arch_of(q_TNC.device)
    if q != kv or q not in (torch.bfloat16, torch.float16):
        raise RefusedError(
            f"FlashInfer attends with query and cache both in bf16 or both in fp16, an FP8 cache "
            f"only with a bf16 query and scales known to the host; got {q} and {kv}."
        )
    if arch not in _BACKENDS:
        raise RefusedError(f"FlashInfer is called on {', '.join(_BACKENDS)}; this is {arch}.")
    return _BACKENDS[arch]


@functools.cache
def _wrapper(
    device: torch.device, backend: str, stream: torch.cuda.Stream | None
) -> tuple[Any, torch.cuda.Event | None]:
    """One workspace for each stream: calls on one stream wait for each other, others do not."""
    workspace = torch.empty(_WORKSPACE_BYTES, dtype=torch.uint8, device=device)
    wrapper = import_module("flashinfer.mla").BatchMLAPagedAttentionWrapper(
        workspace, backend=backend
    )
    return wrapper, None if stream is None else torch.cuda.Event()
