"""Chromium for every browser test: how it is started, what it may ask for, what is read from it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
]
CONTRAST = """
(selector) => {
  const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  // The browser itself turns any notation of a colour into bytes, and blends what is translucent.
  const painted = (colours) => {
    pen.clearRect(0, 0, 1, 1);
    for (const colour of ["white", ...colours]) {
      pen.fillStyle = colour;
      pen.fillRect(0, 0, 1, 1);
    }
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const lum = (c) => c.map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const grounds = (node) => {
    const found = [];
    for (let n = node; n; n = n.parentElement) {
      found.unshift(getComputedStyle(n).backgroundColor);
    }
    return found;
  };
  const texts = [...document.querySelectorAll(selector)].filter((n) =>
    !n.disabled && !n.closest("svg, [hidden]")
    && [...n.childNodes].some((c) => c.nodeType === 3 && c.textContent.trim()));
  return texts.map((n) => {
    const below = grounds(n);
    const [a, b] = [[...below, getComputedStyle(n).color], below].map((c) => lum(painted(c)));
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), n.tagName + "." + n.className];
  });
}
"""
"""Selector → contrast and name of every text there, from the colours the browser computed."""


@contextmanager
def watched(page: Any, *, allowed: set[str], level: tuple[str, ...]) -> Iterator[None]:
    """Fail on any request outside `allowed` and on any console message of one of the levels.

    Args:
        allowed: schemes such as `data`, and `host:port` of servers.
        level: console message types that are not accepted; what a page throws never is.
    """
    # JupyterLab itself says so when a notebook is closed while its kernel still answers.
    closing = re.compile(r"Canceled future for \w+ message before replies were done")
    requests: list[str] = []
    complaints: list[str] = []
    listeners = {
        "request": lambda r: requests.append(r.url),
        "console": lambda m: complaints.append(m.text) if m.type in level else None,
        "pageerror": lambda e: complaints.append(str(e)),
        "websocket": lambda s: requests.append(s.url),
    }
    for event, listener in listeners.items():
        page.on(event, listener)
    yield
    for event, listener in listeners.items():
        page.remove_listener(event, listener)
    parts = [(url, urlsplit(url)) for url in requests]
    assert [url for url, x in parts if (x.netloc or x.scheme) not in allowed] == []
    assert [text for text in complaints if not closing.search(text)] == []
