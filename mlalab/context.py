"""The forward context: what an op finds by layer name while a graph runs.

A compiled graph holds only the layer's name; caches, slots and batch metadata change from step to
step and are looked up here at run time. The context is explicit and scoped: outside a
`with forward_context(...)` an op that needs it raises.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from mlalab.cache import PagedCache, slots_of
from mlalab.errors import ContextError, InputError
from mlalab_kernels.mla_decode_attention.lengths import DeviceLengths


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchMetadata:
    """The requests of one step, decode requests first.

    Args:
        query_lens: new tokens of each request in this step.
        context_lens: tokens of each request that are in the cache already.
        num_decodes: how many of the first requests take the decode path.
        block_table: `[requests, max_blocks]` int, the cache blocks of each request.
        decode_lengths: the decode requests' lengths on the device, where they are there already;
            otherwise they are copied when attention first needs them.

    `seq_lens` are the total tokens of each request, the new ones included; `num_tokens` the new
    tokens of all requests, and `num_decode_tokens` those of the decode requests: the first rows of
    the batch. `uniform_query_len` is the new tokens of every request when all of them decode and
    have equally many; otherwise, and without any request, None.
    """

    query_lens: tuple[int, ...]
    context_lens: tuple[int, ...]
    num_decodes: int
    block_table: Tensor
    decode_lengths: DeviceLengths | None = None
    uniform_query_len: int | None = field(init=False)
    seq_lens: tuple[int, ...] = field(init=False)
    num_tokens: int = field(init=False)
    num_decode_tokens: int = field(init=False)
    _copied: DeviceLengths | None = field(init=False, default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        lengths = {len(self.query_lens), len(self.context_lens), self.block_table.size(0)}
        if len(lengths) != 1:
            raise InputError(
                f"query_lens, context_lens and block_table must name the same requests, "
                f"got {len(self.query_lens)}, {len(self.context_lens)} and "
                f"{self.block_table.size(0)}."
            )
        if not 0 <= self.num_decodes <= len(self.query_lens):
            raise InputError(
                f"num_decodes must lie in 0..{len(self.query_lens)}, got {self.num_decodes}."
            )
        uniform = self.num_decodes == len(self.query_lens) and len({*self.query_lens}) == 1
        length = self.query_lens[0] if uniform else None
        # Counted once: every layer of a model asks for them.
        pairs = zip(self.context_lens, self.query_lens, strict=True)
        counted = {
            "uniform_query_len": length,
            "seq_lens": tuple(context + query for context, query in pairs),
            "num_tokens": sum(self.query_lens),
            "num_decode_tokens": sum(self.query_lens[: self.num_decodes]),
        }
        for name, value in counted.items():
            object.__setattr__(self, name, value)

    @property
    def kind(self) -> BatchKind:
        """Which kind of graph this batch needs: the most special one that serves it."""
        if self.uniform_query_len is not None:
            return "decode"
        return "prefill" if self.query_lens and not self.num_decodes else "general"

    def decode_lengths_on(self, device: torch.device) -> DeviceLengths:
        """Return the decode requests' lengths on the device; copied once for all layers."""
        known = self.decode_lengths or self._copied
        if known is None:
            decodes = slice(self.num_decodes)
            known = DeviceLengths.of(self.query_lens[decodes], self.seq_lens[decodes], device)
            object.__setattr__(self, "_copied", known)
        return known

    def positions(self) -> Tensor:
        """Return the position of each new token, `[T]` int64."""
        spans = [
            torch.arange(context, context + query, device=self.block_table.device)
            for context, query in zip(self.context_lens, self.query_lens, strict=True)
        ]
        if not spans:
            return torch.empty(0, dtype=torch.int64, device=self.block_table.device)
        return torch.cat(spans)

    def slot_mapping(self, block_size: int) -> Tensor:
        """Return the cache slot of each new token, `[T]` int64."""
        return slots_of(self.block_table, self.query_lens, self.seq_lens, block_size)


def make_batch(
    query_lens: Sequence[int],
    context_lens: Sequence[int],
    *,
    num_decodes: int,
    block_size: int,
    device: torch.device | str | None = None,
) -> BatchMetadata:
    """Lay requests out in consecutive cache blocks and return their metadata.

    Block 0 belongs to the first request, and so on: a small stand-in for a block allocator.
    """
    needed = [-(-(c + q) // block_size) for c, q in zip(context_lens, query_lens, strict=True)]
    width = max(needed, default=0)
    table = torch.zeros((len(needed), width), dtype=torch.int32, device=device)
    first = 0
    for request, count in enumerate(needed):
        table[request, :count] = torch.arange(first, first + count, dtype=torch.int32)
        first += count
    return BatchMetadata(
        query_lens=tuple(query_lens),
        context_lens=tuple(context_lens),
        num_decodes=num_decodes,
        block_table=table,
    )


class AttentionLayer(Protocol):
    """What every kind of layer has; the ops of a kind know the rest."""

    kind: str

    @property
    def kv_cache(self) -> PagedCache:
        """The layer's paged cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardContext:
    """What one forward pass needs beside its arguments.

    `metadata=None` is a profile run: attention returns zeros. `slot_mapping=None` writes no cache;
    it may be shorter than the batch (padded rows) and hold negative slots (skipped).
    `checked=True` verifies positions and slots and raises; unchecked clamps and skips.
    """

    layers: Mapping[str, AttentionLayer]
    metadata: BatchMetadata | None = None
    slot_mapping: Tensor | None = None
    checked: bool = True

    def layer(self, name: str, kind: str = "mla") -> Any:
        """Return the layer called `name`, which must be of this kind."""
        if name not in self.layers:
            raise ContextError(
                f"The forward context has no layer {name!r}; it has: {', '.join(self.layers)}."
            )
        layer = self.layers[name]
        if layer.kind != kind:
            raise ContextError(
                f"Layer {name!r} is of kind {layer.kind!r} and was named by an op for layers of "
                f"kind {kind!r}; give every layer a name of its own."
            )
        return layer


_CURRENT: ContextVar[ForwardContext | None] = ContextVar("mlalab_forward_context", default=None)


@contextmanager
def forward_context(context: ForwardContext) -> Iterator[ForwardContext]:
    """Make `context` the current one inside the `with` block; contexts nest."""
    token = _CURRENT.set(context)
    try:
        yield context
    finally:
        _CURRENT.reset(token)


def optional_context() -> ForwardContext | None:
    """Return the current forward context, or None outside any."""
    return _CURRENT.get()


def current_context() -> ForwardContext:
    """Return the current forward context.

    Raises:
        ContextError: no `with forward_context(...)` is open.
    """
    context = _CURRENT.get()
    if context is None:
        raise ContextError(
            "This op reads the cache by layer name and found no forward context; "
            "run the model inside `with mlalab.forward_context(...)`."
        )
    return context


BatchKind = Literal["general", "decode", "prefill"]
"""What a graph serves: any batch, uniform decode batches only, or prefill requests only."""

_SERVED: ContextVar[BatchKind] = ContextVar("mlalab_served", default="general")


@contextmanager
def graph_serves(kind: BatchKind) -> Iterator[None]:
    """Promise, while a model is traced, that its graph will see batches of this kind only."""
    token = _SERVED.set(kind)
    try:
        yield
    finally:
        _SERVED.reset(token)


@torch.compiler.assume_constant_result
def served_kind(compiling: bool) -> BatchKind:
    """Return which batches a layer must serve, so that it may leave out what others need.

    Args:
        compiling: the layer is being traced; then only a promise counts, as the graph will see
            other batches than the one it is traced with.
    """
    context = optional_context()
    if compiling or context is None or context.metadata is None:
        return _SERVED.get()
    return context.metadata.kind
