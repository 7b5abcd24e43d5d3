"""The command line: what it prints, what it writes, and one sentence for every mistake."""

import json
import re
import subprocess
import sys

import pytest

from mlalab.cli import main
from mlalab.traces import Trace


def run(capsys, *arguments):
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_trace_prints_the_table_and_writes_both_files(capsys, tmp_path):
    page, record = tmp_path / "t.html", tmp_path / "t.json"
    code, out, err = run(
        capsys, "trace", "--model", "tiny", "--tokens", 3, "--html", page, "--json", record
    )
    assert code == 0
    assert "MLARoPEKVCacheCatFusionPass" in out
    assert "matched 1 place" in out
    table, *whys = out.strip().split("\n\n")
    assert table in repr(Trace.load(record))
    assert len(whys) == out.count("switched off") + 1
    assert page.read_text().lstrip().lower().startswith("<!doctype html>")
    assert "wrote" in err


@pytest.mark.parametrize("level", ["O0", "O1"])
def test_low_levels_leave_the_graph_unfused(capsys, level):
    code, out, _ = run(capsys, "trace", "--model", "tiny", "--tokens", 3, "--level", level)
    assert code == 0
    assert "switched off (see --enable): " in out and "MLARoPEKVCacheCatFusionPass" in out


def test_fp8_dynamic_layers_and_custom_op_are_options(capsys):
    options = ("--kv-cache-dtype", "fp8", "--dynamic", "--layers", 2, "--rope-custom-op")
    code, out, _ = run(capsys, "trace", "--model", "tiny", *options)
    assert code == 0
    assert "2 layer(s), any number of tokens" in out
    assert "matched 2 place(s)" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "nope"), "neither a preset"),
        (("--model", "tiny", "--tokens", "-1"), "0 or more"),
        (("--model", "tiny", "--kv-cache-dtype", "int4"), "kv_cache_dtype"),
        (("--model", "tiny", "--level", "O9"), "Unknown level"),
        (("--model", "tiny", "--mode", "fast"), "mode must be"),
        (("--model", "tiny", "--html", "/nonexistent/t.html"), "does not exist"),
        (("--model", "tiny", "--device", "nope"), "device"),
    ],
)
def test_mistakes_are_one_sentence_on_stderr(capsys, options, message):
    code, out, err = run(capsys, "trace", *options)
    assert code != 0
    assert message in err
    assert "Traceback" not in err
    assert out == ""
    assert err.strip().splitlines()[-1].startswith("mlalab: ")


def test_an_empty_directory_is_refused(capsys, tmp_path):
    code, _, err = run(capsys, "trace", "--model", tmp_path)
    assert code != 0
    assert "config.json" in err


def test_a_failed_check_is_a_failure(capsys, monkeypatch):
    monkeypatch.setattr(Trace, "ok", property(lambda self: False))
    assert run(capsys, "trace", "--model", "tiny", "--tokens", 1)[0] == 1
    assert run(capsys, "trace", "--model", "tiny", "--tokens", 1, "--no-check")[0] == 0


def test_doctor_reports_each_subject(capsys):
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    for subject in ("torch", "triton", "device", "arch", "fp8", "aiter"):
        assert subject in out
    assert re.search(r"^mla_decode_q_prep +(reference|triton|aiter), \w", out, re.M)


def test_clean_says_what_it_changed(capsys, tmp_path):
    path = tmp_path / "n.ipynb"
    notebook = {"cells": [], "metadata": {"widgets": {}}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(notebook))
    assert run(capsys, "clean", "--check", path) == (1, f"would change {path}\n", "")
    assert run(capsys, "clean", path) == (0, f"cleaned {path}\n", "")
    assert run(capsys, "clean", path) == (0, "", "")


def test_python_dash_m_works():
    done = subprocess.run(
        [sys.executable, "-m", "mlalab", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.split()[0]) == (0, "mlalab")


def test_flags_are_switched_by_name(capsys):
    asked = ("trace", "--model", "tiny-gqa", "--tokens", 3, "--no-check")
    code, out, _ = run(capsys, *asked, "--enable", "fuse_rope_kvcache")
    assert code == 0
    assert "RopeKVCacheFusionPass left nothing out: it matched 1 place(s)." in out
    code, out, _ = run(capsys, *asked, "--disable", "fuse_rope_kvcache")
    assert code == 0
    assert "switched off (see --enable): RopeKVCacheFusionPass" in out


def test_an_unknown_flag_is_one_sentence(capsys):
    code, _, err = run(capsys, "trace", "--model", "tiny", "--enable", "fuse_all")
    assert code == 2
    assert "No flag is called 'fuse_all'; flags are eliminate_noops, fuse_rope_kvcache" in err


def test_the_page_and_the_trace_do_not_go_to_one_file(capsys, tmp_path):
    both = ("--html", tmp_path / "a", "--json", tmp_path / "a")
    code, out, err = run(capsys, "trace", "--model", "tiny", *both)
    assert (code, out) == (2, "")
    assert err.startswith("mlalab: Two outputs are to be written to one file; ")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
