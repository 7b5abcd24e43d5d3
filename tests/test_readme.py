"""The README keeps its word: example, picture, links, options."""

import re
from pathlib import Path

import mlalab
from mlalab.cli import _parser
from mlalab.compile.config import FLAGS, NUMBERS
from mlalab.passes.pipeline import PIPELINE

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def fences(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    example = next(block for block in fences("python") if "to_html" in block)
    exec(example, {})
    assert "MLARoPEKVCacheCatFusionPass" in capsys.readouterr().out
    assert (tmp_path / "trace.html").stat().st_size > 10_000


def test_the_compile_example_runs(capsys):
    example = next(block for block in fences("python") if "CompiledModel" in block)
    # The same on the smallest preset: Inductor takes half a minute for the real one.
    exec(example.replace("deepseek-v2-lite", "tiny"), {})
    report = capsys.readouterr().out
    assert report.count("decode 1..64") == report.count("applied  2       2        0") == 3


def test_the_example_of_cuda_graphs_runs(capsys):
    exec(next(block for block in fences("python") if "CudaGraphs" in block), {})
    assert capsys.readouterr().out.count("need a CUDA device") == 3


def test_the_table_of_passes_is_complete():
    for pass_ in PIPELINE:
        assert f"`{pass_.name}`" in README
    for flag in FLAGS + NUMBERS:
        assert f"`{flag}`" in README


def test_the_picture_is_what_the_library_draws():
    drawn = mlalab.trace("deepseek-v2-lite", tokens=8).check().figure().svg
    committed = (ROOT / "notebooks/figures/before_after.svg").read_text(encoding="utf-8")
    # Tooltips name source lines, which move with every edit.
    bare = [re.sub(r"<title>.*?</title>", "", svg, flags=re.S) for svg in (drawn, committed)]
    assert bare[0] == bare[1], "save trace.figure().svg of this very trace over it"


def test_local_links_and_paths_exist():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
    table = re.findall(r"^\| (`[^|]*) \|", README, re.M)
    paths = [p for row in table for p in re.findall(r"`([\w./]+)`", row) if "/" in p]
    assert len(paths) > 8
    for path in paths:
        assert (ROOT / path).exists(), path


def test_every_option_and_preset_named_is_real():
    parser = _parser()
    for line in "\n".join(fences("")).splitlines():
        if line.startswith("python -m mlalab"):
            parser.parse_args(line.split()[3:])
    trace = parser._subparsers._group_actions[0].choices["trace"]
    sentence = README.split("`trace` takes", 1)[1].split("`--help`")[0]
    for option in re.findall(r"`(--[a-z-]+)", sentence):
        assert option in trace.format_help()
    named = re.findall(r"`([a-z0-9-]+)`", README.split("Presets:")[1].split("A mistake")[0])
    assert sorted(named) == sorted(mlalab.shapes.PRESETS)
