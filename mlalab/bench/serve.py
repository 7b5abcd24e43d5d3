"""`python -m mlalab bench serve`: a trace of requests through every form of a decoder.

Each form first serves the trace by a clock that makes the same batches every time, and is told the
tokens of the first form: that warms it up, and it must agree with each of them up to rounding. Then
the forms are timed in turn, run by run, so that a machine that drifts drifts for all of them. Where
requests arrive over time, so that batches are others than in the rehearsal, a run goes before.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from mlalab.bench.report import machine, save
from mlalab.bench.serve_contestant import Contestant
from mlalab.bench.serve_options import Plan, ServeOptions, plan
from mlalab.bench.serve_report import FaceResult, Run, described, document, table
from mlalab.serving.clock import WallClock
from mlalab.serving.metrics import summarise
from mlalab.trace_files import require_folder

Tokens = tuple[tuple[int, ...], ...]


def serve(device: torch.device, options: ServeOptions, out: Path | None = None) -> int:
    """Serve a trace with each form and print a table; returns the exit code.

    0 when all forms gave the same tokens, 1 when not, 130 when interrupted: what was finished is
    then printed and saved all the same.

    Args:
        out: where to save the results as JSON.

    Raises:
        ConfigError: an option that cannot be used.
        InputError: a request that could never be served.
        ServingError: a step failed.
    """
    planned = plan(device, options)
    if out is not None:
        require_folder(out)
    facts = machine(device)
    _say(", ".join(f"{name} {fact}" for name, fact in facts.items()))
    print(described(planned.model, planned.setting, planned.trace))
    bench = _Bench(planned)
    interrupted = False
    try:
        with _threads_for(device):
            bench.set_up()
            bench.time()
    except KeyboardInterrupt:
        interrupted = True
    results = bench.results
    if out is not None:
        save(out, document(facts, planned, results, interrupted))
    if results:
        print(table(results))
    for result in results:
        if result.differing:
            _say(_difference(result, results[0].name, len(planned.trace)))
    if interrupted:
        _say("interrupted")
        return 130
    return 1 if any(result.differing for result in results) else 0


@contextmanager
def _threads_for(device: torch.device) -> Iterator[None]:
    """Use one thread on a CPU: on matrices this small, several mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if device.type == "cpu" else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Bench:
    """The forms of a plan, and what was found of each so far."""

    def __init__(self, planned: Plan) -> None:
        self.plan = planned
        self.contestants: list[Contestant] = []
        self.results: list[FaceResult] = []
        self._told: Tokens | None = None
        self._timed: dict[str, Tokens] = {}

    def set_up(self) -> None:
        """Build every form, and let it serve the trace once: warm-up and check in one."""
        for face, level in self.plan.forms:
            weights = self.contestants[0].decoder if self.contestants else None
            contestant = Contestant(face, level, self.plan.setting, weights)
            _say(f"{contestant.name}: ready after {contestant.set_up.compile_s:.1f} s ...")
            for warning in contestant.set_up.warnings:
                _say(f"{contestant.name}: {warning}")
            result = FaceResult(contestant.name, contestant.set_up)
            served, result.agreement = contestant.rehearse(self.plan.trace, self._told)
            self._told = self._told or served.tokens
            if wrong := result.agreement.wrong:
                result.differing, result.first_difference = len({r for r, _ in wrong}), wrong[0]
            self.contestants.append(contestant)
            self.results.append(result)

    def time(self) -> None:
        """Time every form in turn, run by run."""
        forms = list(zip(self.contestants, self.results, strict=True))
        together = not any(spec.arrival_s for spec in self.plan.trace)
        if not together:
            # Batches then depend on the time: those of the rehearsal were others.
            for contestant in self.contestants:
                contestant.serve(self.plan.trace, WallClock())
        for run in range(self.plan.runs):
            # Another one goes first each time: none always follows the same.
            first = run % len(forms)
            for contestant, result in forms[first:] + forms[:first]:
                served, peak = contestant.serve(self.plan.trace, WallClock())
                result.runs.append(Run(summarise(served.times), served.steps))
                result.peak_bytes = max(result.peak_bytes, peak)
                result.compiled_later = contestant.compiled_later
                # Rounding depends on batches.
                if together:
                    _compare(
                        result, served.tokens, self._timed.setdefault(result.name, served.tokens)
                    )


def _compare(result: FaceResult, tokens: Tokens, expected: Tokens) -> None:
    """Note which requests have other tokens than in an earlier run."""
    differing = [i for i, pair in enumerate(zip(tokens, expected, strict=True)) if len({*pair}) > 1]
    result.differing = max(result.differing, len(differing))
    if differing and result.first_difference is None:
        first = differing[0]
        pairs = zip(tokens[first], expected[first], strict=True)
        place = next(i for i, pair in enumerate(pairs) if len({*pair}) > 1)
        result.first_difference = (first, place)


def _difference(result: FaceResult, first: str, requests: int) -> str:
    assert result.first_difference is not None
    request, place = result.first_difference
    than = f"than {first}" if result.agreement.wrong else "in one run than in another"
    return (
        f"{result.name} generated other tokens {than} for {result.differing} of {requests} "
        f"requests, first at token {place} of request {request}; its speed is not compared."
    )


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
