"""Patterns as plain records: a graph to draw, and where each was written."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mlalab.node_records import node_records
from mlalab.passes.fusion import Variant
from mlalab.passes.tracing import Outputs
from mlalab.records import NodeRecord, PatternRecord


class Patterns:
    """The patterns that a step's refusals speak of, each recorded once."""

    def __init__(self, variants: Iterable[Variant]) -> None:
        self._variants = {variant.name: variant for variant in variants}
        self._numbers: dict[Outputs, int] = {}
        self.records: tuple[PatternRecord, ...] = ()

    def number(self, variant: str, pattern: Outputs) -> int:
        """Return where the record of `pattern`, a form of the named variant, stands."""
        if pattern not in self._numbers:
            self._numbers[pattern] = len(self.records)
            source = source_line(self._variants[variant].pattern)
            self.records += (PatternRecord(name=variant, source=source, nodes=_nodes(pattern)),)
        return self._numbers[pattern]


def source_line(function: Callable[..., Any]) -> str:
    """Return `file.py:line` of a function; a cell's file has a name of no use to anyone."""
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(function, "__code__", None) or type(function).__call__.__code__
    path = Path(code.co_filename)
    name = path.name if path.suffix == ".py" and "ipykernel" not in path.parent.name else "cell"
    return f"{name}:{code.co_firstlineno}"


def _nodes(pattern: Outputs) -> tuple[NodeRecord, ...]:
    """Return the traced pattern: of no layer, and without the examples' sizes if it is blind."""
    known = {*pattern.names.values(), "output"}
    records = (r for r in node_records(pattern.traced) if r.name in known)
    return tuple(_node(record, pattern.blind) for record in records)


def _node(record: NodeRecord, blind: bool) -> NodeRecord:
    plain = dataclasses.replace(record, layer=None, source=None)
    if not blind:
        return plain
    text = record.text
    if record.op == "call_function" and not text.endswith("]"):
        text = f"{record.name} = {record.target}({', '.join(record.inputs)})"
    return dataclasses.replace(plain, text=text, shape=None, stride=None, dtype=None, bytes=None)
