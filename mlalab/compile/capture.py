"""A `torch.compile` backend that records the graph after every stage.

Two modes run the same passes through the same hook and record the same steps. `display` stops
where Inductor would write code and interprets the final graph (about 0.3 s a layer); `inductor`
goes on to real code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from torch import Tensor, fx

from mlalab.compile import inductor
from mlalab.compile.config import PassConfig, resolve
from mlalab.compile.ranges import CompileRange
from mlalab.errors import ConfigError
from mlalab.passes.driver import PassDriver, check_order
from mlalab.passes.fusion import Pass
from mlalab.passes.pipeline import PIPELINE
from mlalab.recorder import Recorder

Mode = Literal["display", "inductor"]


class LabBackend:
    """Compiles with mlalab's passes and keeps a record of each compilation.

    Use as `torch.compile(layer, backend=LabBackend(), fullgraph=True)`; after the first call
    `backend.recorders` holds one recorder per graph.

    Args:
        config: which passes are on; what it leaves open, level O2 decides.
        mode: see the module docstring.
        passes: in the order they run.
        compile_range: token counts that the graph will serve; None means any.
        decode_only: the graph will serve nothing but uniform decode batches.
        keep_graphs: keep a runnable copy of each step's graph, for checking.
        verify: check after each pass that the graph is sound.
    """

    def __init__(
        self,
        config: PassConfig | None = None,
        *,
        mode: Mode = "display",
        passes: Sequence[Pass] = PIPELINE,
        compile_range: CompileRange | None = None,
        decode_only: bool = False,
        keep_graphs: bool = True,
        verify: bool = True,
    ) -> None:
        if mode not in get_args(Mode):
            raise ConfigError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}.")
        check_order(passes)
        self.config = resolve(config or PassConfig())
        self.mode, self.passes = mode, tuple(passes)
        self.compile_range, self.decode_only = compile_range, decode_only
        self.keep_graphs, self.verify = keep_graphs, verify
        self.recorders: list[Recorder] = []
        self._first: Callable[..., Any] | None = None
        self._first_inputs: list[Any] = []
        self._dynamo_inputs: list[Any] = []
        self._lowered_inputs: list[Any] = []

    def __call__(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """Compile one Dynamo graph."""
        recorder = Recorder(keep_graphs=self.keep_graphs)
        self.recorders.append(recorder)
        recorder.capture("dynamo", gm, "The layer as Python wrote it, one node per call.")
        driver = PassDriver(
            *(self.passes, self.config, recorder),
            compile_range=self.compile_range,
            decode_only=self.decode_only,
            verify=self.verify,
        )

        def inner(lowered: fx.GraphModule, inputs: Sequence[Any], **options: Any) -> Any:
            inductor.normalise_views(lowered)
            recorder.capture("aot", lowered, "Functional ATen: nothing is written in place.")
            with inductor.recording_inductor_passes(recorder):
                if self.mode == "display":
                    run = inductor.run_post_grad(lowered, inputs)
                else:
                    run = inductor.generate_code(lowered, inputs, **options)
            return self._remember_inputs(run)

        with inductor.configured(driver):
            compiled = inductor.compile_with(copy.deepcopy(gm), example_inputs, inner)

        def call(*inputs: Any) -> Any:
            if self._first is None:
                self._first, self._first_inputs = call, list(inputs)
            self._dynamo_inputs = list(inputs)
            return compiled(*inputs)

        return call

    def first_graph(self, *arguments: Tensor) -> Callable[..., Any]:
        """Return the graph compiled first, as a function of what the model was called with.

        It goes past Dynamo, which compiles anew, and otherwise, once another model was compiled.

        Args:
            arguments: what the first call was given; tensors that the function's take the place of.
        """
        first, inputs = self._first, self._first_inputs
        assert first is not None

        def run(*fresh: Tensor) -> Any:
            given = dict(zip(map(id, arguments), fresh, strict=True))
            return first(*(given.get(id(x), x) for x in inputs))

        return run

    def inputs_of(self, step: str) -> list[Any]:
        """Return the flat inputs of the latest call, as the graph of `step` takes them."""
        return self._dynamo_inputs if step == "dynamo" else self._lowered_inputs

    def _remember_inputs(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def boxed(flat_inputs: list[Any]) -> Any:
            self._lowered_inputs = list(flat_inputs)
            return run(flat_inputs)

        boxed._boxed_call = True  # type: ignore[attr-defined]
        return boxed
