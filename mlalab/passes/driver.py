"""Running passes: order, flags, range gate, verification, timing, recording, all in one place."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence

from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass

from mlalab.compile.config import PassConfig
from mlalab.compile.ranges import CompileRange
from mlalab.errors import VerifyError
from mlalab.passes.fusion import CleanUp, Fusion, Pass
from mlalab.recorder import Recorder, StepDraft
from mlalab.records import StepKind, StepStatus


class PassDriver(CustomGraphPass):
    """Runs passes in order over a post-grad graph; Inductor calls it as its custom pass.

    Args:
        passes: in the order they run.
        config: which of them are on.
        recorder: records a step for each.
        compile_range: token counts that the graph will serve; None means any.
        verify: check after each pass that the graph is well formed.
    """

    def __init__(
        self,
        passes: Sequence[Pass],
        config: PassConfig,
        recorder: Recorder,
        *,
        compile_range: CompileRange | None = None,
        verify: bool = True,
    ) -> None:
        self.passes, self.config, self.recorder = tuple(passes), config, recorder
        self.compile_range, self.verify = compile_range, verify

    def __call__(self, graph: fx.Graph) -> None:
        """Run every pass over `graph`, in place."""
        gm = graph.owning_module
        assert gm is not None
        for pass_ in self.passes:
            kind: StepKind = "fusion" if isinstance(pass_, Fusion) else "cleanup"
            with self.recorder.step(pass_.name, kind, gm) as draft:
                self._run(pass_, graph, draft)
            if self.verify:
                verify(graph, pass_.name)

    def _run(self, pass_: Pass, graph: fx.Graph, draft: StepDraft) -> None:
        draft.note = pass_.note
        # A clean-up that found nothing to clean is not worth a step; a fusion always is.
        draft.keep_unchanged = isinstance(pass_, Fusion)
        draft.status = self._gate(pass_)
        if draft.status != "applied":
            return
        result = pass_.apply(graph)
        draft.matches, draft.refusals = result.matches, result.refusals
        if isinstance(pass_, Fusion) and not result.matches:
            draft.status = "refused" if result.refusals else "no match"

    def _gate(self, pass_: Pass) -> StepStatus:
        if not self.config.enabled(pass_.flag):
            return "disabled"
        limit, served = pass_.max_tokens, self.compile_range
        if limit is not None and (served is None or served.end > limit):
            return "out of range"
        return "applied"

    def uuid(self) -> str:
        """Return what a compile cache must tell apart: passes with their source, config, range."""
        parts = [repr(self.config), str(self.compile_range)]
        for pass_ in self.passes:
            parts += [pass_.name, str(pass_.flag), str(pass_.max_tokens)]
            functions = (
                [pass_.run]
                if isinstance(pass_, CleanUp)
                else [f for v in pass_.variants for f in (v.pattern, v.replacement)]
            )
            parts += [v.name for v in pass_.variants] if isinstance(pass_, Fusion) else []
            modules = dict.fromkeys(inspect.getmodule(function) for function in functions)
            parts += [inspect.getsource(module) for module in modules if module is not None]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


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
        if node.op == "call_function" and "val" not in node.meta:
            raise VerifyError(f"{pass_name} left node {node.name} without a recorded value.")
