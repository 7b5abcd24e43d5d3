"""What a step did, as HTML: op counts, numeric check, matches, and why it did not match.

Buttons carry `data-pick` (one node) or `data-light` (several); the page's script acts on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from mlalab.records import CheckRecord, MatchRecord, Refusal, StepRecord
from mlalab.viz.cost import MODELLED, step_cost
from mlalab.viz.text import delta_rows, distinct

_SIGNS = {"ok": "✓", "differs": "≠", "FAILED": "✗"}


def facts_html(step: StepRecord, before: StepRecord | None) -> str:
    """The sections that apply to the step, one after the other."""
    parts = []
    if step.check is not None:
        parts.append(_section("Numeric check", _check(step.check)))
    if step.refusals:
        whys = "".join(_why(step, refusal, count) for refusal, count in distinct(step.refusals))
        parts.append(_section("Why it did not match", whys))
    if step.matches:
        items = "".join(_match(alike) for alike in _alike(step.matches))
        parts.append(_section("Matches", f"<ul>{items}</ul>"))
    if before is not None and len(rows := delta_rows(before, step)) > 1:
        parts.append(_section("Ops", _deltas("op", rows)))
    parts.append(_section("Cost, modelled", _cost(step, before)))
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


def _cost(step: StepRecord, before: StepRecord | None) -> str:
    """Launches and bytes beside those of the step before, which the first step lacks."""
    now = step_cost(step)
    last = now if before is None else step_cost(before)
    rows = [("launches", last.launches, now.launches)]
    if not (now.unsized or last.unsized):
        rows.append(("bytes moved", last.bytes, now.bytes))
    if before is None:
        body = _table(("cost", "now"), [(name, f"{new:,}") for name, _, new in rows])
    else:
        body = _deltas("cost", rows)
    missing = f" {now.unsized} of its nodes have symbolic sizes." if now.unsized else ""
    return f'{body}<p class="hint">{MODELLED}.{missing}</p>'


def _deltas(head: str, rows: Iterable[tuple[str, int, int]]) -> str:
    """A table of counts before and after, and by how much they differ."""
    cells = [
        (name, f"{old:,}", f"{new:,}", f"{new - old:+,}".replace("-", "−"))
        for name, old, new in rows
    ]
    return _table((head, "before", "after", "delta"), cells)


def _alike(matches: Iterable[MatchRecord]) -> Iterable[Sequence[MatchRecord]]:
    """Matches of one variant with as many nodes: 61 layers are one line, not 61."""
    groups: dict[tuple[str, int, int], list[MatchRecord]] = {}
    for match in matches:
        key = (match.variant, len(match.matched), len(match.created))
        groups.setdefault(key, []).append(match)
    return groups.values()


def _match(alike: Sequence[MatchRecord]) -> str:
    first, last = alike[0], alike[-1]
    names = escape(" ".join(name for m in alike for name in (*m.matched, *m.created)))
    plural = "" if len(first.matched) == 1 else "s"
    where = f"in {first.layer}"
    if len(alike) > 1:
        where = f"in {len(alike)} places, {first.layer} to {last.layer}"
    pattern = f"{first.variant}, {first.source}" if first.source else first.variant
    return (
        f'<li><button type="button" data-light="{names}">{len(first.matched)} node{plural} → '
        f"{len(first.created)}</button> {escape(where)} ({escape(pattern)})</li>"
    )


def _why(step: StepRecord, refusal: Refusal, count: int) -> str:
    source = None if refusal.pattern is None else step.patterns[refusal.pattern].source
    where = f" in {escape(refusal.layer)}" if refusal.layer else ""
    others = f" and {count - 1} more" if count > 1 else ""
    facts = (
        ("expected", refusal.expected),
        ("found", refusal.found),
        ("nearest", refusal.variant),
        ("pattern", source),
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
