"""Whether two forms of a model choose the same tokens, where rounding alone may tip a choice.

One form is told the tokens of the other, whatever it would choose itself, so that both see the same
text at every step and one choice tipped by rounding changes no later one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from mlalab.serving.runner import ModelRunner
from mlalab.serving.steps import Step

TOLERANCE: Mapping[torch.dtype, float] = {
    torch.float32: 1e-3,
    torch.float16: 0.1,
    torch.bfloat16: 0.1,
}
"""dtype → how far below the best a token may be and still be told apart by rounding only, in
standard deviations of the logits. A model that is wrong is off by several."""


@dataclass(slots=True)
class Agreement:
    """How the choices of one form compare with those it was told.

    Args:
        choices: tokens that were chosen.
        tipped: choices that differ within the tolerance.
        widest: the widest gap of those, in standard deviations of the logits.
        wrong: (request, place of the token) of each choice that differs beyond it.
    """

    choices: int = 0
    tipped: int = 0
    widest: float = 0.0
    wrong: list[tuple[int, int]] = field(default_factory=list)


class ToldRunner:
    """Runs steps like `runner`, compares its choices with `told` and hands those out instead.

    Args:
        told: the tokens of each request of the trace, by its id.
        tolerance: see `TOLERANCE`.
    """

    def __init__(
        self, runner: ModelRunner, told: Sequence[Sequence[int]], tolerance: float
    ) -> None:
        self.runner, self.told, self.tolerance = runner, told, tolerance
        self.agreement = Agreement()

    def __call__(self, step: Step) -> list[int]:
        """Run the step and return the tokens that were told; waits for the device."""
        logits_SW = self.runner.logits(step).float()
        requests = [step.requests[place] for place in step.sampled]
        places = [len(request.outputs) for request in requests]
        told = [self.told[r.id][place] for r, place in zip(requests, places, strict=True)]
        if told:
            index = torch.tensor(told, device=logits_SW.device)[:, None]
            gap_S = (logits_SW.amax(-1) - logits_SW.gather(1, index)[:, 0]) / logits_SW.std(-1)
            self._note([r.id for r in requests], places, gap_S.tolist())
        return told

    def _note(self, requests: Sequence[int], places: Sequence[int], gaps: Sequence[float]) -> None:
        found = self.agreement
        found.choices += len(gaps)
        for request, place, gap in zip(requests, places, gaps, strict=True):
            # NaN is beyond every tolerance.
            if not gap <= self.tolerance:
                found.wrong.append((request, place))
            elif gap > 0:
                found.tipped, found.widest = found.tipped + 1, max(found.widest, gap)
