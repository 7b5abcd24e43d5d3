"""How a library's kernel declines a call that it does not serve."""

from __future__ import annotations


class RefusedError(RuntimeError):
    """A provider has no kernel for these arguments; raised before anything is written.

    It may depend only on what the host knows (shapes, dtypes, strides, whether a graph is being
    captured), so that a call which is captured and its replay are served alike.
    """
