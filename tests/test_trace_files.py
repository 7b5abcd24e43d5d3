"""Files that cannot be written are refused before anything is made for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlalab.cli import main
from mlalab.errors import ConfigError
from mlalab.trace_files import require_files, require_folder


def test_a_new_file_and_one_that_is_there_may_be_written(tmp_path):
    (tmp_path / "old").write_text("")
    for name in ("old", "new"):
        require_folder(tmp_path / name)
    require_folder(Path("new"))


@pytest.mark.parametrize(
    ("name", "message"), [("none/x", "the folder .* does not exist"), (".", "it is a folder")]
)
def test_others_are_refused(tmp_path, name, message):
    with pytest.raises(ConfigError, match=f"Cannot write .*: {message}"):
        require_folder(tmp_path / name)


@pytest.mark.parametrize("option", ["--html", "--json"])
def test_a_trace_is_not_made_for_nothing(capsys, monkeypatch, option):
    monkeypatch.setattr("mlalab.lab.trace", None)
    assert main(["trace", "--model", "tiny", option, "."]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_every_output_has_a_file_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    require_files()
    require_files(None, None, Path("a"), tmp_path / "b")
    with pytest.raises(ConfigError, match=r"^Two outputs .* name of its own\.$"):
        require_files(Path("a"), None, tmp_path / "a")
    with pytest.raises(ConfigError, match="does not exist"):
        require_files(Path("a"), Path("none/x"))
