"""A compiled model: one graph per kind of batch and range of token counts.

The model is traced once for each kind of batch, with a token count that nothing is assumed of (not
even that it is more than one), and compiled for a range, or an exact size, when a batch first needs
it. An empty batch has a graph of its own. Graphs with decode-only fusions serve uniform decode
batches, by the predicate that CUDA graphs use and not by size alone; every other batch gets the
general graph.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, fx, nn

from mlalab.compile.captured import Replays
from mlalab.compile.cudagraph_modes import STYLES
from mlalab.compile.entries import Entry, compile_entry
from mlalab.compile.faces import Face
from mlalab.compile.pieces import compile_pieces
from mlalab.compile.ranges import CompileRange
from mlalab.compile.report import Report, report_of, warn_of_misses, warn_of_useless
from mlalab.compile.settings import CompileConfig
from mlalab.context import (
    BatchKind,
    BatchMetadata,
    ForwardContext,
    current_context,
    forward_context,
)
from mlalab.errors import ConfigError, InputError
from mlalab.kernels import Provider, availability, force
from mlalab.passes.driver import PassDriver, check_order
from mlalab.passes.fusion import Pass
from mlalab.passes.pipeline import PIPELINE
from mlalab.records import StepStatus

Graph = Callable[[Tensor, Tensor], Any]
"""(positions, hidden_TD) → what the model returns."""

KINDS: tuple[BatchKind, ...] = get_args(BatchKind)


@dataclass(frozen=True, slots=True)
class GraphKey:
    """What a graph serves: a kind of batch, and a range or (`exact`) one size."""

    kind: BatchKind
    served: CompileRange
    exact: bool = False

    @property
    def decode_only(self) -> bool:
        """Whether it serves nothing but uniform decode batches."""
        return self.kind == "decode"

    def __lt__(self, other: GraphKey) -> bool:
        return self._order < other._order

    @property
    def _order(self) -> tuple[int, CompileRange, bool]:
        return KINDS.index(self.kind), self.served, self.exact

    def __str__(self) -> str:
        return f"{self.kind} {self.served.end if self.exact else self.served}"


class CompiledModel:
    """A model compiled with mlalab's passes; call it inside a forward context like the model.

    Weights may be changed in place. After a parameter was replaced, or the model moved, `reset`
    it: what was compiled holds on to the old ones.

    Args:
        module: called as `module(positions, hidden_TD)`.
        config: level, passes and limits.
        passes: in the order they run.

    Raises:
        ConfigError: a flag, number or order of passes that cannot be used.
    """

    def __init__(
        self,
        module: nn.Module,
        config: CompileConfig | None = None,
        passes: Sequence[Pass] = PIPELINE,
    ) -> None:
        check_order(passes)
        self.module, self.config = module, config or CompileConfig()
        self.layers: list[Any] = [m for m in module.modules() if hasattr(m, "layer_name")]
        if not self.layers:
            raise ConfigError(f"{type(module).__name__} has no attention layer of mlalab to fuse.")
        kinds = {layer.kind for layer in self.layers}
        self.passes = tuple(passes)
        # One that cannot be used has its fusions switched off, aloud; the rest still has to run.
        provider = self.config.provider
        forces = provider != "auto" and availability(provider).usable
        self.forced: Provider | None = provider if forces else None
        self._query_len = self.config.decode_query_len
        self.decided = self.config.passes_of(
            rope_custom_op=any(layer.options.rope_custom_op for layer in self.layers)
        )
        # A pass for layers that the model does not have must not cut its ranges.
        useful = [p for p in passes if p.serves is None or p.serves in kinds]
        self.ranges = self.config.ranges(self.decided, useful)
        warn_of_useless(self.passes, self.config.pass_config, self.layers)
        self.reset()

    def reset(self) -> None:
        """Forget every graph; the next call traces and compiles again."""
        self.entries: dict[GraphKey, Entry] = {}
        rows = dict.fromkeys(KINDS, self.config.max_num_batched_tokens)
        rows["decode"] = self.config.decode_bound
        self._faces = {kind: Face(self.module, kind, rows[kind]) for kind in KINDS}
        self._chosen: dict[tuple[BatchKind, int], Graph] = {}
        self.replays = Replays()

    def __call__(self, positions: Tensor, hidden_TD: Tensor) -> Any:
        """Run the graph for this batch.

        Raises:
            InputError: more tokens than the last range holds.
            ContextError: no forward context is open.
        """
        kind = self.kind_of(current_context().metadata)
        return self.graph_for(kind, positions, hidden_TD)(positions, hidden_TD)

    def graph_for(self, kind: BatchKind, positions: Tensor, hidden_TD: Tensor) -> Graph:
        """Return the graph that serves such a batch, compiled now if it is the first of its kind.

        Args:
            kind: what `kind_of` says of the batch.
        """
        graph = self._chosen.get((kind, positions.size(0)))
        return graph or self._choose(kind, positions, hidden_TD)

    def kind_of(self, metadata: BatchMetadata | None) -> BatchKind:
        """Return the kind of a batch; "decode" is the predicate of CUDA graphs of decode.

        A uniform batch of another query length than the configured one is general, and so is a
        profile run.
        """
        if metadata is None or metadata.uniform_query_len not in (None, self._query_len):
            return "general"
        return metadata.kind

    def key_for(self, num_tokens: int, kind: BatchKind) -> GraphKey:
        """Return which graph serves a batch of `num_tokens` rows.

        Args:
            kind: what `kind_of` says of the batch.

        Raises:
            InputError: more tokens than the last range holds.
        """
        # What torch emits for a call left functional has a negative size when there are no rows.
        exact = num_tokens == 0 or num_tokens in self.config.compile_sizes
        served = CompileRange(num_tokens, num_tokens) if exact else self._range_of(num_tokens)
        return GraphKey(kind if self._has_own_graph(kind, served) else "general", served, exact)

    def _range_of(self, num_tokens: int) -> CompileRange:
        for served in self.ranges:
            if num_tokens <= served.end:
                return served
        raise InputError(
            f"A batch of {num_tokens} tokens is outside all compile ranges, which end at "
            f"{self.ranges[-1].end}; raise max_num_batched_tokens or split the batch."
        )

    def gates(self, key: GraphKey) -> dict[str, StepStatus]:
        """Return, by name, "applied" for each pass that may run on such a graph, or why not."""
        driver = self._driver(key)
        return {p.name: driver.gate(p) for p in self.passes}

    def _has_own_graph(self, kind: BatchKind, served: CompileRange) -> bool:
        """Return whether the graph for batches of this kind is another than the general one."""
        if any(layer.kind == "mla" and layer.options.exposed for layer in self.layers):
            return True
        gates = self.gates(GraphKey(kind, served))
        in_passes = any(p.decode_only and gates[p.name] == "applied" for p in self.passes)
        in_layers = any(layer.options.fusion == "layer" for layer in self.layers)
        return in_passes or (kind == "decode" and in_layers)

    def _driver(self, key: GraphKey) -> PassDriver:
        return PassDriver(
            *(self.passes, self.decided),
            compile_range=key.served,
            decode_only=key.decode_only,
            verify=self.config.verify,
            # Fake implementations look layers up by name, so a graph depends on them.
            salt=[(x.layer_name, type(x).__qualname__, x.shape, x.options) for x in self.layers],
        )

    def _choose(self, kind: BatchKind, positions: Tensor, hidden_TD: Tensor) -> Graph:
        """Return the graph for such a batch, compiled now if it is the first."""
        num_tokens = positions.size(0)
        key = self.key_for(num_tokens, kind)
        if key not in self.entries:
            self.entries[key] = self._compile(key, positions, hidden_TD)
            warn_of_misses(str(key), self.entries[key].outcomes, self.passes, self.layers)
        graph: Graph = functools.partial(self._faces[key.kind].call, self.entries[key])
        if self.forced is not None:
            graph = force(self.forced)(graph)
        self._chosen[kind, num_tokens] = graph
        return graph

    def _compile(self, key: GraphKey, positions: Tensor, hidden_TD: Tensor) -> Entry:
        face = self._faces[key.kind]
        gm, inputs = (face.static if key.exact else face.traced)(positions, hidden_TD)

        def compiled(gm: fx.GraphModule, inputs: Sequence[Any]) -> Entry:
            config = self.config
            return compile_entry(gm, inputs, self._driver(key), config.mode, config.cache)

        style = STYLES[self.config.cudagraph_mode].get(key.kind)
        if style != "PIECEWISE" or not key.served.end:
            return compiled(gm, inputs)
        return compile_pieces(gm, inputs, face.activations, compiled, self.replays)

    def warm_up(self) -> None:
        """Compile every graph now, in profile runs: no cache is written."""
        layer, config = self.layers[0], self.config
        spans = [(size, size) for size in config.compile_sizes]
        spans += [(served.start, served.end) for served in self.ranges]
        context = ForwardContext(layers={x.layer_name: x for x in self.layers}, checked=False)
        with torch.no_grad(), forward_context(context):
            for least, most in spans:
                hidden = torch.zeros(
                    (most, layer.shape.hidden_size),
                    dtype=layer.options.dtype,
                    device=layer.options.device,
                )
                positions = torch.zeros(most, dtype=torch.int64, device=hidden.device)
                for kind in KINDS if least <= config.decode_bound else ("general", "prefill"):
                    self._choose(kind, positions, hidden)

    def partitions(self) -> dict[BatchKind, int]:
        """Return, by kind of batch, the pieces that its graphs are cut into for CUDA graphs."""
        cut = [(key.kind, entry.partitions) for key, entry in sorted(self.entries.items())]
        return {kind: max(n for own, n in cut if own == kind) for kind, _ in cut}

    def report(self) -> Report:
        """Return, for every graph and pass that was asked for, what matched and what did not."""
        graphs = {str(key): self.entries[key].outcomes for key in sorted(self.entries)}
        return report_of(graphs, self.passes, self.decided, self.layers, self.ranges)
