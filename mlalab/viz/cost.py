"""What a graph costs, modelled from its records: kernel launches and bytes moved.

A model, not a measurement. Every node that does work is one launch and moves what it reads and
writes once. Views and other plumbing, allocations and arithmetic on sizes are free. So the numbers
compare the graphs of one trace with each other; they do not predict a time, since Inductor still
fuses what the graph keeps apart, and caches keep what a node reads again.

Of a composite or custom op this sees the tensors in its call and its results. Caches and weights
that an op reaches by its layer's name are not in the graph and not counted, neither here nor in an
op that a pass puts in its place. Work that a pass lifts out of such an op counts from then on, so a
step that only makes it visible seems to add some.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from mlalab.errors import TraceError
from mlalab.records import NodeRecord, StepRecord
from mlalab.viz.text import table

MODELLED = "modelled from shapes, one launch per node that does work"
UNTIMED = f"{MODELLED}; nothing was timed"
_CALLS = ("call_function", "call_method", "call_module")
_ALLOCATES = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
_OVERWRITES = ("copy", "copy_", "setitem")
"""Ops that replace their first argument without looking at it."""
_INTEGERS = ("int32", "int64")
_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What the nodes of one graph do together."""

    launches: int
    bytes: int
    """Bytes read and written by the nodes whose sizes are known."""
    unsized: int
    """Nodes that do work on a symbolic size, and are missing from `bytes`."""

    def __str__(self) -> str:
        plural = "" if self.launches == 1 else "es"
        moved = bytes_text(self.bytes)
        if self.unsized:
            moved = f"at least {moved}" if self.bytes else "bytes symbolic"
        return f"{self.launches} launch{plural}, {moved}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Times that were measured node by node, with what they were measured on."""

    us: Mapping[str, Mapping[str, float]]
    """Microseconds by step name and node name; what was not timed is left out."""
    device: str
    date: str

    @property
    def label(self) -> str:
        """Where and when: a time without it says nothing."""
        return f"measured on {self.device}, {self.date}"

    def require_of(self, steps: Sequence[StepRecord]) -> None:
        """Refuse times that are not of these steps.

        Raises:
            TraceError: a step or node that is not theirs, or a time that is none.
        """
        nodes = {step.name: {node.name for node in step.nodes} for step in steps}
        for step, times in self.us.items():
            if step not in nodes:
                raise TraceError(
                    f"Times were measured of a step {step!r}, and this trace has "
                    f"{', '.join(nodes) or 'none'}; measure it again."
                )
            for node, us in times.items():
                if node not in nodes[step]:
                    raise TraceError(
                        f"Times of {step!r} name a node {node!r} that its graph does not have; "
                        f"measure it again."
                    )
                if not (math.isfinite(us) and us >= 0):
                    raise TraceError(
                        f"The time of {node!r} in {step!r} is {us} µs; measure it again."
                    )


def step_cost(step: StepRecord) -> Cost:
    """The cost of a step's whole graph."""
    moved = node_bytes(step.nodes).values()
    known = [count for count in moved if count is not None]
    return Cost(launches=len(moved), bytes=sum(known), unsized=len(moved) - len(known))


def node_bytes(nodes: Sequence[NodeRecord]) -> dict[str, int | None]:
    """Bytes that each node of a graph moves, of those that do work; None for symbolic sizes.

    An expanded view is read once. Of a table looked up by integers, as many rows count as there
    are integers; a table is a matrix with more rows than that. Memory that was allocated and not
    written yet is not read. A buffer written in place counts as read and as written.
    """
    known = {node.name: node for node in nodes}
    parts: dict[str, list[NodeRecord]] = {}
    for node in nodes:
        if node.plumbing and node.inputs:
            parts.setdefault(node.inputs[0], []).append(node)
    moved: dict[str, int | None] = {}
    blank: set[str] = set()
    for node in nodes:
        results = [node] if node.shape is not None else parts.get(node.name, [])
        made = [part for part in results if part.alias_of is None and part.shape is not None]
        if _short(node) in _ALLOCATES:
            blank.add(node.name)
        elif _works(node, made, known):
            inputs = [known[name] for name in node.inputs if name in known]
            read = [x for x in inputs if (x.alias_of or x.name) not in blank]
            moved[node.name] = _moved(node, made, read, [known[n] for n in node.mutates])
        blank -= {known[name].alias_of or name for name in node.mutates}
    return moved


def cost_change(step: StepRecord, before: StepRecord | None) -> str:
    """A step's cost in a line, after that of the step before: `41 launches, 1.2 MB → …`."""
    after = step_cost(step)
    if before is None:
        return str(after)
    return f"{step_cost(before)} → {after}"


def cost_table(steps: Sequence[StepRecord], measured: Measured | None = None) -> str:
    """Launches and bytes of every step, each beside its difference to the step before.

    With `measured`, also the sum of the times of each step that has any, in microseconds.

    Raises:
        TraceError: times of steps or nodes that are not these.
    """
    costs = [step_cost(step) for step in steps]
    launches, moved = [cost.launches for cost in costs], [cost.bytes for cost in costs]
    columns = [
        ["step", *(step.name for step in steps)],
        ["launches", *(f"{count:,}" for count in launches)],
        ["change", *_changes(launches)],
        ["bytes moved", *map(_moved_text, costs)],
        ["change", *_changes(moved, [cost.unsized for cost in costs])],
    ]
    notes = [UNTIMED]
    if measured is not None:
        measured.require_of(steps)
        sums = [sum(measured.us.get(step.name, {}).values()) for step in steps]
        columns.append(["us", *(f"{us:.1f}" if us else "-" for us in sums)])
        if any(sums):
            notes = [MODELLED, f"us: sum of the nodes' times, {measured.label}"]
    return "\n".join([table(list(zip(*columns, strict=True)), 1), *notes])


def _changes(counts: Sequence[int], unsized: Sequence[int] = ()) -> list[str]:
    """How much each differs from the one before; the first has none, nor has a lower bound."""
    if any(unsized):
        return ["-" for _ in counts]
    differences = [now - last for last, now in pairwise(counts)]
    return [*("-" for _ in counts[:1]), *(f"{d:+,}" if d else "0" for d in differences)]


def _moved_text(cost: Cost) -> str:
    if not cost.unsized:
        return f"{cost.bytes:,}"
    return f">= {cost.bytes:,}" if cost.bytes else "symbolic"


def bytes_text(count: float) -> str:
    """A number of bytes in three digits: `0 B`, `512 B`, `65.5 kB`, `24.1 MB`."""
    power = 0
    while count >= 999.5:
        count, power = count / 1000, power + 1
    return f"{f'{count:#.3g}'.rstrip('.') if power else round(count)} {_PREFIXES[power]}B"


def _works(node: NodeRecord, made: Sequence[NodeRecord], known: Mapping[str, NodeRecord]) -> bool:
    """Whether a node makes, copies or writes data."""
    if node.op not in _CALLS:
        return False
    first = known.get(node.inputs[0]) if node.inputs else None
    if node.plumbing:  # a reshape that had to copy, or indexing with a tensor
        return bool(made) and first is not None and first.shape is not None
    reads = any(known[name].shape is not None for name in node.inputs if name in known)
    return bool(made or node.mutates) or (node.shape is None and not node.users and reads)


def _moved(
    node: NodeRecord,
    made: Iterable[NodeRecord],
    read: Iterable[NodeRecord],
    written: Sequence[NodeRecord],
) -> int | None:
    """Bytes read and written; None when one of the sizes is symbolic."""
    values = [x for x in read if x.shape is not None]
    if _short(node) in _OVERWRITES:
        values = [x for x in values if x.name != node.inputs[0]]
    out = [x.bytes for x in (*made, *written) if x.shape is not None]
    if _short(node) == "setitem" and values:  # it names the buffer, and writes the part indexed
        out = [values[-1].bytes]
    total = sum(size for size in out if size is not None)
    reads = [_read(x, values, total) for x in values]
    if None in out or None in reads:
        return None
    return total + sum(size for size in reads if size is not None)


def _read(record: NodeRecord, values: Iterable[NodeRecord], written: int) -> int | None:
    """Bytes that a node reads of one input, `values` being all its inputs."""
    if record.bytes is None or record.shape is None:
        return None
    repeats = zip(record.shape, record.stride or (), strict=False)
    size = record.bytes // (math.prod(int(n) for n, step in repeats if step == 0) or 1)
    counts = [math.prod(map(int, x.shape or ())) for x in values if _is_index(x)]
    looked_up = counts and len(record.shape) == 2 and record.bytes > written
    if looked_up and int(record.shape[0]) > (rows := max(counts)):
        return size * rows // int(record.shape[0])
    return size


def _is_index(record: NodeRecord) -> bool:
    return record.dtype in _INTEGERS and record.bytes is not None


def _short(node: NodeRecord) -> str:
    return node.target.rpartition(".")[2]
