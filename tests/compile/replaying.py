"""A stand-in for CUDA graphs on a CPU: it keeps what a replay may rely on, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from mlalab.compile.cudagraph import CudaGraphs
from mlalab.compile.dispatch import CompiledModel


class Recorded:
    """Captures by keeping the function; a replay runs it and puts the results where they were.

    As on a GPU, a replay sees its inputs and buffers as they are then, and everything that Python
    knew as it was during the capture. What was let go holds nothing once another batch runs.
    """

    def __init__(self) -> None:
        self.captures = self.replays = 0
        self._batches: list[list[Tensor]] = [[]]
        self._letting_go = False
        self._running = -1

    def __call__(self, function: Callable[[], Any], pool: Any) -> tuple[Callable[[], None], Any]:
        if self._letting_go:
            self._batches.append([])
            self._letting_go = False
        own = len(self._batches) - 1
        results = function()
        self.captures += 1
        # Without it a replay would read the batch itself where a graph reads the static buffers.
        known = copy_context()

        def replay() -> None:
            self.replays += 1
            self._overwrite_what_is_not(own)
            pairs = zip(
                pytree.tree_leaves(results), pytree.tree_leaves(known.run(function)), strict=True
            )
            for kept, new in pairs:
                if isinstance(kept, Tensor):
                    kept.copy_(new)

        return replay, results

    def let_go(self, x: Tensor) -> Tensor:
        """Remember that the memory is no longer this batch's alone."""
        self._letting_go = True
        self._batches[-1].append(x)
        return x

    def _overwrite_what_is_not(self, running: int) -> None:
        if running != self._running:
            for batch in self._batches[:running] + self._batches[running + 1 :]:
                for x in batch:
                    x.fill_(float("nan") if x.is_floating_point() else -1)
        self._running = running


def with_graphs(model: CompiledModel) -> tuple[CudaGraphs, Recorded]:
    """Capture every size of a model that was configured for it."""
    recorded = Recorded()
    graphs = CudaGraphs(model, capture=recorded)
    graphs.capture_all()
    recorded.replays = 0  # a piece is replayed once while the next one is captured
    return graphs, recorded
