"""How long the passes take as a model gets deeper: 1, 8, 32 and 61 layers, and a straight line.

Run as `python benchmarks/match_scaling.py`. All passes run, for a graph that serves decode batches
only, without recording or verification. Every layer is one more anchor for each fusion; linear
growth means that no anchor looks at another layer. Tracing the patterns is paid once per process
(structure) and once per shape (sizes), and is in the first time only.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Sequence

import torch
from torch import fx

from mlalab.compile.capture import LabBackend
from mlalab.compile.config import PassConfig, resolve
from mlalab.context import ForwardContext, forward_context
from mlalab.layers.options import LayerOptions
from mlalab.passes import matching
from mlalab.passes.driver import PassDriver, PassOutcome
from mlalab.passes.fusion import CleanUp, PassResult
from mlalab.passes.pipeline import PIPELINE
from mlalab.workbench import Workbench, build

CONFIG = resolve(PassConfig(fuse_rope_kvcache=True, fuse_aiter_qk_rope_kvcache_mla=True))


def graph_before_passes(bench: Workbench) -> fx.GraphModule:
    """Compile what stands on a bench up to the first pass and return the graph it would see."""
    kept: list[fx.GraphModule] = []

    def keep(graph: fx.Graph) -> PassResult:
        kept.append(copied(graph.owning_module))
        return PassResult()

    passes = [CleanUp(name="keep", note="", run=keep)]
    backend = LabBackend(passes=passes, keep_graphs=False, verify=False)
    torch._dynamo.reset()
    compiled = torch.compile(bench.module, backend=backend, fullgraph=True)
    bench.run(compiled, bench.positions, bench.hidden_TD)
    return kept[0]


def copied(gm: fx.GraphModule) -> fx.GraphModule:
    """Return a copy that passes may change."""
    return fx.GraphModule(gm, copy.deepcopy(gm.graph))


def run_passes(gm: fx.GraphModule, bench: Workbench) -> tuple[PassOutcome, ...]:
    """Run every pass on a copy of `gm`; returns what became of each, with its time."""
    driver = PassDriver(PIPELINE, CONFIG, decode_only=True, verify=False)
    context = ForwardContext(layers={x.layer_name: x for x in bench.layers})
    own = copied(gm)
    with forward_context(context):
        driver(own.graph)
    assert driver.outcomes is not None
    for outcome in driver.outcomes:
        expected = {"applied": len(bench.layers)}.get(outcome.status, 0)
        if outcome.name.startswith("MLA") and len(outcome.matches) != expected:
            raise SystemExit(f"{outcome.name} matched {len(outcome.matches)}; nothing to time.")
    return driver.outcomes


def line(xs: Sequence[float], ys: Sequence[float]) -> str:
    """Return the least-squares line through the points and how well it fits."""
    slope, intercept = statistics.linear_regression(xs, ys)
    fit = statistics.correlation(xs, ys) ** 2
    return f"{1e3 * intercept:.1f} ms + {1e3 * slope:.2f} ms per layer, R2 = {fit:.4f}"


def main() -> None:
    """Print a table of times and the line through them, then the time of each pass."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="preset")
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 8, 32, 61])
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--custom-op", action="store_true", help="RoPE as the in-place op")
    options = parser.parse_args()

    print(f"{'layers':>6} {'nodes':>6} {'first use s':>12} {'median s':>9} {'spread s':>16}")
    medians = []
    for layers in options.layers:
        layer_options = LayerOptions(rope_custom_op=options.custom_op, dtype=torch.bfloat16)
        bench = build(
            options.model, tokens=options.tokens, num_layers=layers, options=layer_options
        )
        gm = graph_before_passes(bench)
        matching._blind_pattern.cache_clear()
        runs = [run_passes(gm, bench) for _ in range(1 + options.repeats)]
        first, *times = (sum(outcome.seconds for outcome in run) for run in runs)
        medians.append(statistics.median(times))
        spread = f"{min(times):.3f}..{max(times):.3f}"
        print(
            f"{layers:>6} {len(gm.graph.nodes):>6} {first:>12.3f} {medians[-1]:>9.3f} {spread:>16}",
            flush=True,
        )
    if len(medians) > 1:
        print(line(options.layers, medians))
    print(f"of which, at {options.layers[-1]} layers:")
    for outcomes in zip(*runs[1:], strict=True):
        median = statistics.median(outcome.seconds for outcome in outcomes)
        print(f"  {outcomes[0].name:<32} {outcomes[0].status:<12} {median:.3f} s")


if __name__ == "__main__":
    main()
