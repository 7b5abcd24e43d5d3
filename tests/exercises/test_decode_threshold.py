"""Exercises of notebook 08: solutions pass, plausible mistakes are told from them."""

from __future__ import annotations

import pytest

from mlalab.exercises.decode_threshold import EXERCISES
from mlalab.teach import check


def predicate(query_lens, num_decodes, num_speculative):
    all_decode = num_decodes == len(query_lens) > 0
    return all_decode and set(query_lens) == {1 + num_speculative}


def threshold(max_num_seqs, num_speculative):
    return max_num_seqs * (1 + num_speculative)


def ranges(max_num_seqs, num_speculative, max_num_batched_tokens):
    bound = threshold(max_num_seqs, num_speculative)
    if bound >= max_num_batched_tokens:
        return [(1, max_num_batched_tokens, True)]
    return [(1, bound, True), (bound + 1, max_num_batched_tokens, False)]


def memory(bound, max_num_batched_tokens, heads, fp8):
    return (max_num_batched_tokens - bound) * heads * 576 * (1 if fp8 else 2)


SOLUTIONS = {
    "08.predicate": predicate,
    "08.threshold": threshold,
    "08.ranges": ranges,
    "08.memory": memory,
}
WRONG = [
    # By tokens alone; without looking at who decodes; true of an empty batch; blind to speculation.
    ("08.predicate", lambda lens, decodes, spec: sum(lens) <= 8, "a prefill of one token"),
    ("08.predicate", lambda lens, decodes, spec: set(lens) == {1 + spec}, "a prefill of one token"),
    (
        "08.predicate",
        lambda lens, decodes, spec: decodes == len(lens) and all(n == 1 + spec for n in lens),
        "an empty batch",
    ),
    (
        "08.predicate",
        lambda lens, decodes, spec: 0 < decodes == len(lens) and len(set(lens)) == 1,
        "where two are speculated",
    ),
    ("08.threshold", lambda seqs, spec: seqs, "three speculative tokens"),
    ("08.threshold", lambda seqs, spec: seqs * max(spec, 1), "three speculative tokens"),
    (
        "08.ranges",
        lambda seqs, spec, most: [(1, seqs * (1 + spec), True), (seqs * (1 + spec), most, False)],
        "64 sequences and batches",
    ),
    (
        "08.ranges",
        lambda seqs, spec, most: [
            (1, seqs * (1 + spec), True),
            (seqs * (1 + spec) + 1, most, False),
        ],
        "a largest batch that is the bound",
    ),
    ("08.memory", lambda bound, most, n, fp8: (most - bound) * n * 576, "128 heads, bf16"),
    ("08.memory", lambda bound, most, n, fp8: most * n * 576 * (1 if fp8 else 2), "16 heads, FP8"),
    ("08.memory", lambda bound, most, n, fp8: (most - bound) * n * 512, "16 heads, FP8"),
]


def test_every_exercise_has_a_solution_and_wrong_attempts():
    assert list(SOLUTIONS) == list(EXERCISES)
    assert all(sum(name == wrong[0] for wrong in WRONG) >= 2 for name in EXERCISES)


@pytest.mark.parametrize("name", SOLUTIONS)
def test_solutions_pass(name):
    verdict = check(name, SOLUTIONS[name])
    assert verdict, verdict
    assert repr(verdict).startswith(f"{name}: right. ")


@pytest.mark.parametrize(("name", "attempt", "where"), WRONG)
def test_plausible_mistakes_are_refused_with_the_case(name, attempt, where):
    verdict = check(name, attempt)
    assert not verdict
    assert where in verdict.complaint


@pytest.mark.parametrize("name", SOLUTIONS)
def test_blanks_are_one_sentence(name):
    for blank in (..., lambda *_: ...):
        said = repr(check(name, blank))
        assert said.startswith(f"{name}: not yet. ")
        assert "\n" not in said
