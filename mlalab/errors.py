"""One exception class per kind of problem, and the one warning.

Every message says what is wrong, where, and what to try, in one sentence that the
command line can print as it is.
"""

from __future__ import annotations


class MlalabError(Exception):
    """Base of every error that mlalab raises on purpose."""


class ConfigError(MlalabError):
    """A shape, preset, flag or option that cannot be used as given."""


class CheckpointError(MlalabError):
    """A model directory that cannot be read: missing file or tensor, wrong shape, unknown kind."""


class ContextError(MlalabError):
    """An op ran without the forward context it needs, or with one that does not fit."""


class InputError(MlalabError):
    """A tensor argument that breaks an op's contract."""


class TraceError(MlalabError):
    """A trace that cannot be recorded, checked, saved or loaded."""


class VerifyError(MlalabError):
    """A graph that a pass left malformed: found by the driver, never meant to reach a user."""


class ServingError(MlalabError):
    """A step of a serving run that failed, or a run that lost a request or a cache block."""


class PassWarning(UserWarning):
    """A pass that was asked for and does not run, or ran and found nothing to fuse."""


def first_line(error: BaseException) -> str:
    """Return what was raised in one line, without a full stop: `ValueError: no such node`."""
    lines = (line.strip() for line in str(error).splitlines())
    said = next((line for line in lines if line), "no message")
    return f"{type(error).__name__}: {said}".removesuffix(".")
