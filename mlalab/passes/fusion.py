"""What a pass is: a small value that the driver runs.

A `Fusion` holds patterns and replacements as neighbouring plain functions; a `CleanUp` holds one
function over the graph. Neither times, orders, gates, checks or records anything: the driver does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mlalab.records import MatchRecord, Refusal


@dataclass(frozen=True, slots=True)
class PassResult:
    """Where a pass acted, and where it could have and did not."""

    matches: tuple[MatchRecord, ...] = ()
    refusals: tuple[Refusal, ...] = ()


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
class Fusion:
    """A pattern-and-replacement pass.

    Args:
        name: the pass's name, as the seeds call it.
        flag: the configuration flag that switches it.
        tensors: names of the pattern's tensor arguments, in order.
        wildcards: names of its string arguments: any string matches, one pattern serves all layers.
        anchor: the op whose remaining calls are reported as not matched; the first output of every
            pattern must be a call of it.
        variants: forms of the pattern, tried in order.
        max_tokens: largest token count of a range that it may be applied to; None means any.
    """

    name: str
    note: str
    flag: str
    tensors: tuple[str, ...]
    wildcards: tuple[str, ...]
    anchor: torch._ops.OpOverload
    variants: tuple[Variant, ...]
    max_tokens: int | None = None

    def apply(self, graph: fx.Graph) -> PassResult:
        """Replace every match in `graph`, in place."""
        from mlalab.passes.matching import apply_fusion

        return apply_fusion(self, graph)


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanUp:
    """A pass that is one function over the graph."""

    name: str
    note: str
    run: Callable[[fx.Graph], PassResult]
    flag: str | None = None
    max_tokens: int | None = None

    def apply(self, graph: fx.Graph) -> PassResult:
        """Rewrite `graph` in place."""
        return self.run(graph)


Pass = Fusion | CleanUp
