"""Which row of a layered drawing each box goes into."""

from __future__ import annotations

from collections.abc import Sequence


def place_in_rows(
    count: int, edges: Sequence[tuple[int, int]], waits: Sequence[tuple[int, int]]
) -> list[int]:
    """Longest-path ranks, then boxes moved down next to their readers where that is free.

    Without the second part every weight would sit in the first row, with a line across the whole
    picture. A box moves when it feeds at least as many lines as it takes from boxes that cannot
    move along with it; boxes without inputs always can.
    """
    parents: list[list[int]] = [[] for _ in range(count)]
    children: list[list[int]] = [[] for _ in range(count)]
    later: list[list[int]] = [[] for _ in range(count)]
    for above, below in edges:
        parents[below].append(above)
        children[above].append(below)
    for above, below in waits:
        later[above].append(below)
    ranks = [0] * count
    for box in range(count):
        for below in (*children[box], *later[box]):
            ranks[below] = max(ranks[below], ranks[box] + 1)
    for box in reversed(range(count)):
        fixed = sum(bool(parents[p]) for p in parents[box])
        if children[box] and len(children[box]) >= fixed:
            ranks[box] = min(ranks[b] for b in (*children[box], *later[box])) - 1
    used = {rank: row for row, rank in enumerate(sorted(set(ranks)))}
    return [used[rank] for rank in ranks]
