"""Hashes of passes: equal for what compiles alike, in any process, and different otherwise."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mlalab.passes.fingerprint import fingerprint, source_of_mlalab
from mlalab.passes.fusion import Pass
from mlalab.passes.pipeline import PIPELINE


def scaled_by(factor, default=1):
    def scale(x, offset=default):
        return x * factor + offset

    return scale


SCALE = 2


def by_global(x):
    return helper(x) * SCALE


def by_global_inside(x):
    return [helper(y) * SCALE for y in x], sum(helper(y) * SCALE for y in x)


def helper(x):
    return x + 1


def endless():
    return endless()


def variants(x):
    """Return functions of one name whose code differs."""
    return {"plus": lambda x: x + 1, "minus": lambda x: x - 1, "const": lambda x: x + 2}[x]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (scaled_by(1), scaled_by(2)),
        (scaled_by(1), scaled_by(1, default=2)),
        (scaled_by(torch.tensor([1.0])), scaled_by(torch.tensor([2.0]))),
        (variants("plus"), variants("minus")),
        (variants("plus"), variants("const")),
        ({"a": 1}, {"a": 2}),
        ({1, 2}, {1, 3}),
        (True, 1),
        (torch.float32, torch.bfloat16),
        (PIPELINE, PIPELINE[::-1]),
        (PIPELINE, (*PIPELINE, PIPELINE[-1])),
    ],
)
def test_what_differs_is_told_apart(one, other):
    assert fingerprint(one) != fingerprint(other)


def test_equal_values_are_equal():
    assert fingerprint(scaled_by(3)) == fingerprint(scaled_by(3))
    assert fingerprint(endless) == fingerprint(endless)


@pytest.mark.parametrize("function", [by_global, by_global_inside])
@pytest.mark.parametrize("name", ["SCALE", "helper"])
def test_globals_of_the_same_module_count(function, name, monkeypatch):
    before = fingerprint(function)
    monkeypatch.setitem(function.__globals__, name, {"SCALE": 3, "helper": by_global}[name])
    assert fingerprint(function) != before


def test_another_process_agrees():
    code = (
        "from mlalab.passes.fingerprint import *; from mlalab.passes.pipeline import PIPELINE;"
        "print(fingerprint(PIPELINE, source_of_mlalab()))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert run.stdout.split()[-1] == fingerprint(PIPELINE, source_of_mlalab())


def test_a_changed_source_file_counts(tmp_path, monkeypatch):
    from mlalab.passes import fingerprint as module

    hashes = set()
    monkeypatch.setattr(module, "_ROOTS", (Path(tmp_path),))
    for text in ("a = 1", "a = 2"):
        (tmp_path / "a.py").write_text(text)
        source_of_mlalab.cache_clear()
        hashes.add(source_of_mlalab())
    source_of_mlalab.cache_clear()
    assert len(hashes) == 2


@pytest.mark.parametrize("kind", [lambda f: f, staticmethod, classmethod, property])
def test_a_pass_that_is_a_class_counts_with_its_methods(kind):
    def made(run):
        class Mine(Pass):
            @kind
            def apply(self, graph=None):
                return run(graph)

        return Mine(name="Mine", note="")

    def other(graph):
        return graph.nodes

    assert fingerprint(made(len)) == fingerprint(made(len))
    assert fingerprint(made(len)) != fingerprint(made(other))
