"""Running passes: order, flags, range gate, verification, timing, recording, all in one place."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass

from mlalab.compile.config import PassConfig
from mlalab.compile.ranges import CompileRange
from mlalab.errors import VerifyError
from mlalab.passes.fingerprint import fingerprint, source_of_mlalab
from mlalab.passes.fusion import CleanUp, Pass
from mlalab.recorder import Recorder, StepDraft
from mlalab.records import StepKind, StepStatus


class PassDriver(CustomGraphPass):
    """Runs passes in order over a post-grad graph; Inductor calls it as its custom pass.

    Args:
        passes: in the order they run.
        config: which of them are on.
        recorder: records a step for each.
        compile_range: token counts that the graph will serve; None means any.
        decode_only: the graph will serve nothing but uniform decode batches.
        verify: check after each pass that the graph is well formed.
    """

    def __init__(
        self,
        passes: Sequence[Pass],
        config: PassConfig,
        recorder: Recorder,
        *,
        compile_range: CompileRange | None = None,
        decode_only: bool = False,
        verify: bool = True,
    ) -> None:
        self.passes, self.config, self.recorder = tuple(passes), config, recorder
        self.compile_range, self.decode_only, self.verify = compile_range, decode_only, verify

    def __call__(self, graph: fx.Graph) -> None:
        """Run every pass over `graph`, in place."""
        gm = graph.owning_module
        assert gm is not None
        for pass_ in self.passes:
            kind: StepKind = "cleanup" if isinstance(pass_, CleanUp) else "fusion"
            with self.recorder.step(pass_.name, kind, gm) as draft:
                self._run(pass_, graph, draft)
            if self.verify:
                verify(graph, pass_.name)

    def _run(self, pass_: Pass, graph: fx.Graph, draft: StepDraft) -> None:
        draft.note = pass_.note
        # A clean-up that found nothing to clean is not worth a step; a fusion always is.
        draft.keep_unchanged = not isinstance(pass_, CleanUp)
        draft.status = self._gate(pass_)
        if draft.status != "applied":
            return
        result = pass_.apply(graph)
        draft.matches, draft.refusals = result.matches, result.refusals
        if not isinstance(pass_, CleanUp) and not result.matches:
            draft.status = "refused" if result.refusals else "no match"

    def _gate(self, pass_: Pass) -> StepStatus:
        if not self.config.enabled(pass_.flags):
            return "disabled"
        if pass_.decode_only and not self.decode_only:
            return "not decode only"
        limit, served = self._limit(pass_), self.compile_range
        if limit is not None and (served is None or served.end > limit):
            return "out of range"
        return "applied"

    def _limit(self, pass_: Pass) -> int | None:
        limit = pass_.max_tokens
        return getattr(self.config, limit) if isinstance(limit, str) else limit

    def uuid(self) -> str:
        """Return what a compile cache must tell apart.

        That is all of mlalab's source and torch's version, the passes with their parameters and
        code, their order, the configuration, and what the graph is to serve.
        """
        served = (self.compile_range, self.decode_only)
        return fingerprint(source_of_mlalab(), self.passes, self.config, served)


def verify(graph: fx.Graph, pass_name: str) -> None:
    """Check that `graph` is well formed: linted (so acyclic and in order), every value known.

    Raises:
        VerifyError: naming the pass that left it so.
    """
    try:
        graph.lint()
    except (RuntimeError, ValueError) as error:
        raise VerifyError(f"{pass_name} left a malformed graph: {error}") from error
    for node in graph.nodes:
        if node.op == "call_function" and "val" not in node.meta and _gives_something(node):
            raise VerifyError(f"{pass_name} left node {node.name} without a recorded value.")


def _gives_something(node: fx.Node) -> bool:
    """Asserts on sizes, which torch puts into graphs of unbacked sizes, return nothing."""
    schema = getattr(node.target, "_schema", None)
    return schema is None or bool(schema.returns)
