"""Kernels and results to bench with, on a machine that has no GPU."""

from __future__ import annotations

import torch

from mlalab import kernels
from mlalab.bench.cells import CellResult, CellSpec, Parity, Spread
from mlalab.bench.report import Limits

CPU = torch.device("cpu")
TINY = {"heads": 2, "nope": 8, "rope": 4, "latent": 16}
RIGHT = Parity(0, 0, 1, 100_000, 1)
LIMITS = Limits(4.0e12, {"torch": 1.5, "triton": 2.0}, 50 << 20)


def reference_for(op, provider):
    """Stand for `load`: the reference under any provider's name."""
    return kernels._load(op, "reference")


def broken_for(op, provider):
    """Stand for `load`: a kernel that rotates the other way, and a whole reference."""
    kernel = kernels._load(op, "reference")
    if provider == "reference":
        return kernel

    def damaged(*arguments, **more):
        return kernel(*arguments, **{**more, "is_neox": not more["is_neox"]})

    return damaged


def result_of(tokens=8, parity=RIGHT, times=True, **more):
    """Return a result with figures that are easy to check."""
    spec = CellSpec(heads=16, tokens=tokens)
    names = ("plain", "inductor", "two", "one", "direct", "copy")
    figures = zip(names, (40.0, 9.0, 6.0, 3.0, 2.5, 2.0), strict=True)
    taken = {name: Spread(x, x - 0.1, x + 0.1, 20) for name, x in figures} if times else {}
    return CellResult(spec, 45, {"two": RIGHT, "one": parity}, taken, **more)
