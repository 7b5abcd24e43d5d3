"""What became of every pass that was asked for: never silently nothing."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlalab.compile.config import PassConfig
from mlalab.compile.ranges import CompileRange
from mlalab.errors import PassWarning
from mlalab.passes.driver import PassOutcome
from mlalab.passes.fusion import CleanUp, Pass
from mlalab.records import Refusal


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One pass on one graph.

    `expected` is how many layers of the kind that the pass serves the model has.
    """

    graph: str
    name: str
    status: str
    expected: int
    matched: int
    refusals: tuple[Refusal, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Each reason why a place was refused, once."""
        return tuple(dict.fromkeys(r.reason for r in self.refusals))


@dataclass(frozen=True, slots=True)
class Report:
    """A row for every graph and every fusion that was asked for; printing it gives a table."""

    rows: tuple[ReportRow, ...]
    not_compiled: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[ReportRow]:
        return iter(self.rows)

    def __str__(self) -> str:
        titles = ("graph", "pass", "status", "layers", "matched", "refused")
        cells = [titles] + [
            (r.graph, r.name, r.status, str(r.expected), str(r.matched), str(len(r.refusals)))
            for r in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = []
        for index, row in enumerate(cells):
            pairs = zip(row, widths, strict=True)
            lines.append("  ".join(cell.ljust(width) for cell, width in pairs).rstrip())
            if index:
                lines += [f"    {reason}" for reason in self.rows[index - 1].reasons]
        if self.not_compiled:
            lines.append(f"not compiled yet: {', '.join(self.not_compiled)}")
        return "\n".join(lines)


def expected_matches(pass_: Pass, layers: Sequence[Any]) -> int:
    """Return how many places `pass_` should find in a model with these layers."""
    return sum(x.kind == pass_.serves and x.options.fusion == "graph" for x in layers)


def report_of(
    graphs: Mapping[str, Sequence[PassOutcome]],
    passes: Sequence[Pass],
    config: PassConfig,
    layers: Sequence[Any],
    ranges: Sequence[CompileRange],
) -> Report:
    """Gather the outcomes of each graph, by its printed key, for the passes that are on."""
    asked = {p.name: p for p in passes if not isinstance(p, CleanUp) and config.enabled(p.flags)}
    rows = [
        ReportRow(
            *(graph, outcome.name, outcome.status),
            *(expected_matches(asked[outcome.name], layers), len(outcome.matches)),
            outcome.refusals,
        )
        for graph, outcomes in graphs.items()
        for outcome in outcomes
        if outcome.name in asked
    ]
    missing = [str(r) for r in ranges if not any(g.endswith(f" {r}") for g in graphs)]
    return Report(tuple(rows), tuple(missing))


def warn_of_misses(
    graph: str, outcomes: Sequence[PassOutcome], passes: Sequence[Pass], layers: Sequence[Any]
) -> None:
    """Warn of every fusion that ran on a graph and matched less than the model has layers for."""
    by_name = {p.name: p for p in passes}
    for outcome in outcomes:
        expected = expected_matches(by_name[outcome.name], layers)
        ran = outcome.status in ("applied", "no match", "refused")
        if ran and len(outcome.matches) < expected:
            why = _nearest(outcome.refusals)
            warnings.warn(
                f"{outcome.name} matched {len(outcome.matches)} of {expected} layers in the graph "
                f"for {graph}: {why}.",
                PassWarning,
                stacklevel=5,
            )


def warn_of_useless(passes: Sequence[Pass], asked: PassConfig, layers: Sequence[Any]) -> None:
    """Warn of every fusion that was switched on by name for layers that the model does not have."""
    for pass_ in passes:
        useless = pass_.serves is not None and not expected_matches(pass_, layers)
        flags = [flag for flag in pass_.flags if getattr(asked, flag) is True]
        if useless and flags:
            warnings.warn(
                f"{flags[0]} is on and the model has no {pass_.serves} layer for "
                f"{pass_.name} to fuse.",
                PassWarning,
                stacklevel=4,
            )


def _nearest(refusals: Sequence[Refusal]) -> str:
    if not refusals:
        return "the graph calls none of the ops it starts from"
    first = refusals[0]
    form = f" (nearest form: {first.variant})" if first.variant else ""
    return f"{first.layer or first.node}: {first.reason}{form}"
