"""One trace of a model by Dynamo, called without Dynamo from then on.

Dynamo checks a guard for every parameter on every call. Here the arguments are two tensors and the
rest is the model's own, so what a graph takes is known once it has been traced.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from mlalab.compile.entries import Entry
from mlalab.context import BatchKind, graph_serves
from mlalab.errors import ConfigError


class Face:
    """A model as one kind of batch sees it.

    Args:
        module: called as `module(positions, hidden_TD)`; returns a tensor or a tuple of tensors.
        kind: the graph will serve nothing but batches of this kind.
        typical_rows: token count that Inductor chooses its kernels for; no limit.
    """

    def __init__(self, module: nn.Module, kind: BatchKind, typical_rows: int) -> None:
        self.module, self.kind, self._typical_rows = module, kind, typical_rows
        self._graph: fx.GraphModule | None = None
        self._fixed: list[Any] = []
        self._places: tuple[list[int], list[int], list[int]] = ([], [], [])
        self._unpack: Callable[[Sequence[Any]], Any] = tuple

    def traced(self, positions: Tensor, hidden_TD: Tensor) -> tuple[fx.GraphModule, list[Any]]:
        """Return the graph for any token count, and fake inputs that say so.

        Raises:
            ConfigError: the module does not fit the arguments or results that are expected.
        """
        if self._graph is None:
            self._trace(positions, hidden_TD)
        assert self._graph is not None
        placeholders = self._graph.graph.find_nodes(op="placeholder")
        return self._graph, [node.meta["example_value"] for node in placeholders]

    def flat(self, positions: Tensor, hidden_TD: Tensor) -> list[Any]:
        """Return what the graph takes, in order."""
        inputs = list(self._fixed)
        for values, places in zip(
            (positions, hidden_TD, positions.size(0)), self._places, strict=True
        ):
            for place in places:
                inputs[place] = values
        return inputs

    def static(self, positions: Tensor, hidden_TD: Tensor) -> tuple[fx.GraphModule, list[Any]]:
        """Return the graph, and fake inputs of exactly these sizes.

        Real tensors would do, but for sizes that depend on data: tracing has to make them up, and
        needs a place for what it learns of them. It is a new one, as that holds for no other graph.
        """
        gm = copy.deepcopy(self.traced(positions, hidden_TD)[0])
        for node in gm.graph.nodes:
            # The symbols that the first trace made up are not known in the new place.
            node.meta.pop("unbacked_bindings", None)
        mode = FakeTensorMode(shape_env=ShapeEnv())
        return gm, [
            mode.from_tensor(x, static_shapes=True) if isinstance(x, Tensor) else x
            for x in self.flat(positions, hidden_TD)
        ]

    @property
    def activations(self) -> list[int]:
        """Which inputs of the graph change from batch to batch; it was traced before."""
        return sorted(place for places in self._places for place in places)

    def call(self, entry: Entry, positions: Tensor, hidden_TD: Tensor) -> Any:
        """Run a graph compiled from this trace."""
        return self._unpack(entry.call(*self.flat(positions, hidden_TD)))

    def _trace(self, positions: Tensor, hidden_TD: Tensor) -> None:
        seen: list[Any] = []

        def backend(gm: fx.GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
            self._graph = gm

            def once(*inputs: Any) -> Any:
                seen.extend(inputs)
                raise _TracedError

            return once

        # Aliases, so that the marks do not stay on the caller's tensors.
        arguments = [x.view_as(x) for x in (positions, hidden_TD)]
        for x in arguments:
            # With nothing to go by, Inductor takes two kernels where one does, for a norm say.
            torch._dynamo.decorators.mark_unbacked(
                x, 0, hint_override=self._typical_rows, shape_id="rows"
            )
        torch._dynamo.reset()
        try:
            with graph_serves(self.kind):
                torch.compile(self.module, backend=backend, fullgraph=True)(*arguments)
        except _TracedError:
            pass
        self._lay_out(seen, arguments)

    def _lay_out(self, seen: Sequence[Any], arguments: Sequence[Tensor]) -> None:
        """Find out where each argument goes, and that everything else is the model's own."""
        own = {id(x) for x in (*self.module.parameters(), *self.module.buffers())}
        self._fixed, self._places = list(seen), ([], [], [])
        for place, value in enumerate(seen):
            if isinstance(value, int):
                self._places[2].append(place)
            elif id(value) not in own:
                which = next((i for i, x in enumerate(arguments) if value is x), None)
                if which is None:
                    raise ConfigError(
                        f"Input {place} of the traced graph is neither an argument nor a "
                        f"parameter or buffer of the model; register it as a buffer."
                    )
                self._places[which].append(place)
                self._fixed[place] = None
        assert self._graph is not None
        results = self._graph.graph.output_node().args[0]
        self._unpack = tuple if len(results) > 1 else _only


class _TracedError(Exception):
    """Stops the first call once it is known what the graph takes."""


def _only(results: Sequence[Any]) -> Any:
    return results[0]
