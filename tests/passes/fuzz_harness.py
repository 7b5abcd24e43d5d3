"""Compiling a random model and comparing it with the same graph before any of our passes ran.

Inductor itself may round otherwise than eager mode, so every bit is demanded against the graph as
our passes found it, run by the same code; eager mode must agree up to rounding.
"""

from __future__ import annotations

import copy
import itertools
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch._dynamo.decorators import mark_unbacked

from mlalab.checking import compare
from mlalab.compile import inductor
from mlalab.compile.config import PassConfig
from mlalab.compile.ranges import CompileRange
from mlalab.context import forward_context
from mlalab.passes.driver import PassDriver
from mlalab.passes.fusion import CleanUp, Pass, PassResult
from mlalab.passes.pipeline import PIPELINE
from tests.passes.fuzz_batches import batch, batch_of, context_of
from tests.passes.fuzz_models import example_inputs, random_layers, write_model
from tests.passes.fuzz_steps import Choose, RandomModel
from tests.passes.toy_harness import memory

ON = PassConfig(
    eliminate_noops=True,
    fuse_rope_kvcache=True,
    fuse_rope_kvcache_cat_mla=True,
    fuse_aiter_qk_rope_kvcache_mla=True,
)
TOKENS = (1, 2, 3, 5, 0)


class Tracer(fx.Tracer):
    """What Dynamo would capture of a straight line, without its time."""

    proxy_buffer_attributes = True


@dataclass
class Compiled:
    """A backend that keeps the graph as our passes found it, and can run that instead."""

    passes: Sequence[Pass]
    decode_only: bool
    plain: bool = False
    """Run the graph as it was."""
    drivers: list[PassDriver] = field(default_factory=list)

    def __call__(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        before: list[fx.GraphModule] = []

        def keep(graph: fx.Graph) -> PassResult:
            before.append(fx.GraphModule(graph.owning_module, copy.deepcopy(graph)))
            return PassResult()

        keeping = CleanUp(name="keep", note="", run=keep)
        driver = PassDriver(
            *([keeping, *self.passes], ON),
            compile_range=CompileRange(0, 256),
            decode_only=self.decode_only,
        )
        self.drivers.append(driver)

        def inner(lowered: fx.GraphModule, inputs: Sequence[Any], **_: Any) -> Any:
            run = inductor.interpret(lowered, inputs)

            def boxed(flat: list[Any]) -> Any:
                return before[0](*flat) if self.plain else run(flat)

            boxed._boxed_call = True
            return boxed

        with inductor.configured(driver):
            return inductor.compile_with(gm, example_inputs, inner)


@dataclass
class Outcome:
    """What became of one random model."""

    matches: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0
    text: str = ""


_NAMES = re.compile(r"\b[a-z_]*\d+[a-z_0-9.]*\b|\d+|\bat \w+")


def reason_of(text: str) -> str:
    """Return a reason without the names of nodes in it."""
    return _NAMES.sub("…", text)[:110]


def run_seed(seed: int, passes: Sequence[Pass] = PIPELINE) -> Outcome:
    """Write a model from a seed, compile it and compare."""
    torch.manual_seed(seed)
    return run_model(random.Random(seed).randrange, passes)


def run_model(choose: Choose, passes: Sequence[Pass] = PIPELINE) -> Outcome:
    """Write a model, compile it and compare; what is raised is a problem."""
    start, outcome = time.process_time(), Outcome()
    layers = random_layers(choose)
    # "any": one symbolic graph; "unbacked": one about whose size nothing is known.
    how = {14: "any", 15: "unbacked"}.get(choose(16), "exact")
    tokens = 5 if how != "exact" else TOKENS[choose(len(TOKENS))]
    metadata = batch_of(choose, tokens)
    context = context_of(choose, layers, metadata, tokens)
    model = write_model(choose, layers, context, tokens)
    uniform = metadata is not None and metadata.uniform_query_len is not None
    backend = Compiled(passes, decode_only=uniform and choose(8) > 0)
    outcome.text = f"{how} {tokens} {metadata} {backend.decode_only}\n{model}"
    # Without rows torch fails by itself: what it clones for a call left functional has a negative
    # size, which it cannot know of an unbacked one.
    counts = {"exact": (tokens,), "any": (5, 3, 2), "unbacked": (5, 1)}[how]
    try:
        function = _captured(model, backend, how)
        for number, count in enumerate(counts):
            if number:
                metadata = batch([1] * count, [9] * count, count) if uniform else None
                context = context_of(choose, layers, metadata, count)
            with torch.no_grad(), forward_context(context):
                problems = _differences(model, function, backend, example_inputs(count, number))
                outcome.problems += [f"{count} tokens: {x}" for x in problems]
    except Exception as error:
        inner = getattr(error, "inner_exception", error)
        outcome.problems.append(f"{type(inner).__name__}: {inner}")
    _count(outcome, backend)
    outcome.seconds = time.process_time() - start
    return outcome


def _captured(model: RandomModel, backend: Compiled, how: str) -> Callable[..., Any]:
    if how == "exact":
        compiled: list[Callable[..., Any]] = []

        def call(*inputs: Tensor) -> Any:
            if not compiled:
                gm = fx.GraphModule(model, Tracer().trace(model))
                compiled.append(backend(gm, [x.clone() for x in inputs]))
            return compiled[0](*inputs)

        return call
    torch._dynamo.reset()
    function = torch.compile(model, backend=backend, fullgraph=True)
    mark = torch._dynamo.mark_dynamic if how == "any" else mark_unbacked

    def marked(*inputs: Tensor) -> Any:
        for x in inputs:
            mark(x, 0)
        return function(*inputs)

    return marked


def _count(outcome: Outcome, backend: Compiled) -> None:
    for driver in backend.drivers:
        for pass_ in driver.outcomes or ():
            outcome.matches[pass_.name] += len(pass_.matches)
            names = (f"{pass_.name}: {reason_of(r.reason)}" for r in pass_.refusals)
            outcome.refusals.update(names)


def _differences(
    model: RandomModel, function: Callable[..., Any], backend: Compiled, inputs: Sequence[Tensor]
) -> Iterator[str]:
    """Yield where the compiled model differs from the graph as it was, and that from eager mode."""
    backend.plain = True
    plain, shared = _left_behind(model, function, inputs)
    backend.plain = False
    fused, now_shared = _left_behind(model, function, inputs)
    for name, wanted in plain.items():
        diff = compare(name, wanted, fused[name])
        if not diff.equal:
            yield f"{name} differs in {diff.mismatched} of {diff.total}, by {diff.max_abs}"
    if not now_shared <= shared:
        yield "results share memory that did not"
    try:
        eager, _ = _left_behind(model, model, inputs)
    except RuntimeError:
        return  # eager mode refuses a copy onto itself that other sizes did not have
    for name, wanted in eager.items() if model.in_order else ():
        if not compare(name, wanted, plain[name]).close:
            yield f"{name} is not close to eager mode"


def _left_behind(
    model: RandomModel, function: Callable[..., Any], inputs: Sequence[Tensor]
) -> tuple[dict[str, Tensor], set[tuple[int, int]]]:
    """Return outputs, inputs and caches after a run from the same start, and what shares memory."""
    generator = torch.Generator().manual_seed(1)
    for layer in model.layers:
        rows = torch.randn(layer.kv_cache.storage.shape, generator=generator)
        layer.kv_cache.typed.copy_(rows.to(layer.kv_cache.typed_dtype))
    given = [x.clone() for x in inputs]
    held = [*function(*given), *given]
    left = {f"tensor {i}": x.clone() for i, x in enumerate(held)}
    left |= {layer.layer_name: layer.kv_cache.storage.clone() for layer in model.layers}
    places = [memory(x) if x.numel() else 0 for x in held]
    pairs = itertools.combinations(range(len(held)), 2)
    return left, {(i, j) for i, j in pairs if places[i] == places[j] != 0}
