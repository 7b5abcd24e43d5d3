"""What a pass is: a small value that the driver runs.

A `Fusion` holds patterns and replacements as neighbouring plain functions; a `GraphFusion` or a
`CleanUp` holds one function over the graph. None of them times, orders, gates, checks or records
anything: the driver does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

import mlalab.ops  # noqa: F401  registers torch.ops.mlalab, whose ops patterns name
from mlalab.errors import ConfigError
from mlalab.records import MatchRecord, PatternRecord, Refusal


@dataclass(frozen=True, slots=True)
class PassResult:
    """Where a pass acted, and where it could have and did not."""

    matches: tuple[MatchRecord, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    patterns: tuple[PatternRecord, ...] = ()
    """The patterns that refusals speak of."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One form of a pattern, with what replaces it.

    Args:
        name: shown to the user, e.g. `deepseek_scaling/gptj`.
        pattern, replacement: functions of the fusion's tensors (in order) and its wildcard strings
            (by keyword), returning the same outputs.
        examples: makes example tensors for the first, shape-blind tracing of the pattern. Sizes
            mean nothing; which tensors share a dtype decides what conversions the graph holds.
    """

    name: str
    pattern: Callable[..., Any]
    replacement: Callable[..., Any]
    examples: Callable[[], Sequence[torch.Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What the driver must know of any pass.

    Args:
        name: the pass's name, as vLLM calls it.
        note: one sentence on what it does.
        flags: configuration flags; it runs when any of them is on, and always without any.
        max_tokens: largest token count of a range that it may be applied to, as a number or as
            the name of a number of `PassConfig`; None means any.
        decode_only: only for graphs that serve nothing but uniform decode batches.
        after: names of passes that must not come later than this one.
        last: no fusion may come after it.
        serves: kind of attention layer ("mla" or "gqa") of which each should match once.
    """

    name: str
    note: str
    flags: tuple[str, ...] = ()
    max_tokens: int | str | None = None
    decode_only: bool = False
    after: tuple[str, ...] = ()
    last: bool = False
    serves: str | None = None

    def apply(self, graph: fx.Graph) -> PassResult:
        """Rewrite `graph` in place."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Fusion(Pass):
    """A pattern-and-replacement pass.

    Args:
        tensors: names of the pattern's tensor arguments, in order.
        wildcards: names of its string arguments: any string matches, one pattern serves all layers.
        anchor: the op whose remaining calls are reported as not matched; the first output of every
            pattern must be a call of it.
        variants: forms of the pattern, tried in order.

    Raises:
        ConfigError: two variants of one name.
    """

    tensors: tuple[str, ...]
    wildcards: tuple[str, ...]
    anchor: torch._ops.OpOverload
    variants: tuple[Variant, ...]

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        # Patterns are kept by name, and a reason names its variant.
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(
                f"Two variants of {self.name} are called {twice[0]!r}; give each its own name."
            )

    def apply(self, graph: fx.Graph) -> PassResult:
        """Replace every match in `graph`, in place."""
        from mlalab.passes.matching import apply_fusion

        return apply_fusion(self, graph)


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFusion(Pass):
    """A fusion that no pattern can state, written as one function over the graph."""

    run: Callable[[fx.Graph], PassResult]

    def apply(self, graph: fx.Graph) -> PassResult:
        """Rewrite `graph` in place."""
        return self.run(graph)


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanUp(Pass):
    """A pass that tidies: nobody misses it where there was nothing to tidy."""

    run: Callable[[fx.Graph], PassResult]

    def apply(self, graph: fx.Graph) -> PassResult:
        """Rewrite `graph` in place."""
        return self.run(graph)
