"""Left-to-right order inside each rank of a layered drawing: few crossings, always the same.

Barycentre sweeps find the overall shape, swaps of neighbours clean up what they leave. Both are
deterministic: ties keep the order they had.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Sequence

Rows = list[list[int]]
Links = Sequence[Sequence[int]]

_SWEEPS = 12
_STALE = 4
"""Sweeps without improvement after which the search stops."""
_SWAP_ROUNDS = 6
_SWAP_LIMIT = 1500
"""Points above which the swaps are skipped: they cost more than they gain on a huge graph."""


def order_rows(rows: Rows, up: Links, down: Links) -> Rows:
    """Order the points of every row. `up`/`down` list each point's neighbours one row away."""
    current = _depth_first(rows, up, down)
    best, fewest, stale = current, _crossings(current, down), 0
    for sweep in range(_SWEEPS):
        if fewest == 0 or stale >= _STALE:
            break
        current = _sweep(current, up if sweep % 2 == 0 else down, downward=sweep % 2 == 0)
        count = _crossings(current, down)
        stale += 1
        if count < fewest:
            best, fewest, stale = current, count, 0
    if fewest and len(up) <= _SWAP_LIMIT:
        best = _swap_neighbours([list(row) for row in best], up, down)
    return best


def _depth_first(rows: Rows, up: Links, down: Links) -> Rows:
    """First order: points in the order a depth-first walk over the links meets them."""
    row_of = {point: r for r, row in enumerate(rows) for point in row}
    ordered: Rows = [[] for _ in rows]
    seen: set[int] = set()
    for start in (point for row in rows for point in row):
        stack = [start]
        while stack:
            point = stack.pop()
            if point in seen:
                continue
            seen.add(point)
            ordered[row_of[point]].append(point)
            stack.extend(reversed([*down[point], *up[point]]))
    return ordered


def _sweep(rows: Rows, links: Links, *, downward: bool) -> Rows:
    """Sort every row by the mean position of its neighbours in the row before it."""
    result = [list(row) for row in rows]
    sequence = range(len(rows)) if downward else range(len(rows) - 1, -1, -1)
    place: dict[int, int] = {}
    for r in sequence:
        row = result[r]
        slots = [i for i, point in enumerate(row) if links[point]]
        movable = [row[i] for i in slots]
        movable.sort(key=lambda point: sum(place[n] for n in links[point]) / len(links[point]))
        for slot, point in zip(slots, movable, strict=True):
            row[slot] = point
        place = {point: i for i, point in enumerate(row)}
    return result


def _crossings(rows: Rows, down: Links) -> int:
    """Number of pairs of links that cross."""
    total = 0
    for r in range(len(rows) - 1):
        place = {point: i for i, point in enumerate(rows[r + 1])}
        passed: list[int] = []
        for point in rows[r]:
            ends = [place[n] for n in down[point]]
            total += sum(len(passed) - bisect_right(passed, end) for end in ends)
            for end in ends:
                insort(passed, end)
    return total


def _swap_neighbours(rows: Rows, up: Links, down: Links) -> Rows:
    """Swap adjacent points while that removes crossings."""
    place = [0] * len(up)
    for row in rows:
        for i, point in enumerate(row):
            place[point] = i
    for _ in range(_SWAP_ROUNDS):
        swapped = False
        for row in rows:
            for i in range(len(row) - 1):
                left, right = row[i], row[i + 1]
                if _gain(left, right, up, place) + _gain(left, right, down, place) > 0:
                    row[i], row[i + 1] = right, left
                    place[left], place[right] = i + 1, i
                    swapped = True
        if not swapped:
            break
    return rows


def _gain(left: int, right: int, links: Links, place: Sequence[int]) -> int:
    """Crossings saved between the links of two adjacent points by swapping them."""
    return sum(
        (place[a] > place[b]) - (place[a] < place[b]) for a in links[left] for b in links[right]
    )
