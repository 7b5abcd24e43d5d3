"""Exercises of 12: solutions pass, what one would plausibly write instead does not."""

from __future__ import annotations

import pytest
import torch

from mlalab.context import make_batch
from mlalab.exercises import exposed_lesson
from mlalab.exercises.exposing_mla import (
    EXERCISES,
    GRAPHS,
    KINDS,
    ON_THE_HOST,
    attend,
    graph_and_split,
    may_capture,
)
from mlalab.teach import check


def kind_by_lengths(lens, decodes, length):
    if lens and set(lens) == {length}:
        return "decode", sum(lens)
    return graph_and_split(lens, decodes, length)


def sliced(hidden, n, decode, prefill):
    out = torch.empty_like(hidden)
    out[:n] = decode(hidden[:n])
    out[n:] = prefill(hidden[n:])
    return out


def in_place(hidden, n, decode, prefill):
    hidden[:n] = decode(hidden[:n])
    hidden[n:] = prefill(hidden[n:])
    return hidden


def asks(hidden, n, decode, prefill):
    if n == 0:
        return prefill(hidden)
    return attend(hidden, n, decode, prefill)


def from_behind(hidden, n, decode, prefill):
    rest = hidden.size(0) - n
    return torch.cat((decode(hidden[:n]), prefill(hidden[-rest:])))


def everything(hidden, n, decode, prefill):
    first = torch.arange(hidden.size(0)).unsqueeze(1) < n
    return torch.where(first, decode(hidden), prefill(hidden))


def swapped(hidden, n, decode, prefill):
    return torch.cat((prefill(hidden[n:]), decode(hidden[:n])))


def its_own_size(call, sizes, of_the_batch):
    return call.op not in ON_THE_HOST and sizes[call.name] <= of_the_batch


def no_size_at_all(call, sizes, of_the_batch):
    known = all(not sizes[name] for name in (call.name, *call.reads))
    return call.op not in ON_THE_HOST and known


WRONG = {
    "12.split": {
        "requests, not rows": (
            lambda lens, decodes, length: (graph_and_split(lens, decodes, length)[0], decodes),
            "two guesses with every decode request",
        ),
        "rows of one token": (
            lambda lens, decodes, length: (
                graph_and_split(lens, decodes, length)[0],
                sum(n for n in lens if n == 1),
            ),
            "a prompt of one token",
        ),
        "by lengths": (kind_by_lengths, "a prompt of one token beside a decode request"),
        "any uniform length": (
            lambda lens, decodes, length: graph_and_split(lens, decodes, lens[0] if lens else 1),
            "longer than the graph has them",
        ),
        "empty is prefill": (
            lambda lens, decodes, length: (
                ("prefill", 0) if not decodes else graph_and_split(lens, decodes, length)
            ),
            "no request",
        ),
    },
    "12.join": {
        "written by slices": (sliced, "writes into memory"),
        "in place": (in_place, "argument hidden_TD, afterwards,"),
        "asks": (asks, "nobody knows that yet"),
        "counted from behind": (from_behind, "all of 5 rows decoding"),
        "both on everything": (everything, "got 5 rows where the batch has 2"),
        "swapped": (swapped, "5 rows, 2 of them decode"),
        "raises": (lambda *_: torch.no_such_thing, "it stopped with"),
    },
    "12.capture": {
        "by op alone": (lambda call, sizes, own: call.op not in ON_THE_HOST, "at first"),
        "by its own size": (its_own_size, "at joined (cat)"),
        "by sizes alone": (
            lambda call, sizes, own: all(sizes[x] <= own for x in (call.name, *call.reads)),
            "an exposed layer's graph for decode",
        ),
        "rows count as unknown": (no_size_at_all, "at q (linear)"),
        "none": (lambda *_: None, "True or False"),
        "raises": (lambda call, sizes, own: call.nothing, "it stopped with"),
    },
}
SOLUTIONS = {"12.split": graph_and_split, "12.join": attend, "12.capture": may_capture}


def parts(hidden, n, decode, prefill):
    """Another right answer."""
    first, rest = torch.split(hidden, [n, hidden.size(0) - n])
    return torch.cat([decode(first), prefill(rest)], dim=0)


@pytest.mark.parametrize("name", EXERCISES)
def test_solutions_pass(name):
    verdict = check(name, SOLUTIONS[name])
    assert verdict, verdict
    assert repr(verdict).startswith(f"{name}: right. ")


def test_another_way_to_join_passes():
    verdict = check("12.join", parts)
    assert verdict, verdict


@pytest.mark.parametrize(("name", "why"), [(n, why) for n, table in WRONG.items() for why in table])
def test_wrong_attempts_are_refused_in_one_sentence(name, why):
    attempt, told = WRONG[name][why]
    verdict = check(name, attempt)
    assert not verdict
    assert told in verdict.complaint
    assert "\n" not in verdict.complaint


@pytest.mark.parametrize("name", EXERCISES)
@pytest.mark.parametrize("blank", [..., lambda *arguments: ...])
def test_a_blank_is_told_from_a_wrong_answer(name, blank):
    assert "blank `...` is still there" in check(name, blank).complaint


def test_no_function_is_refused():
    assert check("12.capture", 3).complaint == "A function is expected here, and this is a int."


@pytest.mark.parametrize(("label", "arguments"), KINDS)
def test_the_kinds_are_those_of_the_library(label, arguments):
    lens, decodes, length = arguments
    batch = make_batch(lens, [4] * len(lens), num_decodes=decodes, block_size=16)
    kind, rows = graph_and_split(*arguments)
    special = batch.uniform_query_len in (None, length)
    assert kind == (batch.kind if special else "general")
    assert rows == batch.num_decode_tokens


def test_the_graphs_that_are_judged_hold_calls_of_both_sorts():
    for make in GRAPHS.values():
        graph = make()
        assert {graph.held[call.name] for call in graph.calls} == {False, True}


def test_an_exposed_graph_is_cut_around_what_the_split_sizes():
    graph = exposed_lesson.captured("general")
    assert [may for may, _ in graph.pieces] == [True, False, True]
    assert "mlalab.mla_split_batch" in graph.pieces[1][1] and "cat" in graph.pieces[1][1]
    assert graph.pieces[2][1] == ("reshape", "linear")
    decode = exposed_lesson.captured("decode")
    assert [ops for may, ops in decode.pieces if not may] == [("mlalab.mla_attention_decode",)]


def test_a_face_generates_what_another_does():
    tokens = exposed_lesson.generated("opaque")
    assert [len(x) for x in tokens] == [x.output_len for x in exposed_lesson.REQUESTS]
    assert tokens == exposed_lesson.generated("eager")
