"""What a step did, as HTML: op counts, numeric check, matches, and why it did not match.

Buttons carry `data-pick` (one node) or `data-light` (several); the page's script acts on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from mlalab.records import CheckRecord, MatchRecord, Refusal, StepRecord
from mlalab.viz.text import delta_rows, distinct

_SIGNS = {"ok": "✓", "differs": "≠", "FAILED": "✗"}


def facts_html(step: StepRecord, before: StepRecord | None) -> str:
    """The sections that apply to the step, one after the other."""
    parts = []
    if step.check is not None:
        parts.append(_section("Numeric check", _check(step.check)))
    if step.refusals:
        whys = "".join(_why(refusal, count) for refusal, count in distinct(step.refusals))
        parts.append(_section("Why it did not match", whys))
    if step.matches:
        items = "".join(_match(match) for match in step.matches)
        parts.append(_section("Matches", f"<ul>{items}</ul>"))
    if before is not None and len(rows := delta_rows(before, step)) > 1:
        cells = [
            (op, str(old), str(new), f"{new - old:+d}".replace("-", "−")) for op, old, new in rows
        ]
        parts.append(_section("Ops", _table(("op", "before", "after", "delta"), cells)))
    return "".join(parts)


def chip_html(number: int, step: StepRecord) -> str:
    """The step's name and numbers, for the row of steps."""
    counts = (("+", step.created), ("−", step.erased), ("~", step.rewired))
    marks = [f"{sign}{len(names)}" for sign, names in counts if names]
    words = marks or ([] if step.status == "captured" else [step.status])
    if step.check is not None:
        words.append(f"{_SIGNS[step.verdict]} check")
    nodes = f"{len(step.nodes)} nodes"
    return f"<b>{number} {escape(step.name)}</b><span>{escape(' · '.join([nodes, *words]))}</span>"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], bad: Sequence[bool] = ()) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in heads)
    body = ""
    for i, row in enumerate(rows):
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
        body += f'<tr class="bad">{cells}</tr>' if i < len(bad) and bad[i] else f"<tr>{cells}</tr>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _check(check: CheckRecord) -> str:
    rows = [
        (
            diff.name,
            "✓ equal" if diff.equal else "✗ differ",
            f"{diff.max_abs:.2e}" if diff.max_abs else "0",
            f"{diff.mismatched} of {diff.total}",
        )
        for diff in check.diffs
    ]
    if not rows:
        return "<p>✗ nothing was compared</p>"
    bad = [not diff.equal for diff in check.diffs]
    return _table(("value", "bits", "max abs", "differ"), rows, bad)


def _match(match: MatchRecord) -> str:
    names = escape(" ".join((*match.matched, *match.created)))
    return (
        f'<li><button type="button" data-light="{names}">{len(match.matched)} nodes → '
        f"{len(match.created)}</button> in {escape(match.layer)} ({escape(match.variant)})</li>"
    )


def _why(refusal: Refusal, count: int) -> str:
    where = f" in {escape(refusal.layer)}" if refusal.layer else ""
    others = f" and {count - 1} more" if count > 1 else ""
    facts = (
        ("expected", refusal.expected),
        ("found", refusal.found),
        ("nearest", refusal.variant),
    )
    rows = "".join(
        f'<dt>{name}</dt><dd class="{name}">{escape(value)}</dd>'
        for name, value in facts
        if value is not None
    )
    node = escape(refusal.node)
    return (
        f'<p><button type="button" data-pick="{node}">{node}</button>'
        f"{where}{others}: {escape(refusal.reason)}</p><dl>{rows}</dl>"
    )
