"""What is written in each box of the picture, and how big the box must be for it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from mlalab.records import NodeRecord
from mlalab.viz.folding import ShownNode
from mlalab.viz.layout import Box
from mlalab.viz.measure import elide, text_width, wrap
from mlalab.viz.theme import SUB_SIZE, SYMBOL, TITLE_SIZE

Kind = Literal["op", "custom", "input", "layers"]

_PAD = 12
_TITLE_LINE = 15
_SUB_LINE = 13
_WRAP = 24
_PILL_HEIGHT = 22
_PILL_NAME = 26
_BUILT_IN = ("aten.", "prims.")
_WRAPPED = re.compile(r"auto_functionalized\((.+)\)")
_ATTRIBUTE = re.compile(r"l_[a-z]+_(?:modules|parameters|buffers)_", re.IGNORECASE)
_ACCESS = re.compile(r"_(?:modules|parameters|buffers)_")
_DTYPES = {
    "bfloat16": "bf16",
    "float16": "f16",
    "float32": "f32",
    "float64": "f64",
    "int64": "i64",
    "int32": "i32",
    "uint8": "u8",
}


@dataclass(frozen=True, slots=True)
class Label:
    """The text of a box and the room it takes."""

    kind: Kind
    titles: tuple[str, ...]
    subs: tuple[str, ...]
    width: int
    height: int

    def box(self, key: str) -> Box:
        """The box to lay out."""
        return Box(key, self.width, self.height)


def label(node: ShownNode) -> Label:
    """The label of one box."""
    record = node.record
    if record is None:
        return _layers_label(node)
    if record.op in ("placeholder", "get_attr") and node.state == "same":
        return _pill(elide(input_name(record.name), _PILL_NAME), shape_text(record))
    if record.op == "output":
        return _pill("output", "")
    return _op_label(record)


def input_name(name: str) -> str:
    """The name of an input without Dynamo's spelling of attribute access.

    `l_self_modules_layers_modules_0_parameters_weight_` becomes `layers.0.weight`.
    """
    if not (path := _ATTRIBUTE.match(name)):
        return name
    return _ACCESS.sub(".", name[path.end() :]).removesuffix("_")


def shape_text(record: NodeRecord) -> str:
    """Shape and dtype in a few characters: `5×4×48 bf16`; empty for what is not a tensor."""
    if record.shape is None:
        return ""
    dims = "×".join(map(str, record.shape)) or "scalar"
    dtype = record.dtype or ""
    return f"{dims} {_DTYPES.get(dtype, dtype)}".strip()


def _op_label(record: NodeRecord) -> Label:
    """Op name with the number that FX gave this node; the node's name too where it differs."""
    if record.op not in ("call_function", "call_method") or record.target == record.op:
        return _label("op", wrap(record.name, _WRAP), [shape_text(record)])
    wrapped = _WRAPPED.fullmatch(record.target)
    target = wrapped[1] if wrapped else record.target
    custom = "." in target and not target.startswith(_BUILT_IN)
    stem = target.rpartition(".")[2]
    suffix = r"(?:_default)?(_\d+)?" if custom else r"(_\d+)?"
    numbered = re.fullmatch(re.escape(stem) + suffix, record.name)
    title = (target if custom else stem) + ((numbered[1] or "") if numbered else "")
    subs = [" · ".join(filter(None, ("" if numbered else record.name, shape_text(record))))]
    return _label("custom" if custom else "op", wrap(title, _WRAP), subs)


def _layers_label(node: ShownNode) -> Label:
    box = node.layers
    assert box is not None
    names = [elide(box.layers[0], 34)]
    if len(box.layers) > 1:
        names.append(f"to {elide(box.layers[-1], 31)}")
    changed = " ".join(f"{SYMBOL[state]}{count}" for state, count in box.changes)
    subs = [*names, f"{len(box.members)} nodes", changed]
    return _label("layers", [f"×{len(box.layers)}  like the layer drawn"], subs)


def _label(kind: Kind, titles: list[str], subs: list[str]) -> Label:
    subs = [sub for sub in subs if sub]
    widths = [
        *(text_width(text, TITLE_SIZE, bold=True) for text in titles),
        *(text_width(text, SUB_SIZE) for text in subs),
    ]
    height = len(titles) * _TITLE_LINE + len(subs) * _SUB_LINE + _PAD
    return Label(kind, tuple(titles), tuple(subs), _even(max(widths) + 2 * _PAD), _even(height))


def _pill(name: str, shape: str) -> Label:
    """One low line: inputs are many and say little."""
    width = text_width(name, SUB_SIZE, bold=True) + text_width(f"  {shape}", SUB_SIZE)
    return Label("input", (name,), (shape,) if shape else (), _even(width + 2 * _PAD), _PILL_HEIGHT)


def _even(size: float) -> int:
    """Rounded up to an even number, so that the centre of a box is a whole pixel."""
    return 2 * math.ceil(size / 2)


def tooltip(record: NodeRecord) -> str:
    """Everything known of a node, one fact per line."""
    facts = [
        ("shape", None if record.shape is None else list(record.shape)),
        ("dtype", record.dtype),
        ("stride", None if record.stride is None else list(record.stride)),
        ("bytes", record.bytes),
        ("alias of", record.alias_of),
        ("mutates", ", ".join(record.mutates)),
        ("users", record.users),
        ("layer", record.layer),
        ("source", record.source),
    ]
    known = (f"{name}: {value}" for name, value in facts if value not in (None, ""))
    return "\n".join([record.text, *known])
