"""One captured function: its inputs and outputs stay where they are, and a replay runs it again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._prims_common import compute_required_storage_length
from torch.utils import _pytree as pytree

from mlalab.passes.values import storages


class Capture(Protocol):
    """How functions are captured."""

    def __call__(self, function: Callable[[], Any], pool: Any) -> tuple[Callable[[], None], Any]:
        """Capture `function`; returns what replays it, and its results, which a replay writes."""

    def let_go(self, x: Tensor) -> Tensor:
        """Return a tensor in the same place whose memory other graphs of the pool may use."""


class CudaGraphCapture:
    """Captures CUDA graphs of the current device."""

    def __call__(self, function: Callable[[], Any], pool: Any) -> tuple[Callable[[], None], Any]:
        """Capture `function` in the shared memory pool."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            results = function()
        return graph.replay, results

    def let_go(self, x: Tensor) -> Tensor:
        """Return a tensor that does not own its memory, which the pool then takes back."""
        owned = x.untyped_storage()
        storage = torch._C._construct_storage_from_data_pointer(
            owned.data_ptr(), x.device, owned.nbytes()
        )
        alias = torch.empty(0, dtype=x.dtype, device=x.device)
        return alias.set_(storage, x.storage_offset(), x.size(), x.stride())


class Captured:
    """A function captured with these inputs.

    Args:
        inputs: weights, results of earlier captures and static buffers are read where they are;
            anything else is copied to a place that all captures share, as each replay does.
    """

    def __init__(
        self, function: Callable[..., Any], inputs: Sequence[Any], replays: Replays
    ) -> None:
        returned = storages(function(*inputs))
        self._inputs = tuple(replays.settled(i, x, returned) for i, x in enumerate(inputs))
        # What a first call compiles, loads or allocates must not happen during the capture.
        function(*self._inputs)
        self._replay, self._results = replays.capture(lambda: function(*self._inputs), replays.pool)
        self._tensors = [i for i, x in enumerate(inputs) if isinstance(x, Tensor)]
        replays.add(self, storages(self._results))

    def __call__(self, *inputs: Any) -> Any:
        """Replay with these inputs; what is returned holds until the next replay."""
        for place in self._tensors:
            given, kept = inputs[place], self._inputs[place]
            if given.data_ptr() != kept.data_ptr():
                kept.copy_(given)
        self._replay()
        return self._results

    def let_go(self, results: AbstractSet[int], alias: Callable[[Tensor], Tensor]) -> None:
        """Keep none of the memory in `results`: to be called when all of the batch is captured."""

        def weak(x: Any) -> Any:
            return alias(x) if isinstance(x, Tensor) and storages(x) <= results else x

        self._inputs, self._results = pytree.tree_map(weak, (self._inputs, self._results))


@dataclass(slots=True)
class Replays:
    """What the pieces of a model share: whether they run, are captured, or are replayed.

    Args:
        capture: how a function is captured.
        pool: memory that all graphs share; only one of them runs at a time.
        fixed: storages that no batch replaces: weights and static buffers.
        size: rows of the batch that runs now, if it is one of the captured sizes.
        capturing: pieces that are not captured yet for this size are captured now.
        taken: graphs of the model were captured already, and read the buffers of then.
    """

    capture: Capture = field(default_factory=CudaGraphCapture)
    pool: Any = None
    fixed: set[int] = field(default_factory=set)
    size: int | None = None
    capturing: bool = False
    taken: bool = False
    _of_this_batch: list[Captured] = field(default_factory=list)
    _results: set[int] = field(default_factory=set)
    _staging: dict[tuple[int, torch.dtype], Tensor] = field(default_factory=dict)

    def add(self, captured: Captured, results: Iterable[int]) -> None:
        """Take note of a capture of the batch that is captured now."""
        self._of_this_batch.append(captured)
        self._results.update(results)

    def settled(self, place: int, x: Any, returned: AbstractSet[int]) -> Any:
        """Return what a capture reads as its input `place`: `x`, or a copy that others share.

        Args:
            returned: storages of what the function returns: a place that is shared would be
                written anew while a view of it is still needed.
        """
        if not isinstance(x, Tensor) or not x.numel():
            return x
        own = storages(x)
        if own <= self.fixed or own <= self._results:
            return x
        key, extent = (place, x.dtype), compute_required_storage_length(x.size(), x.stride(), 0)
        shared = own.isdisjoint(returned)
        held = self._staging.get(key) if shared else None
        if held is None or held.numel() < extent:
            held = x.new_empty(extent)
            if shared:
                self._staging[key] = held
        return held.as_strided(x.size(), x.stride()).copy_(x)

    def let_go(self) -> None:
        """Let other batches have the memory of the one that was captured: they never overlap."""
        for captured in self._of_this_batch:
            captured.let_go(self._results, self.capture.let_go)
        self._of_this_batch, self._results = [], set()

    @contextmanager
    def of_size(self, size: int, *, capturing: bool = False) -> Iterator[None]:
        """Replay the pieces of this size inside the `with` block, or capture them."""
        self.size, self.capturing = size, capturing
        try:
            yield
        finally:
            self.size, self.capturing = None, False


@dataclass(slots=True)
class Piece:
    """A part of a model that may be captured, once for every size."""

    call: Callable[..., Any]
    replays: Replays
    captured: dict[int, Captured] = field(default_factory=dict)

    def __call__(self, *inputs: Any) -> Any:
        """Run, capture or replay, as the model now does."""
        size = self.replays.size
        if size is not None and size not in self.captured and self.replays.capturing:
            self.captured[size] = Captured(self.call, inputs, self.replays)
        found = self.captured.get(size) if size is not None else None
        return self.call(*inputs) if found is None else found(*inputs)
