"""One function's graph under both wrappings that torch has for an op that writes its arguments.

mlalab's passes look for the first, `auto_functionalized`, and compile with it. Torch's default is
the second, which names whole bases and describes the views.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

import mlalab.ops  # noqa: F401  registers torch.ops.mlalab
from mlalab.compile import inductor
from mlalab.recorder import Recorder
from mlalab.records import StepRecord


def functionalised(function: Callable[..., Any], *inputs: Tensor) -> dict[str, StepRecord]:
    """Compile `function` twice and return its functional graphs, "v1" and "v2".

    Args:
        inputs: what it is called with, without gradients; copies, as it may write them.
    """
    return {name: _captured(function, inputs, name) for name in ("v1", "v2")}


def _captured(function: Callable[..., Any], inputs: Sequence[Tensor], name: str) -> StepRecord:
    recorder = Recorder(keep_graphs=False)

    def inner(lowered: fx.GraphModule, given: Sequence[Any], **_: Any) -> Callable[..., Any]:
        inductor.normalise_views(lowered)
        recorder.capture(name, lowered, "Functional ATen: nothing is written in place.")
        return inductor.interpret(lowered, given)

    def backend(gm: fx.GraphModule, given: Sequence[Any]) -> Callable[..., Any]:
        return inductor.compile_with(gm, given, inner)

    torch._dynamo.reset()
    with (
        torch.no_grad(),
        torch._inductor.config.patch(
            enable_auto_functionalized_v2=name == "v2", fx_graph_cache=False
        ),
        torch._functorch.config.patch(enable_autograd_cache=False),
    ):
        torch.compile(function, backend=backend, fullgraph=True)(*(x.clone() for x in inputs))
    return recorder.steps[0]
