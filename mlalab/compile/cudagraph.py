"""CUDA graphs of a compiled model: captured once for each size, replayed for the batches that fit.

A uniform decode batch can be one graph, as its attention reads every length on the device (FULL).
Any other batch calls attention in between graphs (PIECEWISE). A batch is padded to the next size
that was captured for its kind; one that no graph serves runs as it would without.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mlalab.compile.captured import Capture, Captured, CudaGraphCapture, Replays
from mlalab.compile.cudagraph_modes import STYLES
from mlalab.compile.cudagraph_refusals import refusals
from mlalab.compile.dispatch import KINDS, CompiledModel
from mlalab.compile.static_batch import StaticBatch
from mlalab.context import (
    BatchKind,
    BatchMetadata,
    ForwardContext,
    current_context,
    forward_context,
)
from mlalab.errors import ConfigError
from mlalab.ops.checks import check_positions, check_slots
from mlalab.passes.values import storages


@dataclass(frozen=True, slots=True)
class GraphsOfKind:
    """What was captured for one kind of batch.

    Args:
        style: FULL, PIECEWISE or, without graphs, NONE.
        sizes: token counts, ascending.
        partitions: pieces that the compiled graph is cut into; 1 where it is whole.
        captures: CUDA graphs of all sizes together.
        reason: why there are none of its own, though the mode asks for them.
    """

    kind: BatchKind
    style: str
    sizes: tuple[int, ...] = ()
    partitions: int = 1
    captures: int = 0
    reason: str = ""


class CudaGraphs:
    """A compiled model with CUDA graphs; called like the model, inside a forward context.

    What a call returns lies in memory that the next call writes anew: read or copy it before.
    `capture_all` must have been called; until then, and where nothing could be captured, every
    batch runs without graphs. Weights may change in place, and nothing may be replaced or moved
    without `model.reset()`, after which no batch is replayed until all is captured again.

    Args:
        model: its config says which mode, which sizes, and how large requests get.
        capture: how a function is captured; None: as a CUDA graph.
    """

    def __init__(self, model: CompiledModel, capture: Capture | None = None) -> None:
        self.model, self._capture = model, capture or CudaGraphCapture()
        self.refusals = refusals(model, on_gpu=capture is None)
        decode, others = model.config.capture_sizes
        asked = STYLES[model.config.cudagraph_mode]
        self._styles = {k: style for k, style in asked.items() if k not in self.refusals}
        self._sizes = {k: decode if k == "decode" else others for k in self._styles}
        self._full: dict[int, Captured] = {}
        self._ready: dict[BatchKind, list[int]] = {}
        self._batch: StaticBatch | None = None
        self._captured: Replays | None = None
        self.seconds = 0.0
        """How long capturing took, compiling included."""

    def capture_all(self) -> None:
        """Compile and capture every size, the largest first.

        Graphs of different sizes and kinds share their memory, as only one batch runs at a time.

        Raises:
            ConfigError: the model was captured before; its graphs read the buffers of then.
        """
        start, replays = time.perf_counter(), self.model.replays
        if replays.taken:
            raise ConfigError(
                "The compiled model was captured before; reset() it, then capture it again."
            )
        self._full, self._ready, self._captured = {}, {}, replays
        rows = max((size for sizes in self._sizes.values() for size in sizes), default=0)
        if rows:
            self._batch = StaticBatch(self.model.layers, self.model.config, rows)
            replays.capture, replays.taken = self._capture, True
            module, batch = self.model.module, self._batch
            weights = (*module.parameters(), *module.buffers())
            replays.fixed = storages((weights, batch.positions, batch.hidden_TD))
            replays.pool = torch.cuda.graph_pool_handle() if torch.cuda.is_available() else None
            wanted = [(size, kind) for kind, sizes in self._sizes.items() for size in sizes]
            with _on(self._batch.positions.device):
                for size, kind in sorted(wanted, reverse=True):
                    # Pieces that serve another kind as well are captured for that one.
                    if self._styles[kind] == "FULL" or self._serving(kind, size) == kind:
                        self._capture_one(kind, size)
            self._ready = {kind: list(sizes) for kind, sizes in self._sizes.items()}
        self.seconds = time.perf_counter() - start

    def _serving(self, kind: BatchKind, size: int) -> BatchKind:
        """Return the kind of the compiled graph that serves batches of this kind."""
        return self.model.key_for(size, kind).kind

    def _capture_one(self, kind: BatchKind, size: int) -> None:
        batch, model = self._batch, self.model
        assert batch is not None
        batch.fill(batch.positions[:0], batch.hidden_TD[:0], None, size)
        inputs = (batch.positions[:size], batch.hidden_TD[:size])
        full = self._styles[kind] == "FULL"
        metadata = batch.decode_metadata(size) if full else None
        with torch.no_grad(), forward_context(batch.context(size, metadata)):
            run = model.graph_for(kind, *inputs)
            if full:
                self._full[size] = Captured(run, inputs, model.replays)
            else:
                with model.replays.of_size(size, capturing=True):
                    run(*inputs)
        model.replays.let_go()

    def __call__(self, positions: Tensor, hidden_TD: Tensor) -> Any:
        """Run the batch, in a captured graph if one serves it."""
        context = current_context()
        kind = self.model.kind_of(context.metadata)
        size = self._size_for(kind, positions.size(0), context.metadata)
        if size is None:
            return self.model(positions, hidden_TD)
        batch, tokens = self._batch, positions.size(0)
        assert batch is not None and context.metadata is not None
        if context.checked:
            self._check(positions, context)
        batch.fill(positions, hidden_TD, context.slot_mapping, size)
        inputs = (batch.positions[:size], batch.hidden_TD[:size])
        if self._styles[kind] == "FULL":
            batch.fill_requests(context.metadata, size)
            return _rows(self._full[size](*inputs), tokens)
        with (
            forward_context(batch.context(size, context.metadata)),
            self.model.replays.of_size(size),
        ):
            return _rows(self.model.graph_for(kind, *inputs)(*inputs), tokens)

    def _check(self, positions: Tensor, context: ForwardContext) -> None:
        """Raise for what the ops would raise for: a replay checks nothing."""
        for layer in self.model.layers:
            if context.slot_mapping is not None:
                check_slots(context, layer.kv_cache, positions.size(0))
            if layer.rotary_emb is not None:
                check_positions(positions, layer.rotary_emb.cos_sin_cache.size(0))

    def _size_for(self, kind: BatchKind, tokens: int, metadata: BatchMetadata | None) -> int | None:
        """Return the captured size that a batch is padded to, or None where no graph serves it."""
        sizes = self._ready.get(kind)
        # A model that was reset has other weights than its graphs.
        if not sizes or metadata is None or self._captured is not self.model.replays:
            return None
        if not 0 < tokens <= sizes[-1]:
            return None
        assert self._batch is not None
        # Rows beyond the metadata are padding already; the graph of decode makes its own.
        if not self._batch.fits(metadata) or tokens != metadata.num_tokens:
            return None
        return sizes[bisect_left(sizes, tokens)]

    def report(self) -> list[GraphsOfKind]:
        """Return what was captured for each kind of batch, and why not where nothing was."""
        return [self._report_of(kind) for kind in KINDS]

    def _report_of(self, kind: BatchKind) -> GraphsOfKind:
        sizes = tuple(self._ready.get(kind, ()))
        if not sizes or self._captured is not self.model.replays:
            return GraphsOfKind(kind, "NONE", reason=self.refusals.get(kind, ""))
        if self._styles[kind] == "FULL":
            return GraphsOfKind(kind, "FULL", sizes, captures=len(self._full))
        serving = self._serving(kind, sizes[0])
        if serving != kind:
            partitions = self.model.partitions()[serving]
            reason = f"those of {serving} batches serve"
            return GraphsOfKind(kind, "PIECEWISE", sizes, partitions, reason=reason)
        found = {self.model.key_for(size, kind) for size in sizes}
        entries = [self.model.entries[key] for key in found]
        captures = sum(len(piece.captured) for entry in entries for piece in entry.pieces)
        return GraphsOfKind(kind, "PIECEWISE", sizes, entries[0].partitions, captures)


def _rows(results: Any, tokens: int) -> Any:
    """Return the results without the padding."""
    if isinstance(results, Tensor):
        return results[:tokens]
    return tuple(x[:tokens] for x in results)


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Return a block in which graphs are captured on this device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
