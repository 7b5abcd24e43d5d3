"""Line budgets: what keeps every file readable in one sitting. Raising one is a visible change.

A function's length is its span of lines without decorators and docstring: a documented contract is
not charged for, blank lines and comments are. A nested function counts in the one around it too.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("mlalab", "kernels", "tests")
FILE_LINES = 250
FUNCTION_LINES = 40
KERNEL_LINES = 70  # Triton bodies: splitting one costs more than it clears up
FILE_BYTES = 300_000

Function = ast.FunctionDef | ast.AsyncFunctionDef


def source_files(folder: str, *suffixes: str) -> list[Path]:
    files = (ROOT / folder).rglob("*")
    return sorted(f for f in files if f.suffix in suffixes and ".ipynb_checkpoints" not in f.parts)


def function_lengths(source: str) -> list[tuple[str, int]]:
    return [
        (node.name, _length(node))
        for node in ast.walk(ast.parse(source))
        if isinstance(node, Function)
    ]


def _length(function: Function) -> int:
    length = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function, clean=False) is not None:
        docstring = function.body[0]
        length -= docstring.end_lineno - docstring.lineno + 1
    return length


def test_length_leaves_out_docstring_and_decorators():
    source = '@decorated\n@twice\ndef f(\n    x,\n):\n    """One.\n\n    Two."""\n\n    return x\n'
    assert function_lengths(source) == [("f", 5)]


def test_methods_and_nested_functions_are_measured():
    source = "class A:\n  def m(self):\n    def inner():\n      return 1\n    return inner"
    assert function_lengths(source) == [("m", 4), ("inner", 2)]


@pytest.mark.parametrize("folder", SOURCES)
def test_files_are_short(folder):
    files = source_files(folder, ".py", ".js", ".css")
    assert files, f"nothing under {folder}/ to measure"
    lines = {f: len(f.read_text(encoding="utf-8").splitlines()) for f in files}
    over = [f"{f.relative_to(ROOT)}: {n}" for f, n in lines.items() if n > FILE_LINES]
    assert not over, f"over {FILE_LINES} lines (total {sum(lines.values())}): {', '.join(over)}"


@pytest.mark.parametrize("folder", SOURCES)
def test_functions_are_short(folder):
    budget = KERNEL_LINES if folder == "kernels" else FUNCTION_LINES
    over, seen = [], 0
    for file in source_files(folder, ".py"):
        lengths = function_lengths(file.read_text(encoding="utf-8"))
        seen += len(lengths)
        over += [f"{file.relative_to(ROOT)}: {name} {n}" for name, n in lengths if n > budget]
    assert seen, f"no function under {folder}/ to measure"
    assert not over, f"over {budget} lines: {', '.join(over)}"


def test_no_file_is_large():
    files = [f for top in (*SOURCES, "notebooks") for f in (ROOT / top).rglob("*") if f.is_file()]
    over = [
        f"{f.relative_to(ROOT)}: {f.stat().st_size} bytes"
        for f in files
        if f.stat().st_size > FILE_BYTES and "__pycache__" not in f.parts
    ]
    assert len(files) > 10
    assert not over, ", ".join(over)
