"""A trace as plain text: what a terminal shows and what the notebook tests compare.

Deterministic: no times, no addresses, no widths taken from the terminal; ASCII throughout.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mlalab.records import Refusal, StepRecord

_HEADS = (
    *("step", "kind", "status", "nodes"),
    *("+created", "-erased", "~rewired", "matches", "check"),
)
_LEFT = 3
"""Number of leading columns that are words, aligned to the left."""


def step_table(steps: Sequence[StepRecord]) -> str:
    """One line per step: what it is, what it did to the graph, and whether the check passed."""
    return table([_HEADS, *(_step_row(step) for step in steps)], _LEFT)


def op_delta(before: StepRecord, after: StepRecord) -> str:
    """How often each op occurs before and after, for the ops whose count changed."""
    rows = delta_rows(before, after)
    if len(rows) == 1:
        return f"no op count changed ({rows[0][1]} ops)"
    cells = [(op, str(old), str(new), f"{new - old:+d}") for op, old, new in rows]
    return table([("op", "before", "after", "delta"), *cells], 1)


def delta_rows(before: StepRecord, after: StepRecord) -> list[tuple[str, int, int]]:
    """(op, count before, count after) for every changed op, losses first, and the total last."""
    old, new = (
        Counter(node.target for node in step.nodes if node.op == "call_function")
        for step in (before, after)
    )
    changed = [op for op in old.keys() | new.keys() if old[op] != new[op]]
    changed.sort(key=lambda op: (new[op] - old[op], op))
    rows = [(op, old[op], new[op]) for op in changed]
    return [*rows, ("total", old.total(), new.total())]


def why_text(refusals: Sequence[Refusal]) -> str:
    """Why a pass did not act: each reason once, with what was expected and what was found."""
    if not refusals:
        return "nothing was refused"
    return "\n".join(_why(first, count) for first, count in distinct(refusals))


def distinct(refusals: Sequence[Refusal]) -> list[tuple[Refusal, int]]:
    """Refusals that say the same of different nodes, as the first one and their number."""
    same: dict[tuple[str | None, ...], list[Refusal]] = {}
    for refusal in refusals:
        key = (refusal.reason, refusal.expected, refusal.found, refusal.variant)
        same.setdefault(key, []).append(refusal)
    return [(group[0], len(group)) for group in same.values()]


def why_sentence(first: Refusal, count: int) -> str:
    """One reason in a line: of which node, how many more, and why."""
    where = first.node + (f" ({first.layer})" if first.layer else "")
    others = f" and {count - 1} more" if count > 1 else ""
    return f"{where}{others}: {first.reason}"


def _why(first: Refusal, count: int) -> str:
    facts = (("expected", first.expected), ("found", first.found), ("nearest", first.variant))
    lines = [f"  {name:<9} {value}" for name, value in facts if value is not None]
    return "\n".join([why_sentence(first, count), *lines])


def _step_row(step: StepRecord) -> tuple[str, ...]:
    changes: tuple[str, ...] = ("retraced", "", "")
    if not step.retraced:
        counts = (("+", step.created), ("-", step.erased), ("~", step.rewired))
        changes = tuple(f"{sign}{len(names)}" if names else "0" for sign, names in counts)
    matches = str(len(step.matches)) if step.kind == "fusion" else "-"
    return (
        step.name,
        step.kind,
        step.status,
        str(len(step.nodes)),
        *changes,
        matches,
        step.verdict,
    )


def table(rows: Sequence[Sequence[str]], left: int) -> str:
    """Rows of cells as aligned columns, the first `left` of them to the left, under a rule."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
