"""A small function on the bench, where a model would be too much to look at.

    trace = trace_program(function, [q_TNH, positions]).check()

The function takes tensors and returns tensors; its graph goes through the same compiler and the
same passes as a model's, and the trace is the same kind of record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from mlalab.checking import Outcome, compare
from mlalab.compile.capture import LabBackend
from mlalab.passes.fusion import Pass
from mlalab.passes.pipeline import PIPELINE
from mlalab.records import CheckRecord, StepRecord
from mlalab.traces import Trace

Program = Callable[..., Any]


def trace_program(
    function: Program,
    inputs: Sequence[Tensor],
    *,
    passes: Sequence[Pass] = PIPELINE,
    verify: bool = True,
) -> Trace:
    """Compile `function` for `inputs` and return the record of every stage.

    Args:
        inputs: what the function is called with; it may write them.
        passes: in the order they run.
        verify: check after each pass that the graph is sound.
    """
    backend = LabBackend(passes=passes, verify=verify)
    torch._dynamo.reset()
    compiled, given = torch.compile(function, backend=backend, fullgraph=True), _copies(inputs)
    with torch.no_grad():
        compiled(*given)
    replay = _Replay(function, backend.first_graph(*given), inputs, backend)
    name = getattr(function, "__name__", "function")
    recorder = backend.recorders[0]
    return Trace(name, recorder.steps, {"model": name}, replay, recorder.skipped)


def _copies(inputs: Sequence[Tensor]) -> list[Tensor]:
    return [x.clone() for x in inputs]


@dataclass(frozen=True, slots=True)
class _Replay:
    """Runs a program's graphs again on fresh random input; the `Checker` of its trace."""

    function: Program
    compiled: Program
    inputs: Sequence[Tensor]
    backend: LabBackend

    def check(self, steps: Sequence[StepRecord], seed: int) -> list[CheckRecord]:
        generator = torch.Generator().manual_seed(seed)
        given = [_redrawn(x, generator) for x in self.inputs]
        sample, written = _copies(given), _copies(given)
        reference = _outcome(self.function, written)
        compiled = _outcome(self.compiled, sample)
        records = []
        for step, graph in zip(steps, self.backend.recorders[0].graphs, strict=True):
            fresh = {id(x): new for x, new in zip(sample, _copies(given), strict=True)}
            flat = self.backend.inputs_of(step.name)
            found = _outcome(graph, [fresh.get(id(x), x) for x in flat])
            diffs = reference.diffs(found)
            for i, (x, expected) in enumerate(zip(sample, written, strict=True)):
                diffs.append(compare(f"input {i}", expected, fresh[id(x)]))
            records.append(CheckRecord(diffs=tuple(diffs)))
            extra = len(found.outputs) - len(reference.outputs)
            reference = Outcome(found.outputs[extra:], {})
        records.append(CheckRecord(diffs=tuple(reference.diffs(compiled))))
        return records

    @property
    def device(self) -> torch.device:
        return self.inputs[0].device if self.inputs else torch.device("cpu")

    def rerun(self, index: int, run: Callable[[fx.GraphModule, list[Any]], None]) -> None:
        recorder = self.backend.recorders[0]
        flat = self.backend.inputs_of(recorder.steps[index].name)
        with torch.no_grad():
            run(
                recorder.graphs[index],
                [x.clone() if isinstance(x, Tensor) else x for x in flat],
            )


def _redrawn(x: Tensor, generator: torch.Generator) -> Tensor:
    # Indices stay as they are: others might name what is not there.
    if not x.is_floating_point():
        return x.clone()
    return torch.randn(x.shape, generator=generator).to(x.device, x.dtype)


def _outcome(function: Program, inputs: Sequence[Any]) -> Outcome:
    with torch.no_grad():
        results = pytree.tree_leaves(function(*inputs))
    # A function that only writes in place returns None; an input that it returns is compared as
    # an input, and no graph returns it.
    passed = set(map(id, inputs))
    made = [x for x in results if isinstance(x, Tensor) and id(x) not in passed]
    return Outcome([x.clone() for x in made], {})
