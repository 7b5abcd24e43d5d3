"""Running passes: order, flags, range gate, verification, timing, recording, all in one place."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass

from mlalab.compile.config import PassConfig
from mlalab.compile.ranges import CompileRange
from mlalab.errors import ConfigError
from mlalab.passes.fingerprint import fingerprint, source_of_mlalab
from mlalab.passes.fusion import CleanUp, Pass
from mlalab.passes.verifier import Snapshot, verify
from mlalab.recorder import Recorder, StepDraft
from mlalab.records import MatchRecord, Refusal, StepKind, StepStatus


@dataclass(frozen=True, slots=True)
class PassOutcome:
    """What became of one pass on one graph."""

    name: str
    status: StepStatus
    matches: tuple[MatchRecord, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    seconds: float = 0.0


class PassDriver(CustomGraphPass):
    """Runs passes in order over a post-grad graph; Inductor calls it as its custom pass.

    After a run `outcomes` holds what became of each pass; None before one.

    Args:
        passes: in the order they run.
        config: which of them are on; every flag decided.
        recorder: records a step for each.
        compile_range: token counts that the graph will serve; None means any.
        decode_only: the graph will serve nothing but uniform decode batches.
        verify: check after each pass that the graph is sound.
        salt: what else the outcome depends on, for a compile cache to tell apart.

    Raises:
        ConfigError: something is not a pass, or the order cannot work.
    """

    def __init__(
        self,
        passes: Sequence[Pass],
        config: PassConfig,
        recorder: Recorder | None = None,
        *,
        compile_range: CompileRange | None = None,
        decode_only: bool = False,
        verify: bool = True,
        salt: object = None,
    ) -> None:
        check_order(passes)
        self.passes, self.config, self.recorder = tuple(passes), config, recorder
        self.compile_range, self.decode_only, self.verify = compile_range, decode_only, verify
        self.salt = salt
        self.outcomes: tuple[PassOutcome, ...] | None = None

    def __call__(self, graph: fx.Graph) -> None:
        """Run every pass over `graph`, in place."""
        self.outcomes = tuple(self._step(pass_, graph) for pass_ in self.passes)

    def _step(self, pass_: Pass, graph: fx.Graph) -> PassOutcome:
        gm = graph.owning_module
        assert gm is not None
        before = Snapshot.of(graph) if self.verify else None
        kind: StepKind = "cleanup" if isinstance(pass_, CleanUp) else "fusion"
        recording = (
            contextlib.nullcontext(StepDraft())
            if self.recorder is None
            else self.recorder.step(pass_.name, kind, gm)
        )
        start = time.perf_counter()
        with recording as draft:
            self._run(pass_, graph, draft)
        seconds = time.perf_counter() - start
        if before is not None:
            verify(graph, pass_.name, before)
        return PassOutcome(pass_.name, draft.status, draft.matches, draft.refusals, seconds)

    def _run(self, pass_: Pass, graph: fx.Graph, draft: StepDraft) -> None:
        draft.note = pass_.note
        draft.status = self.gate(pass_)
        ran = draft.status == "applied"
        # A clean-up that found nothing to clean is not worth a step; a fusion that ran always is.
        draft.keep_unchanged = ran and not isinstance(pass_, CleanUp)
        if not ran:
            return
        result = pass_.apply(graph)
        draft.matches, draft.refusals = result.matches, result.refusals
        draft.patterns = result.patterns
        if not isinstance(pass_, CleanUp) and not result.matches:
            draft.status = "refused" if result.refusals else "no match"

    def gate(self, pass_: Pass) -> StepStatus:
        """Return "applied" if `pass_` may run on such a graph, otherwise why not."""
        if not self.config.enabled(pass_.flags):
            return "disabled"
        if pass_.decode_only and not self.decode_only:
            return "not decode only"
        limit, served = self.config.limit(pass_.max_tokens), self.compile_range
        if limit is not None and (served is None or served.end > limit):
            return "out of range"
        return "applied"

    def uuid(self) -> str:
        """Return what a compile cache must tell apart.

        That is all of mlalab's source and torch's version, the passes with their parameters and
        code, their order, the configuration, and what the graph is to serve.
        """
        served = (self.compile_range, self.decode_only)
        return fingerprint(source_of_mlalab(), self.passes, self.config, served, self.salt)


def check_order(passes: Sequence[Pass]) -> None:
    """Check that no pass comes before one it builds on, and no fusion after the last clean-up.

    Raises:
        ConfigError: naming both, or what is not a pass.
    """
    for pass_ in passes:
        if not isinstance(pass_, Pass):
            raise ConfigError(
                f"{pass_!r} in the list of passes is not a Pass; wrap a function of a graph in "
                f"CleanUp or GraphFusion."
            )
    for index, pass_ in enumerate(passes):
        for later in passes[index + 1 :]:
            if later.name in pass_.after:
                raise ConfigError(f"{pass_.name} must come after {later.name}; exchange them.")
            if pass_.last and not isinstance(later, CleanUp):
                raise ConfigError(
                    f"{later.name} must come before {pass_.name}: a bare in-place op is a barrier "
                    f"that nothing may be fused across."
                )
