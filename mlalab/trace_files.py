"""Reading and writing records: whole files or none, and JSON back into tuples."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlalab.errors import ConfigError, TraceError
from mlalab.records import (
    CheckRecord,
    MatchRecord,
    NodeRecord,
    PatternRecord,
    Refusal,
    StepRecord,
    StepStatus,
    TensorDiff,
)

FORMAT = "mlalab-trace-3"
"""Of the files of traces; a file of another is refused."""


def require_files(*paths: Path | None) -> None:
    """Refuse outputs that could not all be written; None is no output.

    Raises:
        ConfigError: a folder that does not exist, a folder itself, or one file for two outputs.
    """
    given = [path for path in paths if path is not None]
    for path in given:
        require_folder(path)
    if len({path.resolve() for path in given}) < len(given):
        raise ConfigError("Two outputs are to be written to one file; give each a name of its own.")


def require_folder(path: Path) -> None:
    """Refuse a file that could not be written, before what goes into it takes minutes to make.

    Raises:
        ConfigError: its folder does not exist, or it is a folder itself.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"Cannot write {path}: the folder {path.parent} does not exist.")
    if path.is_dir():
        raise ConfigError(f"Cannot write {path}: it is a folder; name a file in it.")


def write_whole(path: Path, text: str) -> None:
    """Write a whole file or none: a full disk must not leave half a trace behind.

    Raises:
        TraceError: it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise TraceError(f"Cannot write {path}: {error.strerror}.") from error


def tuples(record: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the lists that JSON made of tuples back."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}


def step_of(record: Mapping[str, Any]) -> StepRecord:
    """Return the step that `dataclasses.asdict` and JSON made `record` of."""
    check = record["check"]
    return StepRecord(
        **{
            **tuples(record),
            "nodes": _nodes(record),
            "matches": tuple(MatchRecord(**tuples(m)) for m in record["matches"]),
            "refusals": tuple(Refusal(**tuples(r)) for r in record["refusals"]),
            "patterns": tuple(
                PatternRecord(**{**p, "nodes": _nodes(p)}) for p in record["patterns"]
            ),
            "check": check and CheckRecord(diffs=tuple(TensorDiff(**d) for d in check["diffs"])),
        }
    )


def _nodes(record: Mapping[str, Any]) -> tuple[NodeRecord, ...]:
    return tuple(NodeRecord(**tuples(node)) for node in record["nodes"])


def read_trace(
    path: Path,
) -> tuple[str, list[StepRecord], dict[str, str], dict[str, StepStatus]]:
    """Return title, steps, meta and skipped passes of a trace that `Trace.save` wrote.

    Raises:
        TraceError: no such file, or not a trace.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise TraceError(
                f"{path} has format {document['format']!r}; this mlalab reads {FORMAT!r}."
            )
        steps = [step_of(step) for step in document["steps"]]
        return document["title"], steps, document["meta"], document["skipped"]
    except OSError as error:
        raise TraceError(f"Cannot read {path}: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise TraceError(f"{path} is not a trace that mlalab saved ({error}).") from error
