"""What FP8 does to the values of a tensor: the error of each, and what the wrong format reads.

`stored` is a tensor of FP8 or of raw bytes, of any shape; raw bytes are read in the format of their
device unless one is named. `source` is what was quantised, of the same shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mlalab.errors import InputError
from mlalab.fp8 import Format, format_of
from mlalab_kernels.numerics import FP8_DTYPES, quantize


def read(stored: Tensor, fmt: Format | None = None) -> Tensor:
    """Return the values of the bytes, fp32, without any scale."""
    fmt = fmt or format_of(stored)
    return stored.view(torch.uint8).view(fmt.dtype).to(torch.float32)


def store(source: Tensor, scale: float | Tensor, fmt: Format) -> Tensor:
    """Quantise as the cache does, and return the bytes, `uint8`.

    Raises:
        InputError: a format that no cache is in.
    """
    if fmt.dtype not in FP8_DTYPES:
        raise InputError(f"No cache is in {fmt}; store in e4m3fn or e4m3fnuz.")
    scale = torch.as_tensor(scale, dtype=torch.float32, device=source.device)
    return quantize(source, scale, fmt.dtype).view(torch.uint8)


def scale_of(scale: float | Tensor) -> float:
    """Return a dequantisation scale as a number.

    Raises:
        InputError: it is not positive and finite.
    """
    factor = float(scale)
    if not 0 < factor < math.inf:
        raise InputError(f"A scale is a positive number, got {factor:g}; pass that of the bytes.")
    return factor


def relative_errors(
    stored: Tensor, source: Tensor, scale: float | Tensor = 1.0, fmt: Format | None = None
) -> Tensor:
    """Return |read × scale − source| / |source|, fp32; 0 where both are 0 or both NaN.

    Raises:
        InputError: two shapes.
    """
    if stored.shape != source.shape:
        raise InputError(
            f"The bytes are {list(stored.shape)} and their source is {list(source.shape)}; pass "
            f"the rows that were quantised."
        )
    wide = source.to(torch.float32)
    found = read(stored, fmt) * torch.as_tensor(scale, dtype=torch.float32, device=stored.device)
    same = (found == wide) | (found.isnan() & wide.isnan())
    return torch.where(same, 0.0, (found - wide).abs() / wide.abs())


@dataclass(frozen=True, slots=True)
class Errors:
    """What quantising did to a tensor. `worst` and `mean` are relative, over `normal` values.

    Args:
        count: of all values.
        exact: read back as they were.
        normal: neither saturated nor below the format's normal range, where a relative error has
            no bound.
        lost: became 0 without being 0.
    """

    count: int
    exact: int
    normal: int
    saturated: int
    lost: int
    nan: int
    worst: float
    mean: float


def errors(
    stored: Tensor, source: Tensor, scale: float | Tensor = 1.0, fmt: Format | None = None
) -> Errors:
    """Summarise the error of each value.

    Raises:
        InputError: two shapes.
    """
    fmt = fmt or format_of(stored)
    relative = relative_errors(stored, source, scale, fmt)
    magnitude = read(stored, fmt).abs()
    scaled = source.to(torch.float32).abs() / torch.as_tensor(scale, device=source.device)
    saturated = (magnitude == fmt.largest) & (scaled > fmt.largest)
    normal = (scaled >= fmt.smallest * 2**fmt.mantissa_bits) & (scaled <= fmt.largest)
    inside = relative[normal]
    return Errors(
        count=stored.numel(),
        exact=int((relative == 0).sum()),
        normal=int(normal.sum()),
        saturated=int(saturated.sum()),
        lost=int(((magnitude == 0) & (scaled > 0)).sum()),
        nan=int(magnitude.isnan().sum()),
        worst=float(inside.max()) if inside.numel() else 0.0,
        mean=float(inside.mean()) if inside.numel() else 0.0,
    )


_COUNTS = ("exact", "normal", "saturated", "lost", "nan")


def error_table(rows: Mapping[str, Errors]) -> str:
    """Lay summaries out as a table, one line each."""
    width = max([len(name) for name in rows], default=0)
    head = (*_COUNTS, "worst", "mean")
    lines = [" " * width + "".join(f"{name:>11}" for name in head)]
    for name, row in rows.items():
        counts = "".join(f"{getattr(row, count):>11}" for count in _COUNTS)
        lines.append(f"{name:<{width}}{counts}{row.worst:>11.2%}{row.mean:>11.2%}")
    return "\n".join(lines)


def reread_table(stored: Tensor, written: Format, reader: Format) -> str:
    """Count what bytes written in one format become when they are read in another."""
    meant, found = read(stored, written).flatten(), read(stored, reader).flatten()
    ratio = found / meant
    groups = {
        "NaN read as a number": meant.isnan() & ~found.isnan(),
        "a number read as NaN": ~meant.isnan() & found.isnan(),
        "as it was": (meant == found) | (meant.isnan() & found.isnan()),
    }
    seen = torch.stack(list(groups.values())).any(0)
    for value in ratio[~seen].unique().tolist():
        groups[f"× {value:g}"] = ~seen & (ratio == value)
    return "\n".join(f"{name:<20} {int(at.sum()):>8}" for name, at in groups.items() if at.any())
