"""Which tests share a process when there are several: what a file sets up is set up once.

By path, as pytest-xdist 3.8 loses `xdist_group` under pytest 9.2.
"""

from __future__ import annotations

from typing import Any

import pytest

TOGETHER = "tests/browser/"
"""One Chromium and one Lab serve all of these."""
APART = "tests/passes/test_fuzz.py::"
"""Long tests that share nothing."""


def unit_of(test: str) -> str:
    """Return what a test must stay together with."""
    if test.startswith(APART):
        return test
    return TOGETHER if test.startswith(TOGETHER) else test.split("::", 1)[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Take the place of xdist's own `--dist loadfile`."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Units(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return unit_of(nodeid)

    return Units(config, log)
