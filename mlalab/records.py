"""What a trace is made of: plain values, readable without torch.

A `StepRecord` is one graph after one stage, together with what that stage did to it. Everything
here is immutable and made of strings, numbers and tuples, so that a trace can be saved, loaded,
drawn and compared on a machine that has neither a GPU nor a compiler.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

StepKind = Literal["capture", "inductor", "fusion", "cleanup"]
"""capture: a graph as Dynamo or AOTAutograd made it; inductor: one of Inductor's own passes;
fusion and cleanup: mlalab's passes."""

StepStatus = Literal[
    "captured",
    "applied",
    "no match",
    "refused",
    "out of range",
    "not decode only",
    "disabled",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """One FX node.

    Sizes and strides are ints, or the printed expression of a symbolic size (`"s77"`).
    """

    name: str
    """FX name, unique within the step and kept from step to step."""
    op: str
    """FX opcode: `placeholder`, `get_attr`, `call_function`, `output`; Dynamo's graph also has
    `call_method`."""
    target: str
    """Short operator name: `aten.mm`, `mlalab.rotary_embedding`. An `auto_functionalized` node is
    named after the op it wraps: `auto_functionalized(mlalab.rotary_embedding)`."""
    text: str
    """The node as one line of printed graph: `mm = aten.mm(arg2_1, permute)`."""
    inputs: tuple[str, ...]
    """Names of the nodes it reads, in argument order, each once."""
    users: int
    shape: tuple[int | str, ...] | None = None
    stride: tuple[int | str, ...] | None = None
    dtype: str | None = None
    bytes: int | None = None
    """Size of the value; None for non-tensors and symbolic sizes."""
    alias_of: str | None = None
    """Name of the earlier node whose storage this one shares, or None when it owns its storage."""
    mutates: tuple[str, ...] = ()
    """Names of the input nodes written in place by this node (as declared by the op's schema)."""
    source: str | None = None
    """`file.py:line, code` of the user's line that made it."""
    layer: str | None = None
    """Name of the attention layer it belongs to, or None."""
    plumbing: bool = False
    """True for nodes that move no data: views, getitem, sizes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchRecord:
    """One place where a fusion fired."""

    layer: str
    variant: str
    """Which form of the pattern matched, e.g. `deepseek_scaling/gptj`."""
    matched: tuple[str, ...]
    """Names of the nodes that matched (in the graph before the step)."""
    created: tuple[str, ...]
    """Names of the nodes put in their place."""
    source: str | None = None
    """`file.py:line` of the pattern that matched, or None when no pattern states the fusion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatternRecord:
    """One variant of a pattern as a graph, for a refusal to say how far it agreed."""

    name: str
    """The variant's name."""
    source: str
    """`file.py:line` of the pattern function."""
    nodes: tuple[NodeRecord, ...]
    """As traced. Where only the structure was compared they have neither sizes nor dtypes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A place where a pass could have acted and did not, and why."""

    node: str
    """Name of the node that the pass looked at."""
    layer: str | None
    reason: str
    """One sentence."""
    expected: str | None = None
    found: str | None = None
    variant: str | None = None
    """The pattern variant that came nearest, for a pattern that did not match."""
    pattern: int | None = None
    """Index of that variant in the step's `patterns`; None where no pattern was tried."""
    agreed: tuple[str, ...] = ()
    """Names of the pattern's nodes that agreed with the graph as far as they were compared."""
    failed: str | None = None
    """Name of the pattern's node that did not; None when all agreed and something else forbids."""
    at: str | None = None
    """Name of the graph's node found in its place; None when that is `node` or a constant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDiff:
    """How one output or buffer differs from the reference run."""

    name: str
    equal: bool
    max_abs: float
    mismatched: int
    """Number of elements whose bits differ."""
    total: int
    close: bool = True
    """False when the difference is more than another order of rounding explains."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRecord:
    """A step's graph and the one before it run on the same random input, compared bit for bit."""

    diffs: tuple[TensorDiff, ...]

    @property
    def ok(self) -> bool:
        """True when something was compared and every bit of it agrees."""
        return bool(self.diffs) and all(d.equal for d in self.diffs)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One graph after one stage, and what the stage did.

    `created`, `erased` and `rewired` come from FX's own node hooks, so they are exact; names in
    `erased` belong to the previous step's graph. A step with `retraced=True` is a new graph made
    by tracing (no node survives), so its diff against the step before is not meaningful and is
    left empty.
    """

    name: str
    kind: StepKind
    status: StepStatus
    nodes: tuple[NodeRecord, ...]
    created: tuple[str, ...] = ()
    erased: tuple[str, ...] = ()
    rewired: tuple[str, ...] = ()
    """Surviving nodes whose arguments changed."""
    retraced: bool = False
    matches: tuple[MatchRecord, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    patterns: tuple[PatternRecord, ...] = ()
    """The patterns that refusals speak of, each once."""
    note: str = ""
    """One sentence on what the stage is for."""
    seconds: float = 0.0
    check: CheckRecord | None = None

    @property
    def verdict(self) -> str:
        """The check in a word.

        Of mlalab's passes every bit is demanded; torch's own decompositions, passes and generated
        code may round otherwise ("differs").
        """
        if self.check is None:
            return "-"
        if self.check.ok:
            return "ok"
        exact = self.kind in ("fusion", "cleanup")
        close = all(diff.close for diff in self.check.diffs)
        return "differs" if close and not exact else "FAILED"
