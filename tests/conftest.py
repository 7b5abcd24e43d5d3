"""What every test shares: seeds, thread count, poisoned memory, goldens."""

from __future__ import annotations

import difflib
import gc
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.scheduling import pytest_xdist_make_scheduler  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]
GOLDENS = Path(__file__).parent / "goldens"

# Asked for by cuBLAS once deterministic algorithms are on; read when CUDA starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# The same examples on every run: a red run must be red again when it is repeated.
settings.register_profile("mlalab", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("mlalab")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-goldens", action="store_true", help="write tests/goldens instead of comparing"
    )


def pytest_configure(config: pytest.Config) -> None:
    # Workers share the cores; threads beyond that only wait for each other.
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    # A compilation makes millions of objects that stay until its end: looking for garbage among
    # them at every 700th, as Python does, takes an eighth of the time.
    gc.set_threshold(100_000, 10, 10)
    # torch's machine-readable trace would bury the report of every failed compile test.
    logging.getLogger("torch.__trace").propagate = False


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fill every `torch.empty` with NaN (integers: their maximum), so unwritten output shows.

    torch does this below the dispatcher, so captured graphs are the same with and without it. The
    flag means "deterministic" to torch as well: its warnings about that are not our business and
    are on the allow-list in pyproject.toml. Code that Inductor generates allocates on its own and
    is not poisoned.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Return `compare(name, text)`, which compares `text` with tests/goldens/NAME.txt."""
    update = request.config.getoption("--update-goldens")

    def compare(name: str, text: str) -> None:
        path = GOLDENS / f"{name}.txt"
        text = text.rstrip("\n") + "\n"
        if update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        expected = path.read_text(encoding="utf-8") if path.exists() else ""
        if text != expected:
            diff = difflib.unified_diff(
                expected.splitlines(), text.splitlines(), f"goldens/{name}.txt", "now", lineterm=""
            )
            pytest.fail(
                "\n".join((*diff, "If the change is meant: pytest --update-goldens, then review.")),
                pytrace=False,
            )

    return compare
