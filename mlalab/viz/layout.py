"""Where the boxes and lines of a graph go: a layered top-to-bottom layout in plain Python.

Ours rather than a layout engine, so that the picture is the same with and without a kernel, the
same in every run (goldens compare it), and needs neither a binary nor WebAssembly. Four stages:
rows (`viz._rows`), order within a row (`viz._order`), columns (`viz._columns`), and routing here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mlalab.viz._columns import column_positions
from mlalab.viz._order import Rows, order_rows
from mlalab.viz._rows import place_in_rows

Point = tuple[int, int]

_BEND_WIDTH = 6.0
_ROW_GAP = 24
_STEEPEST = 9
"""A line that goes this many times further sideways than down gets a taller gap between rows."""
_TALLEST_GAP = 52
_CORNER = 12
"""Lines keep this far from the corners of a box."""
_PORT_GAP = 12


@dataclass(frozen=True, slots=True)
class Box:
    """A box to place. `key` is unique within the graph."""

    key: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Placed:
    """A placed box: centre and size, in whole pixels."""

    x: int
    y: int
    width: int
    height: int

    @property
    def left(self) -> int:
        """x of the left border."""
        return self.x - self.width // 2

    @property
    def top(self) -> int:
        """y of the upper border."""
        return self.y - self.height // 2


@dataclass(frozen=True, slots=True)
class Layout:
    """The finished drawing plan.

    `routes` maps each edge to its points from source to target. Two points with the same x are
    joined by a straight line, others by a curve that starts and ends vertically.
    """

    width: int
    height: int
    boxes: dict[str, Placed]
    routes: dict[tuple[str, str], tuple[Point, ...]]


@dataclass(slots=True)
class _Grid:
    """Boxes and bends as numbered points. Points below `len(boxes)` are boxes."""

    rows: Rows
    up: list[list[int]]
    down: list[list[int]]
    chains: dict[tuple[int, int], list[int]] = field(default_factory=dict)

    def new_bend(self, row: int) -> int:
        """Add a point in `row` for an edge to pass through."""
        point = len(self.up)
        self.up.append([])
        self.down.append([])
        self.rows[row].append(point)
        return point

    def link(self, above: int, below: int) -> None:
        """Join two points of neighbouring rows, once."""
        if below not in self.down[above]:
            self.down[above].append(below)
            self.up[below].append(above)


def lay_out(
    boxes: Sequence[Box],
    edges: Sequence[tuple[str, str]],
    waits: Sequence[tuple[str, str]] = (),
) -> Layout:
    """Place `boxes` so that edges go down.

    Boxes should come in topological order; an edge that goes against the order is drawn upwards.
    Edges between a box and itself, and repeated edges, are ignored. `waits` are pairs of which
    the second must come below the first, without a line.
    """
    index = {box.key: i for i, box in enumerate(boxes)}
    pairs = dict.fromkeys((index[a], index[b]) for a, b in edges if a != b)
    downward = list(dict.fromkeys((min(pair), max(pair)) for pair in pairs))
    below = [(min(a, b), max(a, b)) for a, b in ((index[a], index[b]) for a, b in waits)]
    grid = _grid(len(boxes), downward, below)
    rows = order_rows(grid.rows, grid.up, grid.down)
    bends = set(range(len(boxes), len(grid.up)))
    widths = [*(float(box.width) for box in boxes), *(_BEND_WIDTH for _ in bends)]
    xs = column_positions(rows, grid.up, grid.down, widths, bends)
    left = min((x - w / 2 for x, w in zip(xs, widths, strict=True)), default=0.0)
    columns = [round(x - left) for x in xs]
    return _assemble(boxes, pairs, grid, rows, columns)


def _grid(count: int, edges: Sequence[tuple[int, int]], waits: Sequence[tuple[int, int]]) -> _Grid:
    """Rank the boxes and thread edges longer than one row through bends.

    All long edges of one box share a trunk, so a value read by sixty layers is one line with
    sixty branches.
    """
    ranks = place_in_rows(count, edges, waits)
    rows: Rows = [[] for _ in range(max(ranks, default=-1) + 1)]
    for box, rank in enumerate(ranks):
        rows[rank].append(box)
    grid = _Grid(rows, [[] for _ in range(count)], [[] for _ in range(count)])
    trunks: list[list[int]] = [[] for _ in range(count)]
    for above, below in edges:
        trunk = trunks[above]
        span = ranks[below] - ranks[above]
        while len(trunk) < span - 1:
            bend = grid.new_bend(ranks[above] + len(trunk) + 1)
            grid.link(trunk[-1] if trunk else above, bend)
            trunk.append(bend)
        chain = [above, *trunk[: span - 1], below]
        grid.link(chain[-2], below)
        grid.chains[above, below] = chain
    return grid


def _assemble(
    boxes: Sequence[Box],
    pairs: dict[tuple[int, int], None],
    grid: _Grid,
    rows: Rows,
    columns: Sequence[int],
) -> Layout:
    """Give rows their y, and turn chains of points into routes."""
    bands = _bands(boxes, grid, rows, columns)
    row_of = {point: r for r, row in enumerate(rows) for point in row}
    placed = {}
    for i, box in enumerate(boxes):
        top, bottom = bands[row_of[i]]
        placed[box.key] = Placed(columns[i], (top + bottom) // 2, box.width, box.height)
    by_number = list(placed.values())
    leave, enter = _ports(by_number, grid, columns)
    routes = {}
    for pair in pairs:
        chain = grid.chains[min(pair), max(pair)]
        stops = [(columns[p], y) for p in chain[1:-1] for y in bands[row_of[p]]]
        source, target = chain[0], chain[-1]
        start, end = leave[source, chain[1]], enter[chain[-2], target]
        first, last = by_number[source], by_number[target]
        points = [
            (start, first.top + first.height),
            (start, bands[row_of[source]][1]),
            *stops,
            (end, bands[row_of[target]][0]),
            (end, last.top),
        ]
        clean = tuple(dict.fromkeys(points))
        routes[boxes[pair[0]].key, boxes[pair[1]].key] = clean if pair[0] < pair[1] else clean[::-1]
    width = max((p.left + p.width for p in by_number), default=0)
    width = max([width, *(columns[len(boxes) :])])
    return Layout(width, bands[-1][1] if bands else 0, placed, routes)


def _bands(
    boxes: Sequence[Box], grid: _Grid, rows: Rows, columns: Sequence[int]
) -> list[tuple[int, int]]:
    """Upper and lower y of every row; rows whose lines go far sideways get more room above."""
    bands: list[tuple[int, int]] = []
    y = 0
    for row in rows:
        reach = max((abs(columns[p] - columns[q]) for p in row for q in grid.up[p]), default=0)
        y += max(_ROW_GAP, min(_TALLEST_GAP, reach // _STEEPEST)) if bands else 0
        height = max((boxes[p].height for p in row if p < len(boxes)), default=0)
        bands.append((y, y + height))
        y += height
    return bands


def _ports(
    placed: Sequence[Placed], grid: _Grid, columns: Sequence[int]
) -> tuple[dict[tuple[int, int], int], dict[tuple[int, int], int]]:
    """x at which lines leave and enter boxes, straight above or below the other end if possible."""
    leave: dict[tuple[int, int], int] = {}
    enter: dict[tuple[int, int], int] = {}
    for i, box in enumerate(placed):
        ends = sorted(grid.down[i], key=columns.__getitem__)
        for end, x in zip(ends, _spread(box, [columns[e] for e in ends]), strict=True):
            leave[i, end] = x
    for i, box in enumerate(placed):
        starts = sorted(grid.up[i], key=lambda s: leave.get((s, i), columns[s]))
        wanted = [leave.get((s, i), columns[s]) for s in starts]
        for start, x in zip(starts, _spread(box, wanted), strict=True):
            enter[start, i] = x
    return leave, enter


def _spread(box: Placed, wanted: Sequence[int]) -> list[int]:
    """The wanted x positions (ascending), moved onto the border of `box` and apart."""
    low, high = box.left + _CORNER, box.left + box.width - _CORNER
    if high < low:
        low = high = box.x
    gap = min(_PORT_GAP, (high - low) // max(1, len(wanted) - 1))
    xs: list[int] = []
    for x in wanted:
        xs.append(max(min(max(x, low), high), xs[-1] + gap if xs else low))
    limit = high
    for i in range(len(xs) - 1, -1, -1):
        xs[i] = min(xs[i], limit)
        limit = xs[i] - gap
    return xs
