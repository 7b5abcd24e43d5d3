"""The clock: work captured into CUDA graphs, replayed in turn, timed by CUDA events.

Knows nothing of what it times. Whatever it is given must not wait for the GPU (no `.item()`, no
selection by mask): that cannot be captured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mlalab.bench.cells import Spread

_WARM_UP = 3
_LARGE_COPY = 1 << 29
_LINE = 128
_COPIES, _LAUNCHES = 8, 200
# About a millisecond: longer than the host takes to enqueue the largest graph, so that the GPU
# never waits between the two events of a sample.
_AHEAD_CYCLES = 2_000_000


@dataclass(frozen=True, slots=True)
class Captured:
    """A graph that repeats some work, with all that it reads and writes kept alive.

    Args:
        units: how many layers (or copies, or launches) one replay stands for.
    """

    graph: Any
    kept: object
    units: int


def capture(steps: Sequence[Callable[[], object]]) -> Captured:
    """Run `steps` until nothing is left to compile, then capture them in one graph, a unit each."""
    # Capture is not possible on the default stream; what is warmed up elsewhere is as it will be.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            for step in steps:
                step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        # Results are kept, so that every layer writes memory of its own, as a model's would; the
        # steps, because the graph holds addresses of what they read and nothing more.
        kept = [(step, step()) for step in steps]
    return Captured(graph, kept, len(steps))


def measure(work: Mapping[str, Captured], replays: int) -> dict[str, Spread]:
    """Return the time of one unit of each, in microseconds; contenders take turns."""
    samples: dict[str, list[float]] = {name: [] for name in work}
    for captured in work.values():
        captured.graph.replay()
    torch.cuda.synchronize()
    order = list(work)
    for turn in range(replays):
        first = turn % max(len(order), 1)
        replays_of = {name: work[name].graph.replay for name in order[first:] + order[:first]}
        events = {name: timed_ahead(replay) for name, replay in replays_of.items()}
        torch.cuda.synchronize()
        for name, (_, start, end) in events.items():
            samples[name].append(microseconds(start, end) / work[name].units)
    return {name: spread(taken) for name, taken in samples.items()}


def timed_ahead(work: Callable[[], Any]) -> tuple[Any, Any, Any]:
    """Enqueue some work while the GPU sleeps; returns its result and the events around it."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(_AHEAD_CYCLES)
    start.record()
    value = work()
    end.record()
    return value, start, end


def microseconds(start: Any, end: Any) -> float:
    """Return the time between two events that have happened."""
    return float(1000 * start.elapsed_time(end))


def spread(samples: Sequence[float]) -> Spread:
    """Return median and quartiles of at least one sample."""
    if len(samples) == 1:
        return Spread(samples[0], samples[0], samples[0], 1)
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Spread(median, low, high, len(samples))


def copies_of(num_bytes: int, device: torch.device) -> dict[str, Callable[[], Tensor]]:
    """Return two ways to copy that read and write `num_bytes` in all, each in buffers of its own.

    A graph holds torch's copy as a node that the driver carries out as it likes; the other is a
    kernel. Which is faster depends on the size. Sizes are rounded up to whole lines of the cache.
    """
    words = -(-num_bytes // (2 * _LINE)) * _LINE // 8

    def buffers() -> tuple[Tensor, Tensor]:
        source = torch.zeros(words, dtype=torch.int64, device=device)
        return source, torch.empty_like(source)

    (source, target), (inverted, result) = buffers(), buffers()
    return {
        "node": lambda: target.copy_(source),
        "kernel": lambda: torch.bitwise_not(inverted, out=result),
    }


def copy_rate(device: torch.device, replays: int) -> float:
    """Return the bytes per second of a large copy, reads and writes both counted."""
    copies = copies_of(2 * _LARGE_COPY, device)
    work = {name: capture([copy] * _COPIES) for name, copy in copies.items()}
    fastest = min(taken.median for taken in measure(work, replays).values())
    return 2 * _LARGE_COPY / (fastest * 1e-6)


def launch_floor(device: torch.device, replays: int) -> dict[str, float]:
    """Return the microseconds that a launch in a graph costs, of torch's and of Triton's least."""
    from mlalab.bench.empty_kernel import touch

    buffer = torch.zeros(32, dtype=torch.int32, device=device)
    work = {
        "torch": capture([buffer.zero_] * _LAUNCHES),
        "triton": capture([lambda: touch(buffer)] * _LAUNCHES),
    }
    return {name: taken.median for name, taken in measure(work, replays).items()}
