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
from mlalab.exercises.functional_graphs import GraphByHand
from mlalab.graphs import storage_key, value_of
from mlalab.passes.fix_functionalization import FixFunctionalizationPass
from mlalab.passes.fusion import CleanUp, Pass, PassResult
from mlalab.passes.verifier import verify
from mlalab.recorder import Recorder
from mlalab.records import Refusal

FIX = (FixFunctionalizationPass,)


@dataclass
class Run:
    """A program compiled and run once, with the graphs around the passes under test."""

    before: fx.Graph
    after: fx.Graph
    refusals: list[Refusal]
    outputs: Sequence[Any]
    inputs: Sequence[Tensor]
    graph_inputs: Sequence[Any]
    compiled: Callable[..., Any] | None = None
    recorders: Sequence[Recorder] = ()

    @property
    def reasons(self) -> list[str]:
        return [r.reason for r in self.refusals]

    def calls(self, name: str) -> list[fx.Node]:
        """The calls in the graph after the passes whose target is of that name."""
        return _calls(self.after, name)

    def calls_before(self, name: str) -> list[fx.Node]:
        return _calls(self.before, name)


def _calls(graph: fx.Graph, name: str) -> list[fx.Node]:
    return [n for n in graph.nodes if n.op == "call_function" and name in str(n.target)]


def copied(x: Any) -> Any:
    """A copy that lies as its original does, gaps and offset included."""
    if not isinstance(x, Tensor):
        return x
    whole = torch.as_strided(x, (x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)
    return whole.clone().as_strided(x.shape, x.stride(), x.storage_offset())


def compile_and_run(
    f: Callable[..., Any],
    inputs: Sequence[Tensor],
    passes: Sequence[Pass] = FIX,
    mode: Mode = "display",
    dynamic: bool = False,
) -> Run:
    graphs: list[fx.Graph] = []
    refusals: list[Refusal] = []

    def watched(graph: fx.Graph) -> PassResult:
        graphs.append(copy.deepcopy(graph))
        for pass_ in passes:
            refusals.extend(pass_.apply(graph).refusals)
        graphs.append(copy.deepcopy(graph))
        return PassResult()

    backend = LabBackend(passes=[CleanUp(name="watched", note="", run=watched)], mode=mode)
    given = [copied(x) for x in inputs]
    compiled: Callable[..., Any]
    if dynamic:
        torch._dynamo.reset()
        for x in given:
            torch._dynamo.mark_dynamic(x, 0)
        compiled = torch.compile(f, backend=backend, fullgraph=True)
    else:
        # Without Dynamo: what it would capture of a straight line is what `fx` traces.
        compiled = backend(fx.symbolic_trace(f), given)
    outputs = compiled(*given)
    flat = [copied(x) for x in backend.inputs_of("aot")]
    return Run(*graphs, refusals, outputs, given, flat, compiled, backend.recorders)


def differences(run: Run, f: Callable[..., Any], inputs: Sequence[Tensor]) -> list[str]:
    """Where outputs, or the inputs after the call, differ from eager mode."""
    eager_inputs = [copied(x) for x in inputs]
    eager = f(*eager_inputs)
    return [
        *_unequal("output", run.outputs, eager),
        *_unequal("input", run.inputs, eager_inputs),
    ]


def _unequal(kind: str, got: Sequence[Any], wanted: Sequence[Any]) -> list[str]:
    return [
        f"{kind} {i} differs"
        for i, (a, b) in enumerate(zip(got, wanted, strict=True))
        if isinstance(b, Tensor) and not (a.dtype == b.dtype and torch.equal(a, b))
    ]


class _Interpreter(fx.Interpreter):
    """Runs a graph on real tensors and keeps every value alive, so that no memory is reused."""

    def __init__(self, graph: fx.Graph) -> None:
        super().__init__(fx.GraphModule(torch.nn.Module(), graph), garbage_collect_values=False)
        self.seen: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.seen[n] = super().run_node(n)
        return self.seen[n]


def memory(value: Any) -> int:
    return value.untyped_storage().data_ptr() if isinstance(value, Tensor) else 0


def _layout(value: Any) -> Any:
    if not isinstance(value, Tensor) or not value.numel():
        return None
    wide = [n for n, size in zip(value.stride(), value.shape, strict=True) if size > 1]
    return value.storage_offset(), wide


def _sharing(values: Sequence[Any]) -> set[tuple[int, int]]:
    where = [memory(v) for v in values]
    pairs = itertools.combinations(range(len(where)), 2)
    return {(i, j) for i, j in pairs if where[i] == where[j] != 0}


def wrong_graph(run: Run) -> list[str]:
    """Run the graphs before and after on real tensors; return what is wrong with the second.

    That is: another result, one that lies otherwise, results that newly share memory, a malformed
    graph, a recorded value of another shape, or recorded values that alias otherwise than the real.
    """
    verify(run.after, "the passes under test")
    results, held = [], []
    for graph in (run.before, run.after):
        inputs = [copied(x) for x in run.graph_inputs]
        interpreter = _Interpreter(graph)
        outputs = interpreter.run(*inputs)
        results.append([*outputs, *inputs])
        held.append(_sharing(results[-1]))
    found = _unequal("result", results[1], results[0])
    if [_layout(x) for x in results[1]] != [_layout(x) for x in results[0]]:
        found.append("results lie otherwise")
    if not held[1] <= held[0]:
        found.append("results share memory that did not")
    return found + _wrong_values(interpreter.seen)


def _wrong_values(seen: dict[fx.Node, Any]) -> list[str]:
    found = []
    classes: tuple[dict[int, list[str]], ...] = (defaultdict(list), defaultdict(list))
    for node, value in seen.items():
        if isinstance(value, Tensor) and value.numel():
            classes[0][memory(value)].append(node.name)
            classes[1][storage_key(node) or 0].append(node.name)
            recorded = value_of(node)
            hint = tuple(int(s) for s in recorded.shape)
            if (hint, recorded.dtype) != (tuple(value.shape), value.dtype):
                found.append(f"{node.name} is recorded as {recorded}")
    real, said = (sorted(c.values()) for c in classes)
    if real != said:
        found.append(
            f"alias: {[c for c in real if c not in said]}; {[c for c in said if c not in real]}"
        )
    return found


class Sketch(GraphByHand):
    """A graph written by hand that passes run on."""

    def __init__(self, *given: Tensor) -> None:
        super().__init__({f"arg{i}": x for i, x in enumerate(given)})

    def run(self, *outputs: fx.Node, passes: Sequence[Pass] = FIX) -> Run:
        """Run the passes; the graph must then mean what it meant."""
        self.graph.output(outputs)
        before = copy.deepcopy(self.graph)
        fx.GraphModule(torch.nn.Module(), self.graph)
        refusals = [r for p in passes for r in p.apply(self.graph).refusals]
        run = Run(before, self.graph, refusals, (), (), self.given)
        problems = wrong_graph(run)
        assert not problems, problems
        return run
