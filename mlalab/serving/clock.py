"""Time for a serving run: the wall's, or one that goes on by a fixed amount a step."""

from __future__ import annotations

import math
import time
from typing import Protocol


class Clock(Protocol):
    """What a serving run asks of a clock."""

    def now(self) -> float:
        """Return the time in seconds."""

    def wait(self, seconds: float) -> None:
        """Return when this much time has passed."""

    def step_done(self) -> None:
        """Take note that a step was run."""


class WallClock:
    """The time that passes."""

    def now(self) -> float:
        """Return the time in seconds, from an origin of its own."""
        return time.perf_counter()

    def wait(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)

    def step_done(self) -> None:
        """Do nothing: the step took its time."""


class VirtualClock:
    """A clock by which each step takes equally long, so that a trace always makes the same batches.

    Args:
        step_s: seconds of a step.
    """

    def __init__(self, step_s: float = 0.01) -> None:
        self.step_s, self._now = step_s, 0.0

    def now(self) -> float:
        """Return the time in seconds since the clock was made."""
        return self._now

    def wait(self, seconds: float) -> None:
        """Let the time pass at once; it always goes on, however short the wait."""
        self._now = max(self._now + seconds, math.nextafter(self._now, math.inf))

    def step_done(self) -> None:
        """Go on by one step."""
        self._now += self.step_s
