"""What choosing a graph costs: a compiled model's call against calling the chosen graph directly.

Run as `python benchmarks/dispatch_overhead.py`. Both are called in turn; the median of their
differences is the price of choosing, and the choice alone is timed too, which is steadier.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable

import torch

from mlalab.compile.config import PassConfig
from mlalab.compile.dispatch import CompiledModel
from mlalab.compile.settings import CompileConfig
from mlalab.layers.options import LayerOptions
from mlalab.workbench import Workbench, build


def seconds(function: Callable[..., object], bench: Workbench, calls: int) -> float:
    """Return the seconds of one call, on average over `calls`."""
    start = time.perf_counter()
    for _ in range(calls):
        function(bench.positions, bench.hidden_TD)
    return (time.perf_counter() - start) / calls


def main() -> None:
    """Print both times and their difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()

    for layers in options.layers:
        layer_options = LayerOptions(dtype=torch.float32)
        bench = build("tiny", tokens=options.requests, num_layers=layers, options=layer_options)
        flags = PassConfig(fuse_aiter_qk_rope_kvcache_mla=True)
        model = CompiledModel(bench.module, CompileConfig(pass_config=flags))

        def measure(bench: Workbench = bench, model: CompiledModel = model) -> list[list[float]]:
            model(bench.positions, bench.hidden_TD)
            choose = functools.partial(model.graph_for, "decode")
            graph = choose(bench.positions, bench.hidden_TD)
            timed = (model, graph, choose)
            rounds = range(options.rounds)
            runs = [[seconds(f, bench, options.calls) for f in timed] for _ in rounds]
            return [[1e6 * x for x in column] for column in zip(*runs, strict=True)]

        chosen, direct, choice = bench.run(measure)
        differences = [a - b for a, b in zip(chosen, direct, strict=True)]
        low, _, high = statistics.quantiles(differences, n=4)
        print(
            f"{layers} layers: model {statistics.median(chosen):.1f} us, graph "
            f"{statistics.median(direct):.1f} us, difference {statistics.median(differences):.1f} "
            f"us (quartiles {low:.1f}..{high:.1f}), choice alone {statistics.median(choice):.1f} us"
        )


if __name__ == "__main__":
    main()
