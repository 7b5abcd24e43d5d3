"""The clocks: one waits, the other only goes on."""

from __future__ import annotations

import time

from mlalab.serving.clock import VirtualClock, WallClock


def test_the_virtual_clock_goes_on_by_steps_and_waits():
    clock = VirtualClock(step_s=0.5)
    assert clock.now() == 0.0
    clock.step_done()
    clock.wait(2.0)
    assert clock.now() == 2.5


def test_a_wait_too_short_for_a_float_still_ends():
    clock = VirtualClock()
    clock.wait(1e6)
    clock.wait(1e-20)
    assert clock.now() > 1e6


def test_the_wall_clock_waits_on_the_wall():
    clock = WallClock()
    before, start = time.perf_counter(), clock.now()
    clock.step_done()
    clock.wait(0.01)
    assert clock.now() - start >= 0.01
    assert time.perf_counter() - before >= 0.01
