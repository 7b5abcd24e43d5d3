"""The test harness does what the other tests lean on."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

pytest_plugins = ("pytester",)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e4m3fnuz]
)
def test_fresh_memory_is_nan(dtype):
    like = torch.zeros(2, 3, dtype=dtype)
    for fresh in (torch.empty(5, dtype=dtype), torch.empty_like(like), like.new_empty(4)):
        assert fresh.float().isnan().all()


def test_an_unwritten_output_is_caught():
    def forgets_last_row(x):
        out = torch.empty_like(x)
        out[:-1] = x[:-1]
        return out

    x = torch.randn(3, 4)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(forgets_last_row(x), x)


def test_poison_leaves_captured_graphs_alone():
    graphs = []

    def keep(gm, example_inputs):
        graphs.append(gm.print_readable(print_output=False))
        return gm.forward

    def step(x):
        out = torch.empty_like(x)
        out.copy_(x * 2)
        return out

    for deterministic in (True, False):
        torch.use_deterministic_algorithms(deterministic)
        torch.compile(step, backend=keep)(torch.ones(4))
        torch._dynamo.reset()
    assert len(graphs) == 2
    assert graphs[0] == graphs[1]


def test_seed_is_the_same_for_every_test():
    assert torch.initial_seed() == 0


def test_golden_fails_with_a_diff_until_updated(pytester):
    pytester.makeconftest((Path(__file__).parent / "conftest.py").read_text(encoding="utf-8"))
    pytester.makepyfile("def test_it(golden): golden('table', 'one\\ntwo')")
    run = partial(pytester.runpytest_inprocess, "-p", "no:cacheprovider")

    run().stdout.fnmatch_lines(["*+one", "*+two", "*--update-goldens*"])
    assert run("--update-goldens").ret == pytest.ExitCode.OK
    assert run().ret == pytest.ExitCode.OK
    (pytester.path / "goldens" / "table.txt").write_text("one\n2\n", encoding="utf-8")
    changed = run()
    assert changed.ret == pytest.ExitCode.TESTS_FAILED
    changed.stdout.fnmatch_lines(["*-2", "*+two"])


def test_processes_share_no_file_and_not_the_browser(pytester, monkeypatch):
    """Two processes: each file and all files of the browser in one, long tests wherever."""
    pytester.makeconftest("from tests.scheduling import pytest_xdist_make_scheduler")
    body = "import os, pathlib, pytest\n@pytest.mark.parametrize('i', range(4))\n"
    body += "def test_it(i): pathlib.Path('ran').open('a').write(f'{__name__} {os.getpid()}\\n')"
    for name in ("browser/test_a", "browser/test_b", "passes/test_fuzz", "test_c", "test_d"):
        path = pytester.path / f"tests/{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body, encoding="utf-8")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # processes that start quickly
    options = ("-p", "xdist", "--import-mode=importlib", "-n", "2", "--dist", "loadfile")
    pytester.runpytest_inprocess(*options).assert_outcomes(passed=20)

    processes: dict[str, set[str]] = {}
    for line in (pytester.path / "ran").read_text(encoding="utf-8").splitlines():
        name, process = line.split()
        unit = "browser" if "browser" in name else name.rpartition(".")[2]
        processes.setdefault(unit, set()).add(process)
    apart = {unit for unit, ids in processes.items() if len(ids) > 1}
    assert apart <= {"test_fuzz"}, processes
    assert len(set.union(*processes.values())) == 2
