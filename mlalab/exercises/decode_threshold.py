"""Exercises of notebook 08: which batches a decode-only graph may serve, and up to which size."""

from __future__ import annotations

from collections.abc import Sequence

from mlalab.compile.ranges import decode_bound
from mlalab.context import make_batch
from mlalab.sweeps.engine import q_prepped_bytes, served_ranges, settings_for
from mlalab.sweeps.spec import SweepSpec
from mlalab.teach import Exercise, cases, same_as


def uniform_decode(query_lens: Sequence[int], num_decodes: int, num_speculative: int) -> bool:
    """Return whether every request decodes, each with `1 + num_speculative` new tokens."""
    context_lens = [7] * len(query_lens)
    batch = make_batch(query_lens, context_lens, num_decodes=num_decodes, block_size=16)
    return batch.uniform_query_len == 1 + num_speculative


def threshold(max_num_seqs: int, num_speculative: int) -> int:
    """Return the most tokens of a uniform decode batch."""
    return decode_bound(max_num_seqs, num_speculative)


def fused_ranges(
    max_num_seqs: int, num_speculative: int, max_num_batched_tokens: int
) -> list[tuple[int, int, bool]]:
    """Return (start, end, prepared by one launch) of every range, for uniform decode batches."""
    spec = SweepSpec(
        max_num_seqs=max_num_seqs,
        num_speculative_tokens=num_speculative,
        max_num_batched_tokens=max_num_batched_tokens,
    )
    rows = served_ranges(settings_for(spec, threshold(max_num_seqs, num_speculative)))
    return [(r.start, r.end, r.one_launch) for r in rows if r.batch == "uniform decode"]


def extra_bytes(bound: int, max_num_batched_tokens: int, heads: int, fp8: bool) -> int:
    """Return by how much `q_prepped` grows when the gate is the largest batch, in bytes."""
    spec = SweepSpec(heads=heads, format="fp8/fp8" if fp8 else "bf16/bf16")
    right, wrong = (q_prepped_bytes(spec, t) for t in (bound, max_num_batched_tokens))
    return wrong - right


_Rows = Sequence[tuple[str, tuple[object, ...]]]


_BATCHES: _Rows = (
    ("four decode requests", ([1, 1, 1, 1], 4, 0)),
    ("one decode request", ([1], 1, 0)),
    ("a prefill of one token", ([1], 0, 0)),
    ("a prefill inside the bound", ([5], 0, 0)),
    ("two decode requests and a prefill of one token", ([1, 1, 1], 2, 0)),
    ("an empty batch", ([], 0, 0)),
    ("an empty batch, two speculative tokens", ([], 0, 2)),
    ("three requests that verify two tokens each", ([3, 3, 3], 3, 2)),
    ("requests of one token where two are speculated", ([1, 1, 1], 3, 2)),
    ("requests of unlike lengths", ([3, 1, 2], 3, 2)),
    ("a prefill as long as a decode request", ([3, 3], 1, 2)),
    ("requests of two tokens where none is speculated", ([2, 2], 2, 0)),
)
_SERVERS = (
    ("a server of one sequence", (1, 0)),
    ("256 sequences", (256, 0)),
    ("64 sequences, three speculative tokens", (64, 3)),
    ("17 sequences, one speculative token", (17, 1)),
)
_LIMITS = (
    ("64 sequences and batches up to 8192 tokens", (64, 0, 8192)),
    ("64 sequences and one speculative token", (64, 1, 8192)),
    ("a largest batch that is the bound", (64, 1, 128)),
    ("a largest batch below the bound", (64, 1, 100)),
    ("batches of one token", (1, 0, 1)),
    ("one token more than the bound", (3, 2, 10)),
)
_MEMORY = (
    ("16 heads, FP8", (256, 8192, 16, True)),
    ("128 heads, bf16", (64, 16384, 128, False)),
    ("one head, nothing to lose", (7, 7, 1, True)),
    ("no batch at all", (0, 1, 3, False)),
)

EXERCISES = {
    "08.predicate": Exercise(
        same_as(uniform_decode, cases(_BATCHES)),
        "That is the predicate that CUDA graphs of decode use, and it looks at kinds, not sizes.",
    ),
    "08.threshold": Exercise(
        same_as(threshold, cases(_SERVERS)),
        "Verifying speculated tokens makes a decode batch longer, and the bound with it.",
    ),
    "08.ranges": Exercise(
        same_as(fused_ranges, cases(_LIMITS)),
        "A range is fused as a whole or not at all, so it is cut where the fusion stops.",
    ),
    "08.memory": Exercise(
        same_as(extra_bytes, cases(_MEMORY)),
        "INVARIANT 1 makes every row real memory; the bound keeps the rows few.",
    ),
}
