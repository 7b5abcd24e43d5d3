"""A warm compile cache, of another process: it never serves a graph of other passes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WARM = ("plain", "fused", "forget", "fused", "blind", "fused", "plain")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What two processes on one cache folder found: the first fused, the second did all of WARM."""
    folder = tmp_path_factory.mktemp("inductor")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder), "PYTHONPATH": paths}

    def run(*actions):
        process = subprocess.run(
            [sys.executable, "-m", "tests.compile.cached_run", *actions],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment,
            timeout=300,
            check=False,
        )
        assert process.returncode == 0, process.stderr[-2000:]
        return json.loads(process.stdout.splitlines()[-1])

    return run("fused"), run(*WARM)


RIGHT = {"close": True, "same cache": True}
FUSED = {"matched": 1, "fused calls": 1, **RIGHT}
PLAIN = {"matched": 0, "fused calls": 0, **RIGHT}


def test_a_warm_cache_serves_the_same_passes_only(runs):
    (cold,), (plain, warm, forgotten, *_) = runs
    assert cold == {"cached": False, **FUSED}
    # Everything but the passes is as it was: served from this cache, it would be fused.
    assert plain == {"cached": False, **PLAIN}
    assert warm == {"cached": True, **FUSED}
    # Code without a record of what the passes did is not used.
    assert forgotten == {"cached": False, **FUSED}


def test_without_the_uuid_it_would_serve_the_wrong_graph(runs):
    _, (*_, stored, served) = runs
    assert not stored["cached"]
    assert served["cached"] and served["fused calls"] == 1
