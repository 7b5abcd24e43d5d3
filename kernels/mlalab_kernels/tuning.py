"""Launch configurations that were measured, chosen by architecture, heads, tokens and type.

A table is a JSON file beside its kernel: who measured it where, and one row per measured cell. A
file of the user's own, named by `MLALAB_TUNING`, goes before it. Nothing is tuned at a call: a
choice is a look-up, so that no call stalls and a CUDA graph may be captured at once.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ENVIRONMENT = "MLALAB_TUNING"
Row = Mapping[str, Any]


def table_of(op: str) -> tuple[Row, ...]:
    """Return the rows known for `op`, the user's own first."""
    return _table(op, os.environ.get(ENVIRONMENT))


@functools.cache
def _table(op: str, user_file: str | None) -> tuple[Row, ...]:
    files = [Path(__file__).parent / op / "tuning.json"]
    if user_file:
        files.insert(0, Path(user_file))
    rows: list[Row] = []
    for file in files:
        if file.exists():
            rows += json.loads(file.read_text()).get(op, {}).get("rows", [])
    return tuple(rows)


def nearest(rows: Iterable[Row], arch: str, dtype: str, heads: int, tokens: int) -> Row | None:
    """Return the row measured nearest to this call, None where the architecture has none.

    Nearest in heads, then in tokens, both by ratio; a row of the same output type is preferred.
    """
    mine = [row for row in rows if row["arch"] == arch]
    if not mine:
        return None

    def distance(row: Row) -> tuple[bool, float, float]:
        away = [
            abs(math.log(row[k] / max(n, 1))) for k, n in (("heads", heads), ("tokens", tokens))
        ]
        return row["dtype"] != dtype, *away

    return min(mine, key=distance)
