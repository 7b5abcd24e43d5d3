"""Every printed result is a test: change what the library computes, and its notebook turns red.

Each row below changes one result from outside, in the processes that run the notebook: a patch is
executed in a module right after it is imported. No file of the repository is touched. A notebook
that stays green would be one whose output nobody compares.

Running notebooks takes a minute or two, so these are asked for by name: pytest -m mutation -n 2.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOOK = """
import importlib.abc, importlib.util, json, os, sys

MODULE, PATCH = json.loads(os.environ["MLALAB_MUTATION"])

class Patching(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            exec(PATCH, vars(module))
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Patching())
"""
"""A `sitecustomize` module: Python imports it in each process that has its folder on the path."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """One library result, changed.

    Args:
        notebook: stem of a notebook that prints it.
        module: where the result is computed.
        patch: source, executed in that module's namespace.
        shown: what the first cell that differs prints then, spaces squeezed.
    """

    notebook: str
    module: str
    patch: str
    shown: str


MUTATIONS = {
    "an op count": Mutation(
        "00_start_here",
        "mlalab.viz.text",
        "rows = delta_rows\n"
        "delta_rows = lambda *steps: [(op, old, new + 1) for op, old, new in rows(*steps)]",
        "aten.unsqueeze 9 3 -6",
    ),
    "a match count": Mutation(
        "00_start_here",
        "mlalab.passes.matching",
        "apply, once = apply_fusion, PassResult\n"
        "def apply_fusion(fusion, graph):\n"
        "    result = apply(fusion, graph)\n"
        "    return once(result.matches * 2, result.refusals)",
        "+6 -39 ~2 2 -",
    ),
    "how much was compared": Mutation(
        "04_mla_rope_kv_cache_cat",
        "mlalab.checking",
        "import dataclasses\n"
        "exact = compare\n"
        "def compare(*args):\n"
        "    diff = exact(*args)\n"
        "    return dataclasses.replace(diff, total=diff.total // 2)",
        "0 of 73728 differ",
    ),
    "a reason for no match": Mutation(
        "04_mla_rope_kv_cache_cat",
        "mlalab.passes.explain",
        "nearest = nearest_miss\n"
        "nearest_miss = lambda patterns, anchor: nearest(list(patterns)[-1:], anchor)",
        "expected aten.reshape, found aten.add",
    ),
    "bytes of a node": Mutation(
        "05_defunctionalization",
        "mlalab.node_records",
        "import dataclasses\n"
        "records = node_records\n"
        "node_records = lambda graph: tuple(\n"
        "    dataclasses.replace(n, bytes=n.bytes and 2 * n.bytes) for n in records(graph))",
        "makes 98304 bytes",
    ),
    "a refused write": Mutation(
        "05_defunctionalization",
        "mlalab.passes.aliasing",
        "Region.overlaps = lambda self, other: self.storage == other.storage",
        "rope and nope : True",
    ),
    "bytes per token": Mutation(
        "01_mla_by_hand",
        "mlalab.viz.mla",
        "exact = cached_bytes\n"
        "cached_bytes = lambda *args: {k: v + 1 for k, v in exact(*args).items()}",
        "deepseek-v3 81921 5121 1153",
    ),
    "the value of a byte": Mutation(
        "06_fp8_kv_dtype",
        "mlalab.fp8",
        "exact = Format.decode\nFormat.decode = lambda self, byte: 2 * exact(self, byte)",
        "e4m3fn: 2.25",
    ),
    "operations of a product": Mutation(
        "10_speed_of_light",
        "mlalab.bench.roofline",
        "exact = flops\nflops = lambda spec: 2 * exact(spec)",
        "17.2",
    ),
    "a judge's verdict": Mutation(
        "05_defunctionalization_exercises",
        "mlalab.exercises.defunctionalization",
        "EXERCISES['05.folds'] = Exercise(lambda attempt: None)",
        "05.folds: right.",
    ),
}
"""What is changed → how, and where it shows. Add a row for each new notebook."""


def run_patched(command: list[str], folder: Path, module: str, patch: str) -> tuple[int, str]:
    """Run Python with `patch` injected; returns its exit code and output, spaces squeezed."""
    (folder / "sitecustomize.py").write_text(HOOK, encoding="utf-8")
    path = os.pathsep.join(map(str, (folder, ROOT, ROOT / "kernels")))
    run = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "MLALAB_MUTATION": json.dumps([module, patch])},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    plain = re.sub(r"\x1b\[[0-9;]*m", "", run.stdout + run.stderr)
    return run.returncode, re.sub(r"\s+", " ", plain)


def compare_notebook(notebook: str, folder: Path, module: str, patch: str) -> tuple[int, str]:
    """Run one notebook as `make test` does, up to the first difference, with `patch` injected."""
    options = ("--nbval", "--nbval-current-env", "-p", "no:cacheprovider", "-p", "no:xdist")
    rules = "--nbval-sanitize-with=notebooks/nbval_sanitize.cfg"
    command = ["-m", "pytest", "-x", "-vv", *options, rules, f"notebooks/{notebook}.ipynb"]
    return run_patched(command, folder, module, patch)


def test_a_patch_reaches_a_process_that_imports_the_module(tmp_path):
    code = "from mlalab.records import FORMAT_OF_A_TEST; print(FORMAT_OF_A_TEST)"
    patch = "FORMAT_OF_A_TEST = 'patched'"
    assert run_patched(["-c", code], tmp_path, "mlalab.records", patch) == (0, "patched ")
    assert run_patched(["-c", code], tmp_path, "mlalab.shapes", patch)[0] == 1


@pytest.mark.mutation
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_changed_result_turns_its_notebook_red(name, tmp_path):
    row = MUTATIONS[name]
    code, output = compare_notebook(row.notebook, tmp_path, row.module, row.patch)
    assert code == 1, output[-2000:]
    assert "Cell outputs differ" in output
    assert "execution caused an exception" not in output
    assert row.shown in output


@pytest.mark.mutation
@pytest.mark.parametrize("notebook", sorted({row.notebook for row in MUTATIONS.values()}))
def test_unchanged_they_are_green(notebook, tmp_path):
    rows = [row for row in MUTATIONS.values() if row.notebook == notebook]
    code, output = compare_notebook(notebook, tmp_path, rows[0].module, "")
    assert code == 0, output[-2000:]
    assert not any(row.shown in output for row in rows)
