"""How long each node of a recorded graph takes, one after the other and each alone.

Times of nodes say where a graph spends its time on this machine. Their sum is no time of the
compiled model: Inductor fuses what the graph keeps apart, and on a CPU the wall time of a small
node is that of calling it.
"""

from __future__ import annotations

import datetime
import functools
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from mlalab.bench.timing import microseconds, timed_ahead
from mlalab.errors import ConfigError
from mlalab.kernels import choices
from mlalab.records import StepRecord
from mlalab.viz.cost import Measured, node_bytes

if TYPE_CHECKING:
    from mlalab.traces import Checker

Work = Callable[[], Any]
Clock = Callable[[Work], tuple[Any, float]]
"""Does some work; returns what came of it, and the microseconds that it took."""


def measured(
    checker: Checker, steps: Mapping[int, StepRecord], *, runs: int, clock: Clock | None = None
) -> Measured:
    """Run graphs node by node and return the median time of each node that does work.

    A node does work where the model of `mlalab.viz.cost` says so. Each graph runs once to warm up
    and then `runs` times, every time from the same inputs and caches.

    Args:
        steps: those to measure, by their place in the trace.
        clock: by default the wall clock on a CPU, and the GPU's own events on a GPU.

    Raises:
        ConfigError: `runs` is no positive integer.
    """
    if not isinstance(runs, int) or runs < 1:
        raise ConfigError(f"runs must be a positive integer, got {runs!r}.")
    device = checker.device
    clock = clock or (_gpu_clock if device.type == "cuda" else _wall_clock)
    us = {}
    for index, step in steps.items():
        works = node_bytes(step.nodes).keys()
        samples: dict[str, list[float]] = {name: [] for name in works}
        run = functools.partial(_run, step, works, clock, samples)
        for _ in range(1 + runs):
            checker.rerun(index, run)
        us[step.name] = {name: statistics.median(taken[1:]) for name, taken in samples.items()}
    today = datetime.datetime.now(datetime.UTC).date()
    return Measured(us=us, device=_whose(device), date=today.isoformat())


class _Timed(fx.Interpreter):
    """Runs a graph, and has a clock run those of its nodes that have a name."""

    def __init__(self, graph: fx.GraphModule, names: Mapping[fx.Node, str], clock: Clock) -> None:
        super().__init__(graph)
        self.names, self.clock = names, clock
        self.us: dict[str, float] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n not in self.names:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        work = functools.partial(getattr(self, n.op), n.target, args, kwargs)
        value, self.us[self.names[n]] = self.clock(work)
        return value


def _run(
    step: StepRecord,
    works: Collection[str],
    clock: Clock,
    samples: Mapping[str, list[float]],
    graph: fx.GraphModule,
    inputs: Sequence[Any],
) -> None:
    # A copied graph may name its nodes anew; their order is kept.
    pairs = zip(graph.graph.nodes, step.nodes, strict=True)
    timed = _Timed(graph, {node: x.name for node, x in pairs if x.name in works}, clock)
    timed.run(*inputs)
    for name, us in timed.us.items():
        samples[name].append(us)


def _wall_clock(work: Work) -> tuple[Any, float]:
    start = time.perf_counter()
    value = work()
    return value, 1e6 * (time.perf_counter() - start)


def _gpu_clock(work: Work) -> tuple[Any, float]:
    value, start, end = timed_ahead(work)
    end.synchronize()
    return value, microseconds(start, end)


def _whose(device: torch.device) -> str:
    """Return the device and whose kernels serve our ops there: a time of one is not of another."""
    on_gpu = device.type == "cuda"
    said = {"triton": "triton" if on_gpu else "interpreted triton"}
    providers = {chosen.provider for chosen in choices(device).values()}
    kernels = " and ".join(sorted(said.get(provider, provider) for provider in providers))
    name = torch.cuda.get_device_name(device) if on_gpu else str(device)
    return f"{name}, {kernels} kernels, each node alone"
