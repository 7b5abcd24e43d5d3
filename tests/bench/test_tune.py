"""`python -m mlalab tune`: cells, candidates and the file, with the clock played."""

from __future__ import annotations

import contextlib
import json
import types

import pytest
import torch

from mlalab.bench import tune as tuning
from mlalab.bench.cells import CellSpec
from mlalab.bench.contenders import ABSORB_OP
from mlalab.cli import main
from mlalab_kernels.tuning import nearest, table_of

GPU = torch.device("cuda")


@pytest.fixture
def played(monkeypatch):
    """A GPU on which each cell has been tuned already; returns the cells that were asked for."""
    asked = []

    def best_of(spec, device):
        asked.append((spec.heads, spec.tokens, spec.format))
        cell = {"arch": "sm_90", "dtype": spec.format, "heads": spec.heads, "tokens": spec.tokens}
        return cell | {"block_t": 16, "us": float(len(asked))}

    monkeypatch.setattr(tuning, "best_of", best_of)
    facts = {"device": "played", "date": "today"}
    monkeypatch.setattr(tuning, "machine", lambda device: facts)
    return asked


def test_rows_are_added_and_replaced(played, tmp_path):
    file = tmp_path / "mine.json"
    cells = {"heads": [16], "formats": ["fp8/fp8"]}
    assert tuning.tune(GPU, file, tokens=[1, 8], **cells) == 0
    assert tuning.tune(GPU, file, tokens=[8, 4], **cells) == 0
    table = json.loads(file.read_text())[ABSORB_OP]
    assert [(r["tokens"], r["us"]) for r in table["rows"]] == [(1, 1.0), (4, 4.0), (8, 3.0)]
    assert table["provenance"]["device"] == "played"
    assert {(r["device"], r["date"]) for r in table["rows"]} == {("played", "today")}
    rows = table_of(ABSORB_OP, ("block_t",), str(file))
    assert nearest(rows, "sm_90", "fp8/fp8", 16, 5)["tokens"] == 4


def test_what_was_finished_survives_ctrl_c(played, tmp_path, monkeypatch, capsys):
    best = tuning.best_of

    def interrupted(spec, device):
        if spec.tokens == 2:
            raise KeyboardInterrupt
        return best(spec, device)

    monkeypatch.setattr(tuning, "best_of", interrupted)
    file = tmp_path / "mine.json"
    assert tuning.tune(GPU, file, tokens=[1, 2, 4], heads=[16], formats=["fp8/fp8"]) == 130
    assert [r["tokens"] for r in json.loads(file.read_text())[ABSORB_OP]["rows"]] == [1]
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"fused": 1}'])
def test_another_file_is_not_overwritten(played, tmp_path, text):
    file = tmp_path / "notes.json"
    file.write_text(text)
    with pytest.raises(tuning.ConfigError, match="is no tuning table"):
        tuning.tune(GPU, file)
    assert file.read_text() == text
    assert not played


def test_a_cpu_is_refused_in_a_sentence(tmp_path, capsys):
    assert main(["tune", "--device", "cpu", "--out", str(tmp_path / "x.json")]) == 2
    assert capsys.readouterr().err.startswith("mlalab: Tuning times kernels on a GPU")


@pytest.mark.parametrize("tokens", [1, 32, 64, 128, 512, 2048])
def test_candidates_fit_their_tokens(tokens):
    found = list(tuning.candidates(tokens))
    assert len(found) == len(set(found)) > 8
    assert any(c.described for c in found) == (tokens >= 32)
    assert all(c.block_t <= max(64, tokens) for c in found)


def test_a_cell_in_which_nothing_agrees_is_told_in_a_sentence(monkeypatch):
    monkeypatch.setattr(tuning, "_time", lambda *_: None)
    monkeypatch.setattr(tuning, "make_layers", lambda *_: [])
    monkeypatch.setattr(tuning.torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(tuning.torch.cuda, "empty_cache", lambda: None)
    properties = types.SimpleNamespace(L2_cache_size=1)
    monkeypatch.setattr(tuning.torch.cuda, "get_device_properties", lambda _: properties)
    with pytest.raises(tuning.ConfigError, match="No configuration ran and agreed"):
        tuning.best_of(CellSpec(heads=16, tokens=8), GPU)
