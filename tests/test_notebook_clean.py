"""The notebook normaliser: keeps what a reader sees, drops what changes from run to run."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest

from mlalab.cli import main
from mlalab.errors import ConfigError
from mlalab.notebook_clean import WIDGET_MIME, clean_paths, clean_text

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def stream(text, name="stdout"):
    return {"output_type": "stream", "name": name, "text": text}


def shown(data, count=None):
    output = {"output_type": "display_data", "data": data, "metadata": {}}
    return (
        output
        if count is None
        else output | {"output_type": "execute_result", "execution_count": count}
    )


def code(source, *outputs, count=7, **metadata):
    return {
        "cell_type": "code",
        "id": "random",
        "source": source,
        "metadata": metadata,
        "outputs": list(outputs),
        "execution_count": count,
    }


def markdown(source):
    return {"cell_type": "markdown", "id": "random", "source": source, "metadata": {}}


def text_of(*cells, **metadata):
    return json.dumps(
        {"cells": list(cells), "metadata": metadata, "nbformat": 4, "nbformat_minor": 4}
    )


def clean(*cells, **metadata):
    text = clean_text(text_of(*cells, **metadata))
    assert clean_text(text) == text, "not idempotent"
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_metadata_is_reset():
    notebook = clean(
        code("1", execution={"iopub.execute_input": "2026-01-01"}, tags=["nbval-skip"]),
        widgets={"application/vnd.jupyter.widget-state+json": {"state": {}}},
        kernelspec={"display_name": "my env (3.11.7)", "name": "my-env", "language": "python"},
        language_info={"name": "python", "version": "3.11.7"},
    )
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert notebook.cells[0].metadata == {"tags": ["nbval-skip"]}


def test_widgets_go_and_the_picture_before_them_stays():
    live = {WIDGET_MIME: {"model_id": "abc"}, "text/plain": "IntSlider()"}
    (cell,) = clean(code("w", shown({"text/plain": "picture"}), shown(live))).cells
    assert [o.data for o in cell.outputs] == [{"text/plain": "picture"}]


def test_streams_of_one_name_are_merged_in_order():
    picture = shown({"text/plain": "picture"})
    parts = (stream("a\n"), stream("b"), stream("c"), stream("!", "stderr"), picture, stream("d"))
    (cell,) = clean(code("x", *parts)).cells
    assert [o.get("text") for o in cell.outputs] == ["a\nbc", "!", None, "d"]


def test_streams_around_a_dropped_widget_are_merged():
    (cell,) = clean(code("x", stream("a"), shown({WIDGET_MIME: {}}), stream("b"))).cells
    assert [o.text for o in cell.outputs] == ["ab"]


def test_run_cells_are_numbered_and_others_left_open():
    cells = clean(
        code("a", count=12), code("", count=None), code("b", shown({"text/plain": "1"}, 3), count=3)
    ).cells
    assert [c.execution_count for c in cells] == [1, None, 2]
    assert cells[2].outputs[0].execution_count == 2


def test_trailing_blanks_go_except_markdown_line_breaks():
    cells = clean(code("x = 1  \n\ny = 2\t\n\n"), markdown("one  \ntwo\n\n")).cells
    assert [c.source for c in cells] == ["x = 1\n\ny = 2", "one  \ntwo"]


def test_ids_follow_content_and_are_unique():
    before = [c.id for c in clean(code("a"), code("b"), markdown("a"), code("b")).cells]
    after = [c.id for c in clean(markdown("new"), code("a", count=99), code("b")).cells]
    assert len(set(before)) == 4
    assert after[1:] == before[:2]


def test_what_a_reader_sees_is_kept():
    data = {"text/html": "<b>×</b>", "image/png": "aGk=", "text/plain": "table"}
    error = {"output_type": "error", "ename": "E", "evalue": "v", "traceback": ["t"]}
    (cell,) = clean(code("x", shown(data), error)).cells
    assert cell.outputs[0].data == data
    assert cell.outputs[1] == error


def test_check_reports_without_writing(tmp_path):
    dirty, tidy = tmp_path / "dirty.ipynb", tmp_path / "tidy.ipynb"
    dirty.write_text(text_of(code("x ")), encoding="utf-8")
    tidy.write_text(clean_text(text_of(code("x"))), encoding="utf-8")
    before = dirty.read_bytes()
    assert clean_paths([dirty, tidy], check=True) == [dirty]
    assert dirty.read_bytes() == before
    assert clean_paths([dirty, tidy], check=False) == [dirty]
    assert clean_paths([dirty, tidy], check=True) == []


BROKEN = [
    ("", "is not a notebook: it cannot be read as JSON"),
    ("{", "is not a notebook: it cannot be read as JSON"),
    ("import mlalab\n", "is not a notebook: it cannot be read as JSON"),
    ("[" * 100_000, "is not a notebook: it cannot be read as JSON"),
    ("[]", "is not a complete notebook"),
    ('{"nbformat": 3, "worksheets": []}', "is not in notebook format 4"),
    ('{"nbformat": 4}', "is not a complete notebook: it has no 'cells'"),
    ('{"nbformat": 4, "cells": [{}]}', "is not a complete notebook: it has no 'cell_type'"),
    (
        '{"nbformat": 4, "cells": [{"cell_type": "raw", "source": [], "metadata": []}]}',
        "is not a complete notebook",
    ),
    (b"\xff\xfe", "is not a notebook: it is not text in UTF-8"),
]


@pytest.mark.parametrize(("content", "said"), BROKEN, ids=range(len(BROKEN)))
def test_what_is_no_notebook_is_refused_and_nothing_is_written(content, said, tmp_path, capsys):
    dirty, bad = tmp_path / "dirty.ipynb", tmp_path / "n.ipynb"
    dirty.write_text(text_of(code("x ")), encoding="utf-8")
    bad.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = dirty.read_bytes(), bad.read_bytes()
    assert main(["clean", str(dirty), str(bad)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"mlalab: {bad} {said}")
    assert told.err.count("\n") == 1
    assert (dirty.read_bytes(), bad.read_bytes()) == before


@pytest.mark.parametrize(("name", "said"), [("absent.ipynb", "No such file"), (".", "directory")])
def test_what_is_no_file_is_one_sentence_and_nothing_is_written(name, said, tmp_path, capsys):
    dirty = tmp_path / "dirty.ipynb"
    dirty.write_text(text_of(code("x ")), encoding="utf-8")
    before = dirty.read_bytes()
    assert main(["clean", str(dirty), str(tmp_path / name)]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"mlalab: Cannot read the notebook {tmp_path / name}: ")
    assert said in told
    assert told.count(str(tmp_path / name)) == told.count("\n") == 1
    assert dirty.read_bytes() == before


def test_a_notebook_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    path = tmp_path / "n.ipynb"
    path.write_text(text_of(code("x ")), encoding="utf-8")
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ConfigError, match=r"Cannot write .*n\.ipynb: No space left on device\.$"):
        clean_paths([path], check=False)


def test_committed_notebooks_are_clean():
    notebooks = sorted(NOTEBOOKS.glob("*.ipynb"))
    assert notebooks, "no notebook to check"
    changed = clean_paths(notebooks, check=True)
    assert not changed, f"run `make clean-notebooks`: {', '.join(p.name for p in changed)}"
