"""Horizontal coordinates of a layered drawing: straight columns, no slant.

Each point is lined up with the middle one of its neighbours, which gives vertical blocks; the
blocks are then packed. Doing this four times (from above or below, packed to the left or to the
right) and taking the middle of the four answers cancels the lean that any single one has, and
keeps every gap, because the gap holds in each of the four. The method is the one described by
Brandes and Köpf, with blocks packed by longest path so that boxes may differ in width.

The result is straight but loose, so columns are then pulled towards what they are linked to, as
rigid pieces and never past a neighbour: shorter lines, a narrower picture, nothing bent anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from mlalab.viz._order import Links, Rows

_GAP = 18.0
_BEND_GAP = 12.0
"""Space beside a point of an edge, which needs less than a box."""
_ROUNDS = 6
_SWEEPS = 4
_ALIGNED = 0.5
"""Points this close in x count as one column."""


def column_positions(
    rows: Rows, up: Links, down: Links, widths: Sequence[float], bends: set[int]
) -> list[float]:
    """Centre x of every point. `bends` are the points that only carry an edge past a row."""
    if not widths:
        return []
    conflicts = _conflicts(rows, up, bends)
    layouts = []
    for from_above in (True, False):
        for to_left in (True, False):
            turned = rows if from_above else rows[::-1]
            turned = turned if to_left else [row[::-1] for row in turned]
            links = up if from_above else down
            block_of = _blocks(turned, links, conflicts)
            xs = _pack(turned, block_of, widths, bends)
            layouts.append(xs if to_left else [-x for x in xs])
    xs = _middle(layouts, widths)
    spaces = _spaces(rows, widths, bends)
    for _ in range(_ROUNDS):
        if not _pull(xs, _columns(xs, down, bends), spaces, up, down):
            break
    return xs


def _conflicts(rows: Rows, up: Links, bends: set[int]) -> set[tuple[int, int]]:
    """Links that cross a straight run of a long edge; the run wins, so they may not line up."""
    found: set[tuple[int, int]] = set()
    for above, row in pairwise(rows):
        place = {point: i for i, point in enumerate(above)}
        left, start = 0, 0
        for i, point in enumerate(row):
            run = up[point][0] if point in bends and up[point][0] in bends else None
            if run is None and i < len(row) - 1:
                continue
            right = place[run] if run is not None else len(above) - 1
            for other in row[start : i + 1]:
                for parent in up[other]:
                    inner = other in bends and parent in bends
                    if not inner and not left <= place[parent] <= right:
                        found.add((parent, other))
            left, start = right, i + 1
    return found


def _blocks(rows: Rows, links: Links, conflicts: set[tuple[int, int]]) -> list[int]:
    """For every point, the first point of the vertical block that it belongs to."""
    block_of = list(range(len(links)))
    taken = [False] * len(links)
    place = [0] * len(links)
    for row in rows:
        last = -1
        for i, point in enumerate(row):
            place[point] = i
            near = sorted(links[point], key=place.__getitem__)
            for k in range((len(near) - 1) // 2, len(near) // 2 + 1) if near else ():
                other = near[k]
                clash = (other, point) in conflicts or (point, other) in conflicts
                if not clash and not taken[other] and place[other] > last:
                    taken[other] = True
                    block_of[point] = block_of[other]
                    last = place[other]
                    break
    return block_of


def _pack(
    rows: Rows, block_of: Sequence[int], widths: Sequence[float], bends: set[int]
) -> list[float]:
    """Blocks as far left as their gaps allow, then pulled right into the space that is left."""
    after: dict[int, dict[int, float]] = {block: {} for block in dict.fromkeys(block_of)}
    waiting = dict.fromkeys(after, 0)
    for a, b, space in _spaces(rows, widths, bends):
        one, two = block_of[a], block_of[b]
        waiting[two] += two not in after[one]
        after[one][two] = max(space, after[one].get(two, 0.0))
    x = dict.fromkeys(after, 0.0)
    ready = [block for block in after if not waiting[block]]
    for block in ready:
        for other, space in after[block].items():
            x[other] = max(x[other], x[block] + space)
            waiting[other] -= 1
            if not waiting[other]:
                ready.append(other)
    for block in reversed(ready):
        if after[block]:
            x[block] = max(x[block], min(x[o] - space for o, space in after[block].items()))
    return [x[block] for block in block_of]


def _middle(layouts: Sequence[Sequence[float]], widths: Sequence[float]) -> list[float]:
    """Mean of the two middle answers, after lining all up with the narrowest one."""
    spans = [
        (
            min(x - w / 2 for x, w in zip(xs, widths, strict=True)),
            max(x + w / 2 for x, w in zip(xs, widths, strict=True)),
        )
        for xs in layouts
    ]
    low, high = min(spans, key=lambda span: span[1] - span[0])
    shifts = [low - a if i % 2 == 0 else high - b for i, (a, b) in enumerate(spans)]
    columns = []
    for choices in zip(*layouts, strict=True):
        moved = sorted(x + shift for x, shift in zip(choices, shifts, strict=True))
        columns.append((moved[1] + moved[2]) / 2)
    return columns


def _spaces(rows: Rows, widths: Sequence[float], bends: set[int]) -> list[tuple[int, int, float]]:
    """Neighbours within a row and the least distance of their centres."""
    return [
        (a, b, (widths[a] + widths[b]) / 2 + (_BEND_GAP if a in bends or b in bends else _GAP))
        for row in rows
        for a, b in pairwise(row)
    ]


def _columns(xs: Sequence[float], down: Links, bends: set[int]) -> list[list[int]]:
    """Points that are linked straight up or down, grouped; from left to right."""
    group: dict[int, list[int]] = {point: [point] for point in range(len(xs))}
    for point, x in enumerate(xs):
        for other in down[point]:
            alike = (point in bends) == (other in bends)
            if alike and abs(xs[other] - x) < _ALIGNED and group[other] is not group[point]:
                group[point] += group[other]
                group.update(dict.fromkeys(group[other], group[point]))
    columns = {id(members): members for members in group.values()}
    return sorted(columns.values(), key=lambda members: (xs[members[0]], members[0]))


def _pull(
    xs: list[float],
    columns: Sequence[Sequence[int]],
    spaces: Sequence[tuple[int, int, float]],
    up: Links,
    down: Links,
) -> bool:
    """Move columns sideways to the middle of what they are linked to; say whether any moved."""
    column_of = {point: i for i, members in enumerate(columns) for point in members}
    left: list[list[tuple[int, float]]] = [[] for _ in columns]
    right: list[list[tuple[int, float]]] = [[] for _ in columns]
    for a, b, space in spaces:
        left[column_of[b]].append((a, space + xs[columns[column_of[b]][0]] - xs[b]))
        right[column_of[a]].append((b, space + xs[a] - xs[columns[column_of[a]][0]]))
    ends = [
        [n for p in members for n in (*up[p], *down[p]) if column_of[n] != i]
        for i, members in enumerate(columns)
    ]
    moved = False
    centre = sorted(xs)[len(xs) // 2]
    for sweep in range(_SWEEPS):
        for i in range(len(columns)) if sweep % 2 == 0 else range(len(columns) - 1, -1, -1):
            if not ends[i]:
                continue
            at = xs[columns[i][0]]
            low = max((xs[p] + space for p, space in left[i]), default=float("-inf"))
            high = min((xs[p] - space for p, space in right[i]), default=float("inf"))
            wanted = sorted(xs[n] for n in ends[i])
            near, far = wanted[(len(wanted) - 1) // 2], wanted[len(wanted) // 2]
            step = max(low, min(high, max(near, min(far, centre)))) - at
            if abs(step) > _ALIGNED:
                moved = True
                for point in columns[i]:
                    xs[point] += step
    return moved
