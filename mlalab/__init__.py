"""mlalab: a lab bench for fusing the decode path of multi-head latent attention.

    import mlalab
    trace = mlalab.trace("deepseek-v2-lite", tokens=8).check()
    print(trace)

Names below are loaded when first used: the pattern matcher, plots and widgets cost seconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mlalab.compile.capture import LabBackend as LabBackend
    from mlalab.compile.config import PassConfig as PassConfig
    from mlalab.compile.cudagraph import CudaGraphs as CudaGraphs
    from mlalab.compile.dispatch import CompiledModel as CompiledModel
    from mlalab.compile.settings import CompileConfig as CompileConfig
    from mlalab.context import ForwardContext as ForwardContext
    from mlalab.context import forward_context as forward_context
    from mlalab.context import make_batch as make_batch
    from mlalab.env import report as report
    from mlalab.explorer import explore as explore
    from mlalab.lab import trace as trace
    from mlalab.layers.gqa import GQAAttention as GQAAttention
    from mlalab.layers.loading import load_attention as load_attention
    from mlalab.layers.mla import MLAAttention as MLAAttention
    from mlalab.layers.mla import MLAOptions as MLAOptions
    from mlalab.layers.options import LayerOptions as LayerOptions
    from mlalab.shapes import GQAShape as GQAShape
    from mlalab.shapes import MLAShape as MLAShape
    from mlalab.shapes import preset as preset
    from mlalab.sweeps.sweep import sweep as sweep
    from mlalab.traces import Trace as Trace
    from mlalab.viz.bits import inspect_fp8 as inspect_fp8
    from mlalab.viz.show import show as show
    from mlalab.workbench import build as build

_HOME = {
    "CompileConfig": "mlalab.compile.settings",
    "CompiledModel": "mlalab.compile.dispatch",
    "CudaGraphs": "mlalab.compile.cudagraph",
    "ForwardContext": "mlalab.context",
    "GQAAttention": "mlalab.layers.gqa",
    "GQAShape": "mlalab.shapes",
    "LabBackend": "mlalab.compile.capture",
    "LayerOptions": "mlalab.layers.options",
    "MLAAttention": "mlalab.layers.mla",
    "MLAOptions": "mlalab.layers.mla",
    "MLAShape": "mlalab.shapes",
    "PassConfig": "mlalab.compile.config",
    "Trace": "mlalab.traces",
    "build": "mlalab.workbench",
    "explore": "mlalab.explorer",
    "forward_context": "mlalab.context",
    "inspect_fp8": "mlalab.viz.bits",
    "load_attention": "mlalab.layers.loading",
    "make_batch": "mlalab.context",
    "preset": "mlalab.shapes",
    "report": "mlalab.env",
    "show": "mlalab.viz.show",
    "sweep": "mlalab.sweeps.sweep",
    "trace": "mlalab.lab",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mlalab' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
