"""A trace as one HTML file that needs nothing else: no server, no network, no Python.

The pictures are drawn here, by the code that draws them everywhere else; the script only steps
through them. A content security policy, with the hashes of the page's own script and styles,
makes "no network" a property that the browser enforces.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape

from mlalab.records import StepRecord
from mlalab.viz import page_data
from mlalab.viz.cost import Measured
from mlalab.viz.text import step_table

_START = """
const packed = atob(document.getElementById("trace").textContent);
const data = await unpack(Uint8Array.from(packed, (char) => char.charCodeAt(0)));
const app = mount(document.body, data);
const fromHash = () => app.go((Number(location.hash.slice("#step=".length)) || 1) - 1);
fromHash();
addEventListener("hashchange", fromHash);
document.body.addEventListener("mlalab:step", (e) => location.replace(`#step=${e.detail + 1}`));
"""
"""The page's own part: the step shown is in its address, so a link can point at one."""


_PAGE_STYLE = "html,body{height:100%;margin:0}.mlalab{--height:100vh}"


def trace_html(
    title: str,
    steps: Sequence[StepRecord],
    meta: Mapping[str, str],
    measured: Measured | None = None,
) -> str:
    """The whole page. `meta` (device, shapes, versions) is listed under the title.

    `measured` holds times to shade nodes by, where there are any.
    """
    style, script = page_data.style() + _PAGE_STYLE, page_data.script() + _START
    policy = f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}"
    data = page_data.packed(page_data.trace_data(title, steps, meta, measured))
    # In base64 no name from a graph can end the script element that it stands in.
    text = base64.b64encode(data).decode("ascii")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body>"
        f"<noscript><pre>{escape(step_table(steps))}</pre></noscript>"
        f'<script type="text/plain" id="trace">{text}</script>'
        f'<script type="module">{script}</script></body></html>\n'
    )


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
    return f"'sha256-{digest}'"
