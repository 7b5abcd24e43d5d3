"""The loop of a server: take in what has arrived, run a step, hand out its tokens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlalab.errors import ServingError, first_line
from mlalab.serving.clock import Clock, WallClock
from mlalab.serving.metrics import RequestTimes
from mlalab.serving.requests import RequestSpec, prompt_tokens
from mlalab.serving.scheduler import Scheduler
from mlalab.serving.steps import Request, Step

RunStep = Callable[[Step], Sequence[int]]
"""Runs a step and returns a token for each request of `step.sampled`."""


@dataclass(slots=True)
class StepsTaken:
    """How many steps there were of one kind, their tokens, and the seconds that they took."""

    count: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Result:
    """A trace that was served.

    Args:
        tokens: what was generated for each request of the trace.
        times: of each request, in seconds since the start of the trace.
        steps: what was run of each kind of step.
    """

    tokens: tuple[tuple[int, ...], ...]
    times: tuple[RequestTimes, ...]
    steps: dict[str, StepsTaken]


class Engine:
    """Serves requests, one step after the other.

    Args:
        run_step: usually a `ModelRunner`.
        vocab_size: how many tokens prompts are drawn from.
        seed: of the prompts.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        run_step: RunStep,
        *,
        vocab_size: int,
        seed: int = 0,
        clock: Clock | None = None,
    ) -> None:
        self.scheduler, self.run_step = scheduler, run_step
        self.vocab_size, self.seed = vocab_size, seed
        self.clock: Clock = clock or WallClock()
        self.steps: defaultdict[str, StepsTaken] = defaultdict(StepsTaken)

    def step(self) -> tuple[Request, ...]:
        """Run one step and return the requests that got a token from it.

        Raises:
            ServingError: the model failed; no request has moved on, so that the step can be run
                again, and requests be cancelled.
        """
        step = self.scheduler.schedule()
        if not step.requests:
            return ()
        start = self.clock.now()
        try:
            tokens = self.run_step(step)
        except Exception as error:
            decodes = step.num_decodes
            raise ServingError(
                f"A {step.kind} step of {step.num_tokens} tokens ({decodes} requests that decode, "
                f"{len(step.requests) - decodes} prompts) failed with {first_line(error)}; no "
                f"request moved on, so run it again or cancel requests."
            ) from error
        self.clock.step_done()
        taken = self.steps[step.kind]
        taken.count += 1
        taken.tokens += step.num_tokens
        taken.seconds += self.clock.now() - start
        return self.scheduler.complete(step, tokens)

    def run(self, trace: Sequence[RequestSpec]) -> Result:
        """Serve a whole trace, whose requests are in the order in which they arrive.

        Whatever ends it, no request stays behind and every block is free again.

        Raises:
            InputError: a request that could never run; nothing was run then.
            ServingError: a step failed, a request or block was lost, or there are requests already.
        """
        if self.scheduler.busy:
            raise ServingError("Requests are being served already; finish or abort() them first.")
        for spec in trace:
            self.scheduler.check(spec.prompt_len, spec.output_len)
        prompts = [prompt_tokens(s, i, self.vocab_size, self.seed) for i, s in enumerate(trace)]
        self.steps = defaultdict(StepsTaken)
        try:
            requests, token_s = self._serve(trace, prompts)
        finally:
            self.scheduler.abort()
        self._check_nothing_lost(trace, requests)
        times = [
            RequestTimes(spec.arrival_s, tuple(token_s[request.id]))
            for spec, request in zip(trace, requests, strict=True)
        ]
        return Result(tuple(r.outputs for r in requests), tuple(times), dict(self.steps))

    def _serve(
        self, trace: Sequence[RequestSpec], prompts: Sequence[Sequence[int]]
    ) -> tuple[list[Request], dict[int, list[float]]]:
        """Return the requests of the trace, served, and when each token came, by request."""
        requests: list[Request] = []
        token_s: dict[int, list[float]] = {}
        start = self.clock.now()
        while len(requests) < len(trace) or self.scheduler.busy:
            now = self.clock.now() - start
            while len(requests) < len(trace) and trace[len(requests)].arrival_s <= now:
                index = len(requests)
                request = self.scheduler.submit(prompts[index], trace[index].output_len)
                requests.append(request)
                token_s[request.id] = []
            if not self.scheduler.busy:
                self.clock.wait(trace[len(requests)].arrival_s - now)
                continue
            told = self.step()
            now = self.clock.now() - start
            for request in told:
                token_s[request.id].append(now)
        return requests, token_s

    def _check_nothing_lost(
        self, trace: Sequence[RequestSpec], requests: Sequence[Request]
    ) -> None:
        pool = self.scheduler.pool
        if pool.num_free != pool.num_blocks:
            raise ServingError(f"{pool.num_used} cache blocks were lost in a serving run.")
        short = [i for i, r in enumerate(requests) if not r.finished]
        if short or len(requests) != len(trace):
            raise ServingError(
                f"A serving run of {len(trace)} requests took in {len(requests)} and left "
                f"{len(short)} of them unfinished."
            )
