"""A warm compile cache, of another process: it never serves a graph of other passes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return `run(*arguments)`: a new process on one cache folder for all tests here."""
    folder = tmp_path_factory.mktemp("inductor")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])

    def run(*arguments):
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder), "PYTHONPATH": paths}
        process = subprocess.run(
            [sys.executable, "-m", "tests.compile.cached_run", *arguments],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment,
            timeout=300,
            check=False,
        )
        assert process.returncode == 0, process.stderr[-2000:]
        return json.loads(process.stdout.splitlines()[-1])

    run.folder = folder
    return run


RIGHT = {"close": True, "same cache": True}
FUSED = {"matched": 1, "fused calls": 1, **RIGHT}
PLAIN = {"matched": 0, "fused calls": 0, **RIGHT}


def test_a_warm_cache_serves_the_same_passes_only(run):
    assert run("fused") == {"cached": False, **FUSED}
    # Everything but the passes is as it was: served from this cache, it would be fused.
    assert run("plain") == {"cached": False, **PLAIN}
    assert run("fused") == {"cached": True, **FUSED}
    # Code without a record of what the passes did is not used.
    shutil.rmtree(run.folder / "mlalab")
    assert run("fused") == {"cached": False, **FUSED}


def test_without_the_uuid_it_would_serve_the_wrong_graph(run):
    run("fused", "blind")
    served = run("plain", "blind")
    assert served["cached"] and served["fused calls"] == 1
