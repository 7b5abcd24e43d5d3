"""What the stepper can shade nodes by: modelled bytes, and measured times where there are any."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlalab.records import StepRecord
from mlalab.viz.cost import Measured, bytes_text, node_bytes

_LEVELS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Shade:
    """One quantity of nodes, with the same scale in every step."""

    name: str
    """Shown in the list to choose from and in the legend: what it is, and how it is known."""
    field: str
    """Shown beside the value of one node."""
    unit: str
    bounds: tuple[float, ...]
    """Where the next darker level begins, rising."""
    levels: tuple[str, ...]
    """What each level means, one more than the bounds."""
    values: tuple[Mapping[str, float], ...]
    """By step, the value of each node that has one above zero."""


def shades(steps: Sequence[StepRecord], measured: Measured | None) -> list[Shade]:
    """The quantities that the nodes of these steps have.

    Raises:
        TraceError: times of steps or nodes that are not these.
    """
    moved = [{n: count for n, count in node_bytes(step.nodes).items() if count} for step in steps]
    found = [_shade("bytes moved, modelled", "modelled", "B", moved)]
    if measured is not None:
        measured.require_of(steps)
        taken = [measured.us.get(step.name, {}) for step in steps]
        times = [{name: us for name, us in of.items() if us} for of in taken]
        found.append(_shade(f"µs, {measured.label}", "measured", "µs", times))
    return found


def _shade(name: str, field: str, unit: str, values: Sequence[Mapping[str, float]]) -> Shade:
    """A scale in powers of ten that ends at the largest value of all."""
    most = max((value for step in values for value in step.values()), default=1.0)
    top = math.floor(math.log10(most)) if most > 0 else 0
    bounds = tuple(10.0 ** (top - i) for i in reversed(range(_LEVELS - 1)))
    said = [_round(bytes_text(b)) if unit == "B" else f"{b:g} {unit}" for b in bounds]
    levels = (f"under {said[0]}", *(f"from {bound}" for bound in said))
    return Shade(
        name=name, field=field, unit=unit, bounds=bounds, levels=levels, values=tuple(values)
    )


def _round(text: str) -> str:
    """A power of ten without the zeros that only show precision: `10.0 kB` is `10 kB`."""
    return re.sub(r"\.0+", "", text)
