"""Recording what each stage does to a graph.

The recorder stands beside the passes, never inside them: nodes keep their identity, and FX calls
its hooks whenever one is created or erased, so a diff is exact and no graph is ever matched with
another.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import fx

from mlalab.node_records import node_records
from mlalab.records import (
    MatchRecord,
    PatternRecord,
    Refusal,
    StepKind,
    StepRecord,
    StepStatus,
)


@dataclass(slots=True)
class Events:
    """What happened to a graph while it was watched: nodes by identity, in order."""

    created: dict[fx.Node, None] = field(default_factory=dict)
    erased: dict[fx.Node, None] = field(default_factory=dict)
    rewired: dict[fx.Node, None] = field(default_factory=dict)

    @property
    def any(self) -> bool:
        """True when something changed that outlived the stage."""
        return bool(self.survivors or self.gone or self.rewired)

    @property
    def survivors(self) -> tuple[str, ...]:
        """Names of nodes that were created and are still there."""
        return tuple(n.name for n in self.created if n not in self.erased)

    @property
    def gone(self) -> tuple[str, ...]:
        """Names of nodes that existed before and were erased."""
        return tuple(n.name for n in self.erased if n not in self.created)


@contextmanager
def watch(gm: fx.GraphModule, *, rewiring: bool = True) -> Iterator[Events]:
    """Collect the exact changes made to `gm`'s graph inside the block.

    FX's hooks tell of creation and erasure. Its replace hook misses `node.args = ...`, so what
    each node called, with what, is compared, unless `rewiring` is off.
    """
    events = Events()
    before = {node: _call(node) for node in gm.graph.nodes} if rewiring else {}

    def on_create(node: fx.Node) -> None:
        events.created[node] = None

    def on_erase(node: fx.Node) -> None:
        events.erased[node] = None

    gm._register_create_node_hook(on_create)
    gm._register_erase_node_hook(on_erase)
    try:
        yield events
    finally:
        gm._unregister_create_node_hook(on_create)
        gm._unregister_erase_node_hook(on_erase)
        changed = (n for n, call in before.items() if not n._erased and call != _call(n))
        events.rewired = dict.fromkeys(changed)


def _call(node: fx.Node) -> tuple[object, ...]:
    return (node.target, node.args, node.kwargs)


@dataclass(slots=True)
class StepDraft:
    """What a stage says of itself while it is being recorded."""

    status: StepStatus = "applied"
    note: str = ""
    matches: tuple[MatchRecord, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    patterns: tuple[PatternRecord, ...] = ()
    keep_unchanged: bool = True


class Recorder:
    """Collects steps, and with `keep_graphs` a runnable copy of the graph after each."""

    def __init__(self, *, keep_graphs: bool = True) -> None:
        self.steps: list[StepRecord] = []
        self.graphs: list[fx.GraphModule] = []
        self.skipped: dict[str, StepStatus] = {}
        """Passes that did not run, and why not."""
        self.keep_graphs = keep_graphs

    def capture(self, name: str, gm: fx.GraphModule, note: str) -> None:
        """Record a graph that a tracer just made: no node of the step before is in it."""
        step = StepRecord(
            name=name,
            kind="capture",
            status="captured",
            nodes=node_records(gm.graph),
            retraced=bool(self.steps),
            note=note,
        )
        self._add(step, gm)

    @contextmanager
    def step(self, name: str, kind: StepKind, gm: fx.GraphModule) -> Iterator[StepDraft]:
        """Record what happens to `gm` inside the block; the block fills in the draft."""
        draft = StepDraft()
        start = time.perf_counter()
        with watch(gm) as events:
            yield draft
        seconds = time.perf_counter() - start
        if not draft.keep_unchanged and not events.any and not draft.refusals:
            if draft.status != "applied":
                self.skipped[name] = draft.status
            return
        step = StepRecord(
            name=name,
            kind=kind,
            status=draft.status,
            nodes=node_records(gm.graph),
            created=events.survivors,
            erased=events.gone,
            rewired=tuple(n.name for n in events.rewired),
            matches=draft.matches,
            refusals=draft.refusals,
            patterns=draft.patterns,
            note=draft.note,
            seconds=seconds,
        )
        self._add(step, gm)

    def _add(self, step: StepRecord, gm: fx.GraphModule) -> None:
        self.steps.append(step)
        if self.keep_graphs:
            self.graphs.append(fx.GraphModule(gm, copy.deepcopy(gm.graph)))
