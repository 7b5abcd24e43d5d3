"""Run a saved artifact of an exposed layer on every kind of batch, in a process of its own."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from unittest import mock

import torch
from torch._inductor.graph import GraphLowering

from tests.compile.batches import model, run
from tests.layers.test_mla_paths import BATCHES, outcome

OPTIONS = {"kv_cache_dtype": "fp8", "dtype": torch.bfloat16}


@contextlib.contextmanager
def lowered() -> Iterator[list[object]]:
    """Collect every graph that Inductor makes code of."""
    graphs: list[object] = []
    original = GraphLowering.run

    def lower(graph: GraphLowering, *arguments: object) -> object:
        graphs.append(graph)
        return original(graph, *arguments)

    with mock.patch.object(GraphLowering, "run", lower):
        yield graphs


def equal(exposed, opaque, function, name: str) -> bool:
    """Return whether output and cache are those of the opaque layer in eager mode, bit for bit."""
    expected = outcome(opaque, name)
    found = run(function, list(exposed.layers), *BATCHES[name])
    return all(torch.equal(tensor, found[key]) for key, tensor in expected.items())


def main(path: str) -> None:
    exposed, opaque = (model("tiny", exposed=x, **OPTIONS) for x in (True, False))
    for module in (exposed, opaque):
        for parameter in module.parameters():
            parameter.mul_(1.25)  # Not the weights that the artifact was made with.
    with lowered() as graphs, torch.compiler.set_stance("fail_on_recompile"):
        with open(path, "rb") as file:
            artifact = torch.compiler.load_compiled_function(file)
        # Its guards hold the state of the process that compiled it, down to the thread count.
        artifact.disable_guard_check()

        def function(positions, hidden):
            return artifact(exposed, positions, hidden)

        results = {name: equal(exposed, opaque, function, name) for name in BATCHES}
        exposed.layers[0].softmax_scale *= 1.5
        harmed = {name: equal(exposed, opaque, function, name) for name in BATCHES}
    told = {"equal": results, "equal when harmed": harmed, "graphs": len(graphs)}
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1])
