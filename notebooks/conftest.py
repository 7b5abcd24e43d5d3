"""How nbval compares: text, not pictures.

Every mlalab object prints a deterministic text form, and that is the assertion. The pictures beside
it hold source line numbers, so comparing them would turn every edit of a source file into a red
notebook; `tests/test_notebooks.py` looks after them instead.
"""

import pytest


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Leave rendered forms out of the comparison."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("text/html", "image/svg+xml")
