"""Compiling small programs through the real pipeline and comparing them with eager mode."""

from __future__ import annotations

import copy
import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from mlalab.compile.capture import LabBackend, Mode
from mlalab.graphs import storage_key, value_of
from mlalab.passes.fix_functionalization import FixFunctionalizationPass
from mlalab.passes.fusion import CleanUp, Pass, PassResult
from mlalab.records import Refusal

FIX = (FixFunctionalizationPass,)


@dataclass
class Run:
    """A program compiled and run once."""

    backend: LabBackend
    before: fx.Graph
    after: fx.Graph
    refusals: tuple[Refusal, ...]
    outputs: Sequence[Any]
    inputs: Sequence[Tensor]


def storages(tensors: Sequence[Any]) -> list[int]:
    return [t.untyped_storage().data_ptr() if isinstance(t, Tensor) else 0 for t in tensors]


def compile_and_run(
    f: Callable[..., Any],
    inputs: Sequence[Tensor],
    passes: Sequence[Pass] = FIX,
    mode: Mode = "display",
) -> Run:
    graphs: list[fx.Graph] = []

    def keep(graph: fx.Graph) -> PassResult:
        graphs.append(copy.deepcopy(graph))
        return PassResult()

    look = CleanUp(name="look", note="", run=keep)
    backend = LabBackend(passes=(look, *passes, look), mode=mode)
    gm = fx.symbolic_trace(getattr(f, "function", f))
    given = [x.clone() for x in inputs]
    outputs = backend(gm, given)(*given)
    refusals = tuple(r for s in backend.recorders[-1].steps for r in s.refusals)
    return Run(backend, *graphs, refusals, outputs, given)


def differences(run: Run, f: Callable[..., Any], inputs: Sequence[Tensor]) -> list[str]:
    expected_inputs = [x.clone() for x in inputs]
    expected = f(*expected_inputs)
    found = []
    for kind, got, want in (
        ("output", run.outputs, expected),
        ("input", run.inputs, expected_inputs),
    ):
        for i, (a, b) in enumerate(zip(got, want, strict=True)):
            if a.shape != b.shape or a.dtype != b.dtype or not torch.equal(a, b):
                found.append(f"{kind} {i} differs")
    # Nothing that eager mode keeps apart may share memory: the caller may write to it.
    mine = storages([*run.outputs, *run.inputs])
    theirs = storages([*expected, *expected_inputs])
    for i, j in itertools.combinations(range(len(mine)), 2):
        if mine[i] == mine[j] != 0 and theirs[i] != theirs[j]:
            found.append(f"values {i} and {j} share memory")
    return found


class _Interpreter(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self.seen: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.seen[n] = super().run_node(n)
        return self.seen[n]


def alias_disagreements(graph: fx.Graph, inputs: Sequence[Any]) -> list[str]:
    """Run `graph` on real tensors; return where its recorded values alias otherwise than they."""
    interpreter = _Interpreter(fx.GraphModule(torch.nn.Module(), graph))
    interpreter.run(*[x.clone() if isinstance(x, Tensor) else x for x in inputs])
    real: dict[int, set[str]] = defaultdict(set)
    fake: dict[int, set[str]] = defaultdict(set)
    found = []
    for node, value in interpreter.seen.items():
        if isinstance(value, Tensor) and value.numel():
            real[value.untyped_storage().data_ptr()].add(node.name)
            key = storage_key(node)
            if key is None:
                found.append(f"{node.name} has no recorded value")
            else:
                fake[key].add(node.name)
            recorded = value_of(node)
            if tuple(value.shape) != tuple(int(s) for s in recorded.shape):
                found.append(f"{node.name}: shape {value.shape} {recorded.shape}")
            if tuple(value.stride()) != tuple(int(s) for s in recorded.stride()):
                found.append(f"{node.name}: stride {value.stride()} {recorded.stride()}")
    classes = [sorted(sorted(c) for c in classes.values()) for classes in (real, fake)]
    if classes[0] != classes[1]:
        extra = [c for c in classes[0] if c not in classes[1]]
        found.append(f"really alias: {extra}; recorded: {[c for c in classes[1] if c not in classes[0]]}")
    return found
