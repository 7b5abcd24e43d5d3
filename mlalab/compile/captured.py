"""One captured function: its inputs and outputs stay where they are, and a replay runs it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Capture = Callable[[Callable[[], Any], Any], tuple[Callable[[], None], Any]]
"""(function, memory pool) → what replays it, and its results, which a replay writes anew."""


def capture_on_gpu(function: Callable[[], Any], pool: Any) -> tuple[Callable[[], None], Any]:
    """Capture `function` as a CUDA graph of the current device, in a shared memory pool."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        results = function()
    return graph.replay, results


class Captured:
    """A function captured with these inputs.

    Args:
        inputs: stay alive, as a replay reads them where they are.
    """

    def __init__(
        self, function: Callable[..., Any], inputs: Sequence[Any], capture: Capture, pool: Any
    ) -> None:
        # What a first call compiles, loads or allocates must not happen during the capture.
        function(*inputs)
        self._inputs = tuple(inputs)
        self._replay, self._results = capture(lambda: function(*self._inputs), pool)
        # Weights stay where they are; what flows between pieces may lie elsewhere the next time.
        self._moving = [
            (place, x)
            for place, x in enumerate(inputs)
            if isinstance(x, Tensor) and not isinstance(x, nn.Parameter)
        ]

    def __call__(self, *inputs: Any) -> Any:
        """Replay with these inputs; what is returned holds until the next replay."""
        for place, kept in self._moving:
            given = inputs[place]
            if given.data_ptr() != kept.data_ptr():
                kept.copy_(given)
        self._replay()
        return self._results


@dataclass(slots=True)
class Replays:
    """What the pieces of a model share: whether they run, are captured, or are replayed.

    Args:
        capture: how a function is captured.
        pool: memory that all graphs share; only one of them runs at a time.
        size: rows of the batch that runs now, if it is one of the captured sizes.
        capturing: pieces that are not captured yet for this size are captured now.
        taken: graphs of the model were captured already, and read the buffers of then.
    """

    capture: Capture = capture_on_gpu
    pool: Any = None
    size: int | None = None
    capturing: bool = False
    taken: bool = False

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
            capture, pool = self.replays.capture, self.replays.pool
            self.captured[size] = Captured(self.call, inputs, capture, pool)
        found = self.captured.get(size) if size is not None else None
        return self.call(*inputs) if found is None else found(*inputs)
