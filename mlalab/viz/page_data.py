"""What the stepper shows of a trace, as plain data: pictures, facts and the printed graph.

The exported page and the notebook widget carry the same data and run the same script on it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from mlalab.records import NodeRecord, StepRecord
from mlalab.viz import theme
from mlalab.viz._shades import Shade, shades
from mlalab.viz._why_panel import why_style
from mlalab.viz.alt import finding
from mlalab.viz.cost import Measured, cost_change
from mlalab.viz.facts import chip_html, facts_html
from mlalab.viz.folding import View, focus, fold
from mlalab.viz.overlay import Overlay, after_side, before_side, overlay
from mlalab.viz.svg import bare_svg, legend_svg
from mlalab.viz.why import bare_why_svg, refused_patterns, why_head

MOST_DRAWN = 1500
"""A graph of more nodes is drawn folded only: whole, a browser takes seconds and shows a thread."""

_SCRIPTS = ("stepper_parts.js", "stepper_shade.js", "stepper.js")


def script() -> str:
    """The stepper's modules as one: each uses only what stands in those before it."""
    return "\n".join(static_text(name) for name in _SCRIPTS)


def static_text(name: str) -> str:
    """A file from `mlalab/viz/static`."""
    return (files("mlalab.viz") / "static" / name).read_text(encoding="utf-8")


def style() -> str:
    """The style of the pictures and of what is around them."""
    return theme.style() + why_style() + static_text("stepper.css") + static_text("why.css")


def packed(data: Mapping[str, Any]) -> bytes:
    """The data as compressed JSON: pictures of one graph after each pass repeat themselves."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return zlib.compress(text.encode(), 9)


def trace_data(
    title: str,
    steps: Sequence[StepRecord],
    meta: Mapping[str, str],
    measured: Measured | None = None,
) -> dict[str, Any]:
    """What `mount` in stepper.js draws; equal nodes and equal pictures are stored once."""
    drawing = _Drawing(steps, shades(steps, measured))
    drawn = [drawing.step(number) for number in range(len(steps))]
    return {
        "title": title,
        "meta": list(meta.items()),
        "steps": drawn,
        "nodes": [_node(record) for record in drawing.nodes],
        "pictures": list(drawing.pictures),
        "legend": legend_svg(),
        "shades": [[s.name, s.field, s.unit, s.bounds, s.levels] for s in drawing.shades],
    }


class _Drawing:
    """The steps of a trace, with the nodes and pictures that they share numbered."""

    def __init__(self, steps: Sequence[StepRecord], shades: Sequence[Shade]) -> None:
        self.steps, self.shades = steps, shades
        self.nodes: dict[NodeRecord, int] = {}
        self.pictures: dict[str, int] = {}
        self.whole = max((len(step.nodes) for step in steps), default=0) <= MOST_DRAWN

    def step(self, number: int) -> dict[str, Any]:
        step = self.steps[number]
        before = self.steps[number - 1] if number else None
        graph = overlay(step, before)
        said = finding(step, before)
        values = self._overlay_values(number)
        return {
            "name": step.name,
            "finding": f"{step.note} {said[0].upper()}{said[1:]}".strip(),
            "cost": cost_change(step, before),
            "chip": chip_html(number + 1, step),
            "facts": facts_html(step, before),
            "whys": self._whys(step),
            "retraced": step.retraced,
            "lines": [
                [
                    self.nodes.setdefault(record, len(self.nodes)),
                    theme.CLASS[graph.states[name]],
                    *(of.get(name, 0) for of in values),
                ]
                for name, record in graph.records.items()
            ],
            "folded": [[self._panel("", fold(graph), values)], self._sides(number, whole=False)],
            "all": [[self._panel("", fold(graph, "all"), values)], self._sides(number, whole=True)]
            if self.whole
            else None,
        }

    def _sides(self, number: int, *, whole: bool) -> list[list[Any]]:
        """The graph before and the one after, or the latter alone in the first step."""
        after = self.steps[number]
        if not number:
            view = _side(after_side(after, after), after, whole=whole)
            return [self._panel(_head("", after), view, self._values(number))]
        before = self.steps[number - 1]
        graphs = before_side(before, after), after_side(before, after)
        old, new = (_side(graph, after, whole=whole) for graph in graphs)
        return [
            self._panel(_head("before: ", before), old, self._values(number - 1)),
            self._panel(_head("after: ", after), new, self._values(number)),
        ]

    def _whys(self, step: StepRecord) -> list[list[Any]]:
        """A heading and the number of a picture for each pattern that was refused."""
        return [
            [why_head(pattern, refusal), self._picture(bare_why_svg(pattern, refusal))]
            for pattern, refusal, _ in refused_patterns(step)
        ]

    def _picture(self, svg: str) -> int:
        return self.pictures.setdefault(svg, len(self.pictures))

    def _panel(self, head: str, view: View, values: Sequence[Mapping[str, float]]) -> list[Any]:
        """A heading, the number of a picture, and what each box and node of it is shaded by."""
        boxes = {
            node.key: [sum(of.get(name, 0) for name in node.layers.members) for of in values]
            for node in view.nodes
            if node.layers is not None
        }
        return [head, self._picture(bare_svg(view)), boxes]

    def _values(self, number: int) -> list[Mapping[str, float]]:
        return [shade.values[number] for shade in self.shades]

    def _overlay_values(self, number: int) -> list[Mapping[str, float]]:
        """Values of the step's nodes; an erased node keeps the one that it had."""
        if not number or self.steps[number].retraced:
            return self._values(number)
        erased = set(self.steps[number].erased)
        both = zip(self._values(number - 1), self._values(number), strict=True)
        return [{n: v for n, v in old.items() if n in erased} | {**new} for old, new in both]


def _side(graph: Overlay, after: StepRecord, *, whole: bool) -> View:
    """What stands side by side: all of a graph, or what changed with its neighbours."""
    if whole:
        return fold(graph, "all")
    return focus(fold(graph), {*after.created, *after.erased, *after.rewired})


def _head(word: str, step: StepRecord) -> str:
    return f"{word}{step.name}, {len(step.nodes)} nodes"


def _node(record: NodeRecord) -> list[Any]:
    """One node as a row; the order is that of `FIELDS` in stepper_parts.js."""
    return [
        *(record.name, record.target, record.text, record.shape, record.dtype, record.stride),
        *(record.bytes, record.alias_of, record.mutates, record.users, record.layer),
        record.source,
    ]
