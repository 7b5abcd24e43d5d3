"""One Chromium and one JupyterLab for all browser tests of a process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from mlalab.viz.cost import Measured
from mlalab.viz.export import trace_html
from tests.browser.chrome import CHROMIUM, FLAGS, watched
from tests.browser.lab import Lab
from tests.browser.server import serving
from tests.viz.samples import steps

LEVELS = ("debug", "info", "log", "warning", "error")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, driven by Playwright; a test that wants it is skipped where either is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH: install Debian's package `chromium`")
    with api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)


@pytest.fixture(scope="session")
def running_lab(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A JupyterLab with a page that shows it; it takes three seconds to start."""
    with serving(tmp_path_factory.mktemp("lab")) as (url, token, folder):
        context = browser.new_context(viewport={"width": 1400, "height": 1000})
        page = context.new_page()
        page.set_default_timeout(90_000)  # a loaded machine compiles slowly
        with watched(page, allowed=allowed(url), level=("error",)):
            page.goto(f"{url}/lab?reset&token={token}")
            page.wait_for_function("window.jupyterapp?.shell")
            page.evaluate("async () => { await jupyterapp.restored }")
        yield Lab(url, folder, page)
        context.close()


@pytest.fixture
def lab(running_lab: Lab) -> Iterator[Lab]:
    """The same page for every test; fails the test on a request that leaves, or an error."""
    with watched(running_lab.page, allowed=allowed(running_lab.url), level=("error",)):
        yield running_lab
        running_lab.theme("JupyterLab Light")


def allowed(url: str) -> set[str]:
    return {urlsplit(url).netloc, "data", "blob"}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "trace.html"
    measured = Measured(us={"aot": {"mm": 12.5, "mul": 0.5}}, device="H200", date="2026-10-01")
    html = trace_html("tiny MLA", steps(3), {"device": "cpu"}, measured)
    path.write_text(html, encoding="utf-8")
    return path


@pytest.fixture
def page(browser, file, request) -> Iterator[object]:
    """The page, opened from disk; fails the test on any request, error or warning."""
    scheme = getattr(request, "param", "light")
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 860})
    page = context.new_page()
    with watched(page, allowed={"file", "data", "blob"}, level=LEVELS):
        page.goto(file.as_uri())
        page.wait_for_selector(".picture .n")
        yield page
    context.close()
