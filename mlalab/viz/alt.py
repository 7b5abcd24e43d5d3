"""What a picture shows, in words: the finding, built from the data.

A reader who cannot see the picture, or sees it fail to load, gets the same result from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from mlalab.records import NodeRecord, StepRecord
from mlalab.viz.cost import node_bytes

_NAMED_OPS = 4
_BUILT_IN = ("aten.", "prims.")


def step_alt(step: StepRecord, before: StepRecord | None = None) -> str:
    """One or two sentences: the step's name and what it did to the graph."""
    return f"{step.name}: {finding(step, before)}"


def finding(step: StepRecord, before: StepRecord | None) -> str:
    """What the step did, without its name."""
    if step.status == "captured" or step.retraced or before is None:
        first = f"a graph of {_nodes(len(step.nodes))}"
        first += ", traced anew" if step.retraced else ""
        first += f", of which {_moving(step)}"
    elif step.created or step.erased or step.rewired:
        parts = [f"{_nodes(len(before.nodes))} became {len(step.nodes)}", *_changes(step, before)]
        first = "; ".join(parts)
    else:
        first = f"{step.status}, the graph of {_nodes(len(step.nodes))} is unchanged"
        first += f". {step.refusals[0].reason.rstrip('.')}" if step.refusals else ""
    return f"{first}.{_check(step)}"


def before_after_alt(before: StepRecord, after: StepRecord) -> str:
    """The same finding for the side-by-side picture."""
    return f"Two graphs, before and after. {step_alt(after, before)}"


def counts_text(step: StepRecord, before: StepRecord | None) -> str:
    """The step's numbers in one line: `66 nodes (97 before)   +4  −35  ~3`."""
    nodes = _nodes(len(step.nodes))
    if step.retraced:
        return f"{nodes}, traced anew"
    if before is None:
        return nodes
    if not (step.created or step.erased or step.rewired):
        return f"{nodes}, unchanged ({step.status})"
    created, erased, rewired = len(step.created), len(step.erased), len(step.rewired)
    return f"{len(before.nodes)} → {nodes}: {created} created, {erased} erased, {rewired} rewired"


def _moving(step: StepRecord) -> str:
    moving = node_bytes(step.nodes)
    views = sum(node.plumbing and node.name not in moving for node in step.nodes)
    return f"{len(moving)} move data and {views} are views"


def _changes(step: StepRecord, before: StepRecord) -> Iterable[str]:
    """`removed 3 aten.mul and aten.add`, `added …`, `2 nodes read something else now`."""
    removed = _ops(step.erased, {node.name: node for node in before.nodes})
    added = _ops(step.created, {node.name: node for node in step.nodes})
    if removed:
        yield f"removed {removed}"
    if added:
        yield f"added {added}"
    if step.rewired:
        verb = "reads" if len(step.rewired) == 1 else "read"
        yield f"{_nodes(len(step.rewired))} {verb} something else now"


def _ops(names: Iterable[str], nodes: Mapping[str, NodeRecord]) -> str:
    """Custom ops and the most frequent others by name, the rest as a number.

    Plumbing is named only if there is nothing else.
    """
    records = [nodes[name] for name in names if name in nodes]
    named = [record for record in records if not record.plumbing] or records
    counts = Counter(record.target for record in named).most_common()
    counts.sort(key=lambda item: item[0].startswith(_BUILT_IN))
    parts = [f"{count} {op}" if count > 1 else op for op, count in counts[:_NAMED_OPS]]
    rest = len(records) - sum(count for _, count in counts[:_NAMED_OPS])
    if rest:
        parts.append(f"{rest} more" if parts else str(rest))
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _check(step: StepRecord) -> str:
    if step.check is None:
        return ""
    if step.check.ok:
        return " Checked: every output and buffer agrees bit for bit."
    wrong = ", ".join(diff.name for diff in step.check.diffs if not diff.equal)
    if step.verdict == "FAILED":
        return f" The check FAILED: {wrong or 'nothing was compared'}."
    return f" Checked: some bits differ, as they may after this kind of step: {wrong}."


def _nodes(count: int) -> str:
    return f"{count} node" if count == 1 else f"{count} nodes"
