"""How long matching takes as a model gets deeper: 1, 8, 32 and 61 layers, and a straight line.

Run as `python benchmarks/match_scaling.py`. Every layer is one more anchor for the fusion; linear
growth means that no anchor looks at another layer. Tracing the patterns is paid once per process
(structure) and once per shape (sizes), and is timed apart.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Sequence

import torch
from torch import fx

from mlalab.compile.capture import LabBackend
from mlalab.layers.mla import MLAOptions
from mlalab.passes import matching
from mlalab.passes.fusion import CleanUp, PassResult
from mlalab.passes.mla_rope_kvcache_cat import MLARoPEKVCacheCatFusionPass
from mlalab.passes.pipeline import PIPELINE
from mlalab.workbench import build


def graph_before_fusion(preset: str, layers: int, custom_op: bool, tokens: int) -> fx.GraphModule:
    """Compile `layers` layers up to the fusion pass and return the graph it would see."""
    kept: list[fx.GraphModule] = []

    def keep(graph: fx.Graph) -> PassResult:
        kept.append(_copied(graph.owning_module))
        return PassResult()

    options = MLAOptions(rope_custom_op=custom_op, dtype=torch.bfloat16)
    bench = build(preset, tokens=tokens, num_layers=layers, options=options)
    earlier = PIPELINE[: PIPELINE.index(MLARoPEKVCacheCatFusionPass)]
    passes = [*earlier, CleanUp(name="keep", note="", run=keep)]
    backend = LabBackend(passes=passes, keep_graphs=False)
    torch._dynamo.reset()
    compiled = torch.compile(bench.module, backend=backend, fullgraph=True)
    bench.run(compiled, bench.positions, bench.hidden_TD)
    return kept[0]


def _copied(gm: fx.GraphModule) -> fx.GraphModule:
    return fx.GraphModule(gm, copy.deepcopy(gm.graph))


def timed(gm: fx.GraphModule, layers: int) -> float:
    """Return the seconds that the pass takes on a copy of `gm`."""
    own = _copied(gm)
    start = time.perf_counter()
    result = MLARoPEKVCacheCatFusionPass.apply(own.graph)
    seconds = time.perf_counter() - start
    if len(result.matches) != layers:
        raise SystemExit(f"{len(result.matches)} of {layers} layers matched; nothing to time.")
    return seconds


def line(xs: Sequence[float], ys: Sequence[float]) -> str:
    """Return the least-squares line through the points and how well it fits."""
    slope, intercept = statistics.linear_regression(xs, ys)
    fit = statistics.correlation(xs, ys) ** 2
    return f"{1e3 * intercept:.1f} ms + {1e3 * slope:.2f} ms per layer, R2 = {fit:.4f}"


def main() -> None:
    """Print a table of times and the line through them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="preset")
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 8, 32, 61])
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--custom-op", action="store_true", help="RoPE as the in-place op")
    options = parser.parse_args()

    print(f"{'layers':>6} {'nodes':>6} {'first use s':>12} {'then s (median)':>16}")
    times = []
    for layers in options.layers:
        gm = graph_before_fusion(options.model, layers, options.custom_op, options.tokens)
        matching.blind_pattern.cache_clear()
        first = timed(gm, layers)
        times.append(statistics.median(timed(gm, layers) for _ in range(options.repeats)))
        print(f"{layers:>6} {len(gm.graph.nodes):>6} {first:>12.3f} {times[-1]:>16.3f}", flush=True)
    if len(times) > 1:
        print(line(options.layers, times))


if __name__ == "__main__":
    main()
