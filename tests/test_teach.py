"""Exercises judge values, dtype, shape, what is written, and what is left unwritten."""

from __future__ import annotations

import pytest
import torch

from mlalab.errors import ConfigError
from mlalab.teach import Case, Exercise, Verdict, check, equals, poisoned, same_as


def add_into(out, x):
    out.copy_(out + x)


def one_by_one(out, x):
    for i in range(len(out)):  # reads what the step before wrote, where the two share memory
        out[i] += x[i]


def shared():
    x = torch.randn(7)
    return Case("an output that shares memory", (x[1:], x[:-1]))


JUDGE = same_as(
    lambda x: (x * 2, x.shape[0]),
    [lambda: Case("0 rows", (torch.empty(0, 3),)), lambda: Case("5 rows", (torch.ones(5, 3),))],
)


def test_right_answers_pass():
    assert JUDGE(lambda x: (x + x, len(x))) is None
    assert same_as(add_into, [shared])(lambda out, x: add_into(out, x)) is None
    assert "the argument out" in same_as(add_into, [shared])(one_by_one)


def raises(error):
    def attempt(x):
        raise error

    return attempt


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        (raises(AssertionError()), "it stopped with AssertionError: no message."),
        (raises(NotImplementedError), "it stopped with NotImplementedError: no message."),
        (raises(ConfigError("Say it.\nMore.")), "it stopped with ConfigError: Say it."),
        (lambda x: ..., "blank"),
        (lambda x: None, "2 values"),
        (lambda x: (x * 2.0, 0.0), "[1] should be an int, and is a float"),
        (lambda x: ((x * 2).double(), len(x)), "float64 tensor [0, 3]"),
        (lambda x: (torch.empty(x.shape), len(x)), "With 5 rows: the result [0] differs in 15"),
        (lambda x: (x.mul_(2), len(x)), "the argument x, afterwards,"),
        (lambda x: 1 / 0, "ZeroDivisionError"),
        (3, "A function is expected"),
    ],
)
def test_wrong_answers_get_one_sentence(attempt, words):
    complaint = JUDGE(attempt)
    assert words in complaint
    assert "\n" not in complaint


def test_memory_is_poisoned_inside_only():
    with poisoned():
        assert torch.empty(3).isnan().all()
    assert torch.are_deterministic_algorithms_enabled()  # as the fixture of all tests has it


def test_values_are_judged_with_their_type():
    judge = equals(2, lambda x: f"{x} is not the number of bytes.")
    assert judge(2) is None
    assert judge(2.0) == "2.0 is not the number of bytes."


def test_a_verdict_is_true_or_says_why():
    assert repr(Verdict("01.a", None, "Good.")) == "01.a: right. Good."
    assert not Verdict("01.a", "No.", "")
    assert repr(Verdict("01.a", "No.", "")) == "01.a: not yet. No."


@pytest.mark.parametrize("name", ["99.none", "nonsense", ""])
def test_an_unknown_exercise_is_an_error(name):
    with pytest.raises(ConfigError, match="No exercise is called"):
        check(name, 1)


def test_a_blank_is_recognised(monkeypatch):
    monkeypatch.setattr("mlalab.exercises.find", lambda _: Exercise(lambda _: None))
    assert "blank" in repr(check("01.a", ...))
    assert check("01.a", 1)
