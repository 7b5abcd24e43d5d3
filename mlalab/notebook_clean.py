"""Normalise notebooks for committing: what a reader sees stays, what changes from run to run goes.

Outputs are committed because nbval compares them, so a notebook that was run again without a change
in its results has to give the same bytes. Dropping the widget state also keeps GitHub able to
render the file. Works on the JSON alone, is idempotent, and executes nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from mlalab.errors import ConfigError

Cell = dict[str, Any]

WIDGET_MIME = "application/vnd.jupyter.widget-view+json"
_VOLATILE_METADATA = ("execution", "ExecuteTime", "collapsed", "scrolled", "trusted")
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def clean_paths(paths: Sequence[Path], *, check: bool) -> list[Path]:
    """Normalise each notebook in place and return those that were not in normal form.

    All are read before one is written: where one cannot be cleaned, none is.

    Args:
        paths: notebook files.
        check: only report, write nothing.

    Raises:
        ConfigError: a path that is not a readable notebook of format 4, or cannot be written.
    """
    changed = {}
    for path in paths:
        before = _read(path)
        after = clean_text(before, name=str(path))
        if after != before:
            changed[path] = after
    for path, text in () if check else changed.items():
        try:
            path.write_text(text, encoding="utf-8", newline="\n")
        except OSError as error:
            raise ConfigError(f"Cannot write the notebook {path}: {error.strerror}.") from error
    return list(changed)


def clean_text(text: str, *, name: str = "notebook") -> str:
    """Return the normal form of a notebook given as JSON text; `name` is used in errors.

    Raises:
        ConfigError: it is not a complete notebook of format 4.
    """
    try:
        notebook = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{name} is not a notebook: it cannot be read as JSON ({error})."
        ) from error
    try:
        if notebook["nbformat"] != 4:
            raise ConfigError(f"{name} is not in notebook format 4; save it again from JupyterLab.")
        numbers, ids = count(1), set[str]()
        cells = [_clean_cell(cell, numbers, ids) for cell in notebook["cells"]]
    except KeyError as error:
        raise ConfigError(f"{name} is not a complete notebook: it has no {error}.") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{name} is not a complete notebook: {error}.") from error
    # Cell ids exist from minor version 5 on.
    normal = {"cells": cells, "metadata": _METADATA, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(normal, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _read(path: Path) -> str:
    try:
        # Line ends are kept, so that a file with \r\n is seen to differ.
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ConfigError(f"Cannot read the notebook {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a notebook: it is not text in UTF-8.") from error


def _clean_cell(cell: Cell, numbers: Iterator[int], ids: set[str]) -> Cell:
    is_code = cell["cell_type"] == "code"
    lines = "".join(cell["source"]).rstrip().split("\n")
    # In Markdown two trailing blanks are a line break; in code they are nothing.
    source = "\n".join(line.rstrip() for line in lines) if is_code else "\n".join(lines)
    metadata = {k: v for k, v in cell["metadata"].items() if k not in _VOLATILE_METADATA}
    new = {**cell, "source": source.splitlines(keepends=True), "metadata": metadata}
    new["id"] = _cell_id(cell["cell_type"], source, ids)
    if is_code:
        was_run = cell.get("execution_count") is not None
        new["execution_count"] = next(numbers) if was_run else None
        new["outputs"] = _clean_outputs(cell["outputs"], new["execution_count"])
    return new


def _cell_id(cell_type: str, source: str, taken: set[str]) -> str:
    """Derive an id from the content, so that editing one cell leaves the ids of others alone."""
    digest = hashlib.sha256(f"{cell_type}\n{source}".encode()).hexdigest()[:8]
    candidates = (digest if n == 1 else f"{digest}-{n}" for n in count(1))
    cell_id = next(c for c in candidates if c not in taken)
    taken.add(cell_id)
    return cell_id


def _clean_outputs(outputs: list[Cell], execution_count: int | None) -> list[Cell]:
    kept: list[Cell] = []
    for original in outputs:
        output = dict(original)
        if output["output_type"] == "stream":
            text = "".join(output["text"])
            if kept and kept[-1].get("name") == output["name"]:
                text = "".join(kept.pop()["text"]) + text
            output["text"] = text.splitlines(keepends=True)
        if WIDGET_MIME in output.get("data", {}):
            # Its picture stands in the output before it; a widget without a kernel is an error.
            continue
        if "execution_count" in output:
            output["execution_count"] = execution_count
        kept.append(output)
    return kept
