"""How nbval compares: text, not pictures.

Every mlalab object prints a deterministic text form, and that is the assertion. The pictures beside
it hold source line numbers, so comparing them would turn every edit of a source file into a red
notebook; `tests/test_notebooks.py` looks after them instead.
"""

import os

import pytest

# Widgets differ from run to run, and nobody looks: kernels inherit this.
os.environ["MLALAB_LIVE"] = "0"


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Leave rendered forms out of the comparison."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("text/html", "image/svg+xml")
