"""A trace as one HTML file that needs nothing else: no server, no network, no Python.

The pictures are drawn here, by the code that draws them everywhere else; the script only steps
through them. A content security policy, with the hashes of the page's own script and styles,
makes "no network" a property that the browser enforces.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from mlalab.records import NodeRecord, StepRecord
from mlalab.viz import theme
from mlalab.viz.alt import finding
from mlalab.viz.facts import chip_html, facts_html
from mlalab.viz.overlay import overlay
from mlalab.viz.svg import bare_step_svg, legend_svg
from mlalab.viz.text import step_table

_START = """
const packed = atob(document.getElementById("trace").textContent);
const bytes = new Blob([Uint8Array.from(packed, (char) => char.charCodeAt(0))]);
const stream = bytes.stream().pipeThrough(new DecompressionStream("deflate"));
const app = mount(document.body, await new Response(stream).json());
const fromHash = () => app.go((Number(location.hash.slice("#step=".length)) || 1) - 1);
fromHash();
addEventListener("hashchange", fromHash);
document.body.addEventListener("mlalab:step", (e) => location.replace(`#step=${e.detail + 1}`));
"""
"""The page's own part: the step shown is in its address, so a link can point at one."""


_PAGE_STYLE = "html,body{height:100%;margin:0}"


def trace_html(title: str, steps: Sequence[StepRecord], meta: Mapping[str, str]) -> str:
    """The whole page. `meta` (device, shapes, versions) is listed under the title."""
    static = files("mlalab.viz") / "static"
    style = _PAGE_STYLE + theme.style() + (static / "stepper.css").read_text(encoding="utf-8")
    script = (static / "stepper.js").read_text(encoding="utf-8") + _START
    policy = f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body>"
        f"<noscript><pre>{escape(step_table(steps))}</pre></noscript>"
        f'<script type="text/plain" id="trace">{_packed(trace_data(title, steps, meta))}</script>'
        f'<script type="module">{script}</script></body></html>\n'
    )


def trace_data(title: str, steps: Sequence[StepRecord], meta: Mapping[str, str]) -> dict[str, Any]:
    """What `mount` in stepper.js draws; equal nodes and equal pictures are stored once."""
    pool = _Pool()
    drawn = [_step(number, steps, pool) for number in range(len(steps))]
    return {
        "title": title,
        "meta": list(meta.items()),
        "steps": drawn,
        "nodes": [_node(record) for record in pool.nodes],
        "pictures": list(pool.pictures),
        "legend": legend_svg(),
    }


class _Pool:
    """Values that several steps share, each with its number."""

    def __init__(self) -> None:
        self.nodes: dict[NodeRecord, int] = {}
        self.pictures: dict[str, int] = {}

    def node(self, record: NodeRecord) -> int:
        return self.nodes.setdefault(record, len(self.nodes))

    def picture(self, svg: str) -> int:
        return self.pictures.setdefault(svg, len(self.pictures))


def _step(number: int, steps: Sequence[StepRecord], pool: _Pool) -> dict[str, Any]:
    step = steps[number]
    before = steps[number - 1] if number else None
    graph = overlay(step, before)
    said = finding(step, before)
    return {
        "name": step.name,
        "finding": f"{step.note} {said[0].upper()}{said[1:]}".strip(),
        "chip": chip_html(number + 1, step),
        "facts": facts_html(step, before),
        "lines": [
            [pool.node(record), theme.CLASS[graph.states[name]]]
            for name, record in graph.records.items()
        ],
        "folded": pool.picture(bare_step_svg(step, before, "changes")),
        "all": pool.picture(bare_step_svg(step, before, "all")),
    }


def _node(record: NodeRecord) -> list[Any]:
    """One node as a row; the order is that of `FIELDS` in stepper.js."""
    return [
        *(record.name, record.target, record.text, record.shape, record.dtype, record.stride),
        *(record.bytes, record.alias_of, record.mutates, record.users, record.layer),
        record.source,
    ]


def _packed(data: Mapping[str, Any]) -> str:
    """The data, compressed: pictures of one graph after each pass repeat themselves a lot.

    In base64 no name from a graph can end the script element that it stands in.
    """
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode("ascii")


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
    return f"'sha256-{digest}'"
