"""One method, two faces: an op of its own in the graph, or a plain call inside an opaque op."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def wrap_if_exposed(op: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Have a layer's method be called as `torch.ops.mlalab.<op>` where the layer is exposed.

    The method takes tensors. Whatever else a caller names are dummy dependencies: only an op in a
    graph needs them. The op gets the tensors, the layer's name and the dependencies, and does what
    `inlined` returns.
    """

    def wrap(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(layer: Any, *tensors: Tensor | None, **dependencies: Tensor) -> Any:
            if layer.options.exposed:
                exposed = getattr(torch.ops.mlalab, op).default
                return exposed(*tensors, layer.layer_name, **dependencies)
            return method(layer, *tensors)

        return call

    return wrap


def inlined(layer: Any, method: str) -> Callable[..., Any]:
    """Return what a wrapped method of `layer` does itself, whichever face the layer shows."""
    return functools.partial(getattr(type(layer), method).__wrapped__, layer)
