"""Count what one decode step of a layer starts: in eager mode, compiled, exposed, with passes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from torch._inductor.exc import InductorError
from torch._inductor.graph import GraphLowering

from mlalab.compile.config import MLA_FUSED, UNFUSED, PassConfig
from mlalab.lab import record
from mlalab.layers.options import LayerOptions
from mlalab.records import NodeRecord, StepRecord
from mlalab.shapes import AttentionShape
from mlalab.viz.cost import node_bytes
from mlalab.viz.ladder import Calls, Ladder
from mlalab.workbench import Workbench, build

_PRODUCTS = ("linear", "bmm", "aten.mm", "aten.bmm")
# How the code that Inductor writes starts what, on a CPU or a GPU.
_STARTS: Mapping[str, str] = {
    "plain": r"^ +(\w+ = )?(torch\.ops\.)?aten\.",
    "generated": r"^ +(cpp_fused_\w+\(|\w+\.run\()",
    "library": r"^ +(\w+ = )?extern_kernels\.",
    "ours": r"^ +(\w+ = )?torch\.ops\.mlalab\.",
}


def ladder(
    model: str | Path | AttentionShape = "tiny",
    *,
    tokens: int = 5,
    options: LayerOptions | None = None,
) -> Ladder:
    """Return the calls of a decode step of one MLA layer: eager, opaque, exposed, with passes.

    Compiled code is counted as it is written, for the layer's device; it is not run. What the
    opaque attention op does inside counts as in eager mode, since no compiler sees it.

    Args:
        model: a preset's name, a Hugging Face directory, or a shape.
        tokens: decode requests of one token each.
        options: how layers are built, but for `exposed`; by default bfloat16 and an FP8 cache.

    Raises:
        ConfigError, CheckpointError: the model or an option cannot be used.
    """
    options = options or LayerOptions(dtype=torch.bfloat16, kv_cache_dtype="fp8")
    opaque, exposed = (
        build(model, tokens=tokens, options=replace(options, exposed=x)) for x in (False, True)
    )
    # Both faces do the same; what only one of them shows is what the other's attention op hides.
    shown, seen = (
        calls_of(record(bench, config=UNFUSED, keep_graphs=False)[0]) for bench in (opaque, exposed)
    )
    hidden = seen - shown
    rungs = [
        ("eager", seen),
        ("opaque", calls_in(written_code(opaque, UNFUSED)) + hidden),
        ("exposed", calls_in(written_code(exposed, UNFUSED))),
        ("exposed + passes", calls_in(written_code(exposed, MLA_FUSED))),
    ]
    return Ladder(f"{model}: one layer, {tokens} decode requests", rungs)


def calls_of(step: StepRecord) -> Calls:
    """Return the calls of a graph, each node that does work being one."""
    working = node_bytes(step.nodes)
    counted = Counter(_kind(node) for node in step.nodes if node.name in working)
    return Calls(**counted)


def _kind(node: NodeRecord) -> str:
    if node.target in _PRODUCTS:
        return "library"
    return "ours" if node.target.startswith("mlalab.") else "plain"


def calls_in(code: str) -> Calls:
    """Return the calls that code of Inductor makes."""
    body = code[code.index("def call(") :]
    return Calls(**{kind: len(re.findall(start, body, re.M)) for kind, start in _STARTS.items()})


def written_code(bench: Workbench, passes: PassConfig) -> str:
    """Return the code that Inductor writes for what is on the bench; it is not compiled further."""
    written: list[str] = []

    def stop(code: str) -> None:
        written.append(code)
        raise _WrittenError

    try:
        with mock.patch.object(GraphLowering, "save_output_code", stop):
            record(bench, config=passes, mode="inductor", keep_graphs=False)
    except InductorError:
        if not written:
            raise
    return written[0]


class _WrittenError(Exception):
    """Stops a compilation once the code is there."""
