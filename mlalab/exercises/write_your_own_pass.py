"""Exercises of notebook 11: a replacement, a second variant, and reading why not."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch

from mlalab.exercises.norm_cache import NAME, fusion, traced, with_examples, with_replacement
from mlalab.explorer import sentence
from mlalab.layers.options import LayerOptions
from mlalab.passes.fusion import Fusion
from mlalab.shapes import MLAShape, preset
from mlalab.teach import Exercise
from mlalab.traces import Trace

_NOT_A_FUNCTION = "A function is expected here, and this is a {}."
_BLANK = "The blank `...` is still there, or the function returns nothing."


def _judge_replacement(attempt: Any) -> str | None:
    if not callable(attempt):
        return _NOT_A_FUNCTION.format(type(attempt).__name__)
    blank: list[bool] = []

    def watched(*tensors: Any, **strings: Any) -> Any:
        results = attempt(*tensors, **strings)
        blank.append(results is ... or results is None)
        return results

    made = with_replacement(watched)
    for tokens, cache in ((3, "fp8"), (0, "auto")):
        options = LayerOptions(dtype=torch.bfloat16, kv_cache_dtype=cache)  # type: ignore[arg-type]
        complaint = _complaint(made, f"{tokens} tokens, cache {cache}", tokens, options)
        if any(blank):
            return _BLANK
        if complaint:
            return complaint
    return None


def _judge_examples(attempt: Any) -> str | None:
    if not callable(attempt):
        return _NOT_A_FUNCTION.format(type(attempt).__name__)
    try:
        blank = attempt() is ... or attempt() is None
    except Exception as error:  # whatever a learner's code raises is the answer
        return f"It stopped with {sentence(error)}"
    if blank:
        return _BLANK
    made = with_examples(attempt)
    for dtype in (torch.float32, torch.bfloat16):
        label = f"a layer in {str(dtype).removeprefix('torch.')}"
        if complaint := _complaint(made, label, 3, LayerOptions(dtype=dtype)):
            return complaint
    return None


def _complaint(made: Fusion, label: str, tokens: int, options: LayerOptions) -> str | None:
    """Trace a layer with the fusion and say what is wrong with it, or None."""
    try:
        trace = traced(made, tokens=tokens, options=options).check()
    except Exception as error:  # whatever a learner's code raises is the answer
        return f"With {label}: it stopped with {sentence(error)}"
    step = trace[NAME]
    if not step.matches:
        return f"With {label}: no match, {step.refusals[0].reason}."
    wrong = [] if step.check is None else [diff for diff in step.check.diffs if not diff.equal]
    if wrong:
        first = wrong[0]
        return f"With {label}: it matched, and then {first.name} has other bits than before."
    return None


def other_eps() -> MLAShape:
    """Return the tiny layer's shape with a norm that another model might have."""
    shape = preset("tiny")
    assert isinstance(shape, MLAShape)
    return dataclasses.replace(shape, rms_norm_eps=1e-5)


@functools.cache
def _refused() -> Trace:
    return traced(fusion(), other_eps())


def _judge_why(attempt: Any) -> str | None:
    trace = _refused()
    (refusal,) = trace[NAME].refusals
    failed = refusal.reason.rsplit(" at ", 1)[-1]
    if attempt == failed:
        return None
    if attempt == refusal.node:
        return f"{attempt} is the anchor, where the search began; which node did it fail at?"
    names = [node.name for node in trace["aot"].nodes]
    if attempt in names:
        return f"The graph has a node {attempt}, but that is not where the match failed."
    return (
        f"The name of a node is expected, as a string, and the graph has none called {attempt!r}."
    )


EXERCISES = {
    "11.replacement": Exercise(
        _judge_replacement,
        "Same results in the same order, from an op whose order is another.",
    ),
    "11.variant": Exercise(
        _judge_examples,
        "One pattern function, two patterns: dtypes of the examples decide on the conversions.",
    ),
    "11.why": Exercise(
        _judge_why,
        "The constant is part of the arithmetic, so the second search compares it.",
    ),
}
