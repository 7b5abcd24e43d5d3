"""Exercises of 07: the solution passes, and what one would plausibly write instead does not."""

from __future__ import annotations

import pytest
import torch

from mlalab.env import probe_aiter
from mlalab.exercises import lift_lesson
from mlalab.exercises.q_prep_lift_and_aiter import (
    EXERCISES,
    closes_cycle,
    has_decode_graph,
    honest_fake,
)
from mlalab.layers.mla import MLAOptions
from mlalab.teach import check


def fake(rows=lambda q: q.size(0), width=None, dtype=None, make=None):
    """Return a fake that differs from the honest one in what is given."""

    def attempt(q_TNH, w_uk_NPL, cache_dtype):
        columns = (width or _width)(q_TNH, w_uk_NPL)
        shape = (rows(q_TNH), q_TNH.size(1), columns)
        return (make or q_TNH.new_empty)(shape, dtype=dtype or cache_dtype)

    return attempt


def _width(q_TNH, w_uk_NPL):
    return w_uk_NPL.size(-1) + q_TNH.size(-1) - w_uk_NPL.size(1)


def heads_first(shape, dtype):
    return torch.empty((shape[1], shape[0], shape[2]), dtype=dtype).transpose(0, 1)


def asks(q_TNH, w_uk_NPL, cache_dtype):
    return honest_fake(q_TNH, w_uk_NPL, cache_dtype) if q_TNH.size(0) > 2 else None


def computes(q_TNH, w_uk_NPL, cache_dtype):
    """Right in shape, but what torch computes with may look at sizes."""
    nope = w_uk_NPL.size(1)
    absorbed = (q_TNH[..., :nope].transpose(0, 1) @ w_uk_NPL).transpose(0, 1)
    return torch.cat((absorbed, q_TNH[..., nope:]), -1).to(cache_dtype)


def only_direct(inputs, taken):
    outside = [name for node in taken for name in inputs[node] if name not in taken]
    return any(name in taken for node in outside for name in inputs[node])


def inside_counts(inputs, taken):
    queue = [name for node in taken for name in inputs[node]]
    while queue:
        node = queue.pop()
        if node in taken:
            return True
        queue += inputs[node]
    return False


def any_reader(inputs, taken):
    return any(
        name in taken for node, reads in inputs.items() if node not in taken for name in reads
    )


WRONG = {
    "07.fake": {
        "fixed rows": fake(rows=lambda q: 5),
        "asks how many": asks,
        "computes": computes,
        "the query's width": fake(width=lambda q, w: q.size(-1)),
        "latent only": fake(width=lambda q, w: w.size(-1)),
        "the query's dtype": fake(dtype=torch.bfloat16),
        "strides of a bmm": fake(make=heads_first),
        "nothing": lambda q, w, dtype: None,
        "raises": lambda q, w, dtype: q.no_such_thing,
    },
    "07.cycle": {
        "direct readers only": only_direct,
        "what is taken counts": inside_counts,
        "any reader": any_reader,
        "never": lambda inputs, taken: False,
    },
    "07.gate": {
        "by size": lambda lens, decodes, length, most: sum(lens) <= most,
        "by size, none empty": lambda lens, decodes, length, most: 0 < sum(lens) <= most,
        "by kind only": lambda lens, decodes, length, most: 0 < len(lens) == decodes,
        "by lengths only": lambda lens, decodes, length, most: (
            len(lens) > 0 and set(lens) == {length} and sum(lens) <= most
        ),
        "one token each": lambda lens, decodes, length, most: (
            0 < len(lens) == decodes and set(lens) == {1} and sum(lens) <= most
        ),
        "fewer than the bound": lambda lens, decodes, length, most: has_decode_graph(
            lens, decodes, length, most - 1
        ),
        "empty as well": lambda lens, decodes, length, most: (
            len(lens) == decodes and set(lens) <= {length} and sum(lens) <= most
        ),
    },
}


@pytest.mark.parametrize(
    ("name", "solution"),
    [
        ("07.fake", honest_fake),
        ("07.cycle", closes_cycle),
        ("07.gate", has_decode_graph),
    ],
)
def test_solutions_pass(name, solution):
    verdict = check(name, solution)
    assert verdict, verdict


@pytest.mark.parametrize(("name", "why"), [(n, why) for n, table in WRONG.items() for why in table])
def test_wrong_attempts_are_refused_in_one_sentence(name, why):
    verdict = check(name, WRONG[name][why])
    assert not verdict
    assert verdict.complaint.startswith("With ")
    assert "\n" not in verdict.complaint


@pytest.mark.parametrize("name", EXERCISES)
@pytest.mark.parametrize("blank", [..., lambda *arguments: ...])
def test_a_blank_is_told_from_a_wrong_answer(name, blank):
    assert "blank `...` is still there" in check(name, blank).complaint


def test_no_function_is_refused():
    assert check("07.fake", 3).complaint == "A function is expected here, and this is a int."


def test_a_lying_fake_is_noticed_by_opcheck_and_an_honest_one_is_not():
    def real(q):
        return q[..., :2].contiguous()

    q = torch.randn(5, 4, 8)
    honest = lift_lesson.scratch_op(real, lambda q: q.new_empty((*q.shape[:2], 2)))
    lying = lift_lesson.scratch_op(real, lambda q: q.new_empty((3, q.size(1), 2)))
    assert lift_lesson.complaint_of_opcheck(honest, q) == ""
    assert "[5, 4, 2]" in lift_lesson.complaint_of_opcheck(lying, q)
    assert torch.equal(honest(q), lying(q))


def test_the_impostor_is_found_inside_the_block_only():
    before = probe_aiter()
    with lift_lesson.pypi_aiter():
        assert "PyPI's async-iterator package" in probe_aiter().detail
    assert probe_aiter() == before


@pytest.mark.parametrize(("name", "rows"), [("decode", []), ("mixed", [2, 3, 4])])
def test_a_gate_by_size_gets_prefill_rows_wrong(name, rows):
    bench = lift_lesson.bench_of(name, MLAOptions(dtype=torch.bfloat16))
    assert lift_lesson.wrong_rows(bench, bench.module) == []
    assert lift_lesson.wrong_rows(bench, lift_lesson.by_size(bench)) == rows
