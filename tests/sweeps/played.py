"""Records with times that are easy to check."""

from __future__ import annotations

from mlalab.bench.cells import CellResult, CellSpec, Spread
from mlalab.bench.records import Record
from tests.bench.stand_ins import LIMITS, RIGHT

MACHINE = {"device": "Played GPU", "date": "2026-01-02T03:04:05+00:00", "torch": "2.13.0"}


def spread(median):
    return Spread(median, median - 0.1, median + 0.1, 20)


def cell(tokens, two, one, heads=16):
    times = {"two": spread(two), "one": spread(one), "copy": spread(1.0)}
    return CellResult(CellSpec(heads=heads, tokens=tokens), 32, {"one": RIGHT}, times)


def record(*rows, name="played"):
    """Return a record of (tokens, two launches, one launch), in µs."""
    return Record(name, MACHINE, LIMITS, tuple(cell(*row) for row in rows))


FASTER = record((1, 4.0, 2.0), (8, 5.0, 3.0), (64, 9.0, 8.0))
SLOWER_LATE = record((1, 4.0, 2.0), (9, 4.0, 3.0), (17, 4.0, 6.0))
SLOWER = record((1, 2.0, 4.0), (8, 4.0, 2.0))
