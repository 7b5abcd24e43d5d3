"""Proof beside every step: run each recorded graph on one random input and compare every bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mlalab.compile.capture import LabBackend
from mlalab.errors import TraceError
from mlalab.records import CheckRecord, StepRecord, TensorDiff
from mlalab.workbench import Workbench


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run left behind."""

    outputs: list[Tensor]
    caches: dict[str, Tensor]

    def diffs(self, found: Outcome) -> list[TensorDiff]:
        """Compare `found` with this reference; a lowered graph may return more, first."""
        results = found.outputs[-len(self.outputs) :]
        pairs = zip(self.outputs, results, strict=True)
        return [compare(f"output {i}", expected, x) for i, (expected, x) in enumerate(pairs)] + [
            compare(f"cache {name}", cache, found.caches[name])
            for name, cache in self.caches.items()
        ]


def compare(name: str, expected: Tensor, found: Tensor) -> TensorDiff:
    """Compare two tensors bit for bit (so -0 differs from 0, and a NaN equals itself)."""
    if (expected.shape, expected.dtype) != (found.shape, found.dtype):
        raise TraceError(
            f"{name} has shape {tuple(found.shape)} and dtype {found.dtype}, expected "
            f"{tuple(expected.shape)} and {expected.dtype}."
        )
    left, right = (
        t.detach().reshape(-1, 1).contiguous().view(torch.uint8) for t in (expected, found)
    )
    mismatched = int((left != right).any(-1).sum())
    gap = (expected.double() - found.double()).abs().nan_to_num(nan=torch.inf)
    return TensorDiff(
        name=name,
        equal=mismatched == 0,
        max_abs=float(gap.max()) if mismatched else 0.0,
        mismatched=mismatched,
        total=expected.numel(),
    )


class Replay:
    """Runs the graphs of one compilation again, on fresh random input.

    Args:
        bench: the model and its batch.
        compiled: the compiled model; calling it yields the inputs that its graphs take.
        backend: what compiled it.
    """

    def __init__(self, bench: Workbench, compiled: Callable[..., Any], backend: LabBackend) -> None:
        self.bench, self.compiled, self.backend = bench, compiled, backend

    def check(self, steps: Sequence[StepRecord], seed: int) -> list[CheckRecord]:
        """Return, for each step, how its graph's outcome differs from the eager model's."""
        bench = self.bench
        bench.randomise(seed)
        caches = {layer.layer_name: layer.kv_cache.storage_BKC for layer in bench.layers}
        saved = {name: cache.clone() for name, cache in caches.items()}
        given = (bench.positions, bench.hidden_TD)

        def outcome(function: Callable[..., Any], arguments: Sequence[Any]) -> Outcome:
            for name, cache in caches.items():
                cache.copy_(saved[name])
            outputs = pytree.tree_leaves(bench.run(function, *arguments))
            return Outcome(outputs, {name: cache.clone() for name, cache in caches.items()})

        reference_inputs = [x.clone() for x in given]
        reference = outcome(bench.module, reference_inputs)
        sample = [x.clone() for x in given]
        outcome(self.compiled, sample)
        records = []
        for step, graph in zip(steps, self.backend.recorders[0].graphs, strict=True):
            flat = self.backend.inputs_of(step.name)
            own = {id(x): original.clone() for x, original in zip(sample, given, strict=True)}
            arguments = [own.get(id(x), x) for x in flat]
            weights = [x for x in flat if isinstance(x, Tensor) and id(x) not in own]
            versions = [w._version for w in weights]
            found = outcome(graph, arguments)
            diffs = reference.diffs(found)
            for x, expected in zip(sample, reference_inputs, strict=True):
                diffs.append(compare(f"input {tuple(x.shape)}", expected, own[id(x)]))
            written = sum(w._version != v for w, v in zip(weights, versions, strict=True))
            diffs.append(
                TensorDiff(
                    name="weights and tables",
                    equal=written == 0,
                    max_abs=0.0,
                    mismatched=written,
                    total=len(weights),
                )
            )
            records.append(CheckRecord(diffs=tuple(diffs)))
        for name, cache in caches.items():
            cache.copy_(saved[name])
        return records
