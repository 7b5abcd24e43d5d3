"""Proof beside every step: run each recorded graph on one random input and compare every bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
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
        """Compare `found` with this outcome; a lowered graph may return more, first."""
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
    left, right = (t.detach().reshape(-1, 1).contiguous() for t in (expected, found))
    differs = (left.view(torch.uint8) != right.view(torch.uint8)).any(-1)
    mismatched = int(differs.sum())
    gaps = (left[differs].double() - right[differs].double()).abs().nan_to_num(nan=torch.inf)
    return TensorDiff(
        name=name,
        equal=mismatched == 0,
        max_abs=float(gaps.max()) if mismatched else 0.0,
        mismatched=mismatched,
        total=expected.numel(),
        close=_close(expected, found, mismatched),
    )


_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.01}
"""Dtype → largest difference, as a share of the largest value, that rounding explains."""


def _close(expected: Tensor, found: Tensor, mismatched: int) -> bool:
    """Return whether another order of rounding may explain the difference."""
    tolerance = _TOLERANCE.get(expected.dtype)
    if tolerance is None:
        # FP8 bytes: a rounding moves a few of them by a step, and a step is no small number.
        return mismatched <= 0.1 * expected.numel()
    size = expected.nan_to_num().abs().max() if expected.numel() else 1.0
    return bool(torch.isclose(expected, found, 0.0, float(tolerance * size), True).all())


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
        """Return how each step's outcome differs from the step before; the first, from eager.

        So a difference is pinned on the step that makes it. One record more, the last, is that of
        the compiled model against the last step.
        """
        bench = self.bench
        bench.randomise(seed)
        start = _start(bench)
        reference_inputs = start.inputs()
        reference = start.outcome(bench.module, reference_inputs)
        sample = start.inputs()
        compiled = start.outcome(self.compiled, sample)
        records = []
        for step, graph in zip(steps, self.backend.recorders[0].graphs, strict=True):
            flat = self.backend.inputs_of(step.name)
            fresh = {id(x): new for x, new in zip(sample, start.inputs(), strict=True)}
            weights = [x for x in flat if isinstance(x, Tensor) and id(x) not in fresh]
            versions = [_version(w) for w in weights]
            found = start.outcome(graph, [fresh.get(id(x), x) for x in flat])
            diffs = reference.diffs(found)
            reference = Outcome(found.outputs[-len(reference.outputs) :], found.caches)
            for name, x, expected in zip(_INPUTS, sample, reference_inputs, strict=True):
                diffs.append(compare(name, expected, fresh[id(x)]))
            written = sum(_version(w) != v for w, v in zip(weights, versions, strict=True))
            diffs.append(_weights_diff(written, len(weights)))
            records.append(CheckRecord(diffs=tuple(diffs)))
        # What runs in the end: in inductor mode the code, which no recorded graph stands for.
        records.append(CheckRecord(diffs=tuple(reference.diffs(compiled))))
        start.restore()
        return records

    @property
    def device(self) -> torch.device:
        """Where the graphs run."""
        return self.bench.positions.device

    def rerun(self, index: int, run: Callable[[fx.GraphModule, list[Any]], None]) -> None:
        """Have `run` run the graph of a step, and leave everything as it was.

        The graph gets copies of its latest inputs, and of the weights that it says it writes.
        """
        recorder, module = self.backend.recorders[0], self.bench.module
        step, start = recorder.steps[index], _start(self.bench)
        flat = self.backend.inputs_of(step.name)
        kept = {_storage(x) for x in (*module.parameters(), *module.buffers())}
        kept -= {_storage(x) for x in _written(step, flat) if isinstance(x, Tensor)}
        given = [
            x.clone() if isinstance(x, Tensor) and _storage(x) not in kept else x for x in flat
        ]
        try:
            self.bench.run(run, recorder.graphs[index], given)
        finally:
            start.restore()


def _written(step: StepRecord, flat: Sequence[Any]) -> list[Any]:
    """Return the inputs, of `flat`, that a step's graph writes in place, also through a view."""
    owner = {node.name: node.alias_of or node.name for node in step.nodes}
    written = {owner[name] for node in step.nodes for name in node.mutates}
    given = [node for node in step.nodes if node.op == "placeholder"]
    return [x for node, x in zip(given, flat, strict=True) if owner[node.name] in written]


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


_INPUTS = ("input positions", "input hidden")


def _start(bench: Workbench) -> _Start:
    caches = {layer.layer_name: layer.kv_cache.storage.clone() for layer in bench.layers}
    return _Start(bench, caches, (bench.positions, bench.hidden_TD))


@dataclass(frozen=True, slots=True)
class _Start:
    """The state that every run starts from."""

    bench: Workbench
    caches: dict[str, Tensor]
    given: tuple[Tensor, Tensor]

    def inputs(self) -> list[Tensor]:
        """Return new copies of positions and hidden states."""
        return [x.clone() for x in self.given]

    def restore(self) -> None:
        """Put every cache back."""
        for layer in self.bench.layers:
            layer.kv_cache.storage.copy_(self.caches[layer.layer_name])

    def outcome(self, function: Callable[..., Any], arguments: Sequence[Any]) -> Outcome:
        """Run `function` from this state and return what it left behind."""
        self.restore()
        outputs = pytree.tree_leaves(self.bench.run(function, *arguments))
        layers = self.bench.layers
        return Outcome(outputs, {x.layer_name: x.kv_cache.storage.clone() for x in layers})


def _version(weight: Tensor) -> int:
    # Made under inference mode, a tensor does not count its writes.
    return 0 if weight.is_inference() else weight._version


def _weights_diff(written: int, total: int) -> TensorDiff:
    name = "weights and tables"
    return TensorDiff(name=name, equal=written == 0, max_abs=0.0, mismatched=written, total=total)
