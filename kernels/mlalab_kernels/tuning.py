"""Launch configurations that were measured, chosen by architecture, heads, tokens and type.

A table is a JSON file beside its kernel: who measured it where, and one row per measured cell. A
file of the user's own, named by `MLALAB_TUNING`, goes before it. Nothing is tuned at a call: a
choice is a look-up, so that no call stalls and a CUDA graph may be captured at once.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ENVIRONMENT = "MLALAB_TUNING"
_CELL = ("arch", "dtype", "heads", "tokens")
Row = Mapping[str, Any]


@functools.cache
def table_of(op: str, fields: tuple[str, ...], user_file: str | None) -> tuple[Row, ...]:
    """Return the rows known for `op`, the user's own first.

    Args:
        fields: what a row must hold beside the cell it was measured in.
        user_file: what `MLALAB_TUNING` names, if anything.

    Raises:
        RuntimeError: the user's file cannot be read, is no table, or has an incomplete row.
    """
    own = Path(__file__).parent / op / "tuning.json"
    rows = _read(own, op, fields) if own.exists() else []
    return (*(_read(Path(user_file), op, fields) if user_file else []), *rows)


def _read(file: Path, op: str, fields: tuple[str, ...]) -> list[Row]:
    try:
        rows = list(json.loads(file.read_text())[op]["rows"])
        for row in rows:
            missing = [name for name in (*_CELL, *fields) if name not in row]
            if missing or min(row["heads"], row["tokens"]) < 1:
                raise ValueError(f"a row lacks {', '.join(missing) or 'heads or tokens'}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RuntimeError(
            f"{file} is no tuning table for {op} ({type(error).__name__}: {error}); write one "
            f"with `python -m mlalab tune`, or unset {ENVIRONMENT}."
        ) from error
    return rows


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
