"""Traces: what the generator draws, what a file may hold, and a sentence for every bad line."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mlalab.errors import ConfigError, InputError, TraceError
from mlalab.serving.requests import (
    RequestSpec,
    equal_requests,
    load_jsonl,
    prompt_tokens,
    save_jsonl,
    sharegpt_like,
)

GOOD = '{"arrival_s": 0.5, "prompt_len": 3, "output_len": 2}'


def test_lengths_are_those_of_conversations():
    trace = sharegpt_like(4000, seed=3)
    for name in ("prompt_len", "output_len"):
        lengths = np.array([getattr(spec, name) for spec in trace])
        assert 190 < lengths.mean() < 210
        assert np.median(lengths) < 0.75 * lengths.mean()
        assert (lengths.min(), lengths.max()) == (4, 1024)
    assert {spec.arrival_s for spec in trace} == {0.0}


def test_arrivals_come_at_the_rate_that_was_asked_for():
    times = np.array([spec.arrival_s for spec in sharegpt_like(4000, seed=1, rate=8.0)])
    gaps = np.diff(times, prepend=0.0)
    assert (gaps >= 0).all()
    assert gaps.mean() == pytest.approx(1 / 8, rel=0.05)
    # Of exponential gaps, a share of 1/e is longer than the mean.
    assert (gaps > gaps.mean()).mean() == pytest.approx(math.exp(-1), abs=0.03)


def test_a_seed_gives_one_trace_whatever_the_rate():
    trace = sharegpt_like(20, seed=5, rate=2.0)
    assert trace == sharegpt_like(20, seed=5, rate=2.0)
    assert trace != sharegpt_like(20, seed=6, rate=2.0)
    lengths = [(s.prompt_len, s.output_len) for s in sharegpt_like(20, seed=5)]
    assert [(s.prompt_len, s.output_len) for s in trace] == lengths


def test_lengths_are_scaled_and_never_empty():
    trace = sharegpt_like(500, scale=0.01)
    assert min(min(s.prompt_len, s.output_len) for s in trace) == 1
    assert max(s.prompt_len for s in trace) <= 10


def test_equal_requests():
    assert equal_requests(2, 5, 7) == (RequestSpec(0.0, 5, 7),) * 2
    assert equal_requests(0, 5, 7) == sharegpt_like(0) == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": -1}, "0 or more requests, got -1"),
        ({"count": 1, "rate": 0.0}, "rate must be requests a second above 0"),
        ({"count": 1, "rate": math.nan}, "rate must be requests a second above 0"),
        ({"count": 1, "scale": 0}, "scale must be a finite number above 0"),
    ],
)
def test_a_trace_that_cannot_be(arguments, message):
    with pytest.raises(ConfigError, match=message):
        sharegpt_like(**arguments)


def test_prompts_depend_on_seed_and_place_alone():
    spec = RequestSpec(0.0, 50, 1)
    first = prompt_tokens(spec, 0, 7, seed=1)
    assert first == prompt_tokens(RequestSpec(9.0, 50, 3), 0, 7, seed=1)
    assert first != prompt_tokens(spec, 1, 7, seed=1)
    assert first != prompt_tokens(spec, 0, 7, seed=2)
    assert set(first) == set(range(7))


def test_a_trace_comes_back_from_its_file(tmp_path):
    trace = sharegpt_like(9, seed=2, rate=3.0)
    path = tmp_path / "trace.jsonl"
    save_jsonl(path, trace)
    assert load_jsonl(path) == trace
    save_jsonl(path, ())
    assert load_jsonl(path) == ()


def test_other_fields_and_blank_lines_are_ignored(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text(GOOD.replace("}", ', "user": "x"}') + "\n\n  \n" + GOOD)
    assert load_jsonl(path) == (RequestSpec(0.5, 3, 2),) * 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"Line 2 of \S+ is not JSON \(Expecting"),
        ("[1, 2]", r"Line 2 of \S+ must be an object such as .*, got \[1, 2\]\.$"),
        ('{"arrival_s": 1, "output_len": 2}', r"Line 2 of \S+ lacks prompt_len\.$"),
        ('{"prompt_len": 1}', r"Line 2 of \S+ lacks arrival_s, output_len\.$"),
        (GOOD.replace("3", "0"), "Line 2 of .*: prompt_len must be a whole number, 1 or more, g"),
        (GOOD.replace("3", "3.5"), "Line 2 of .*: prompt_len must be a whole number"),
        (GOOD.replace("2}", "true}"), "Line 2 of .*: output_len must be a whole .* got True"),
        (GOOD.replace("0.5", "-1"), "Line 2 of .*: arrival_s must be a finite number .* got -1"),
        (GOOD.replace("0.5", "NaN"), "Line 2 of .*: arrival_s must be a finite number"),
        (GOOD.replace("0.5", '"0"'), "Line 2 of .*: arrival_s must be a finite .* got '0'"),
        (GOOD.replace("0.5", "0.25"), r"Line 2 of .* has arrival_s 0.25, before the 0.5 above"),
    ],
)
def test_a_bad_line_is_named_and_explained(tmp_path, line, message):
    path = tmp_path / "trace.jsonl"
    path.write_text(f"{GOOD}\n{line}\n")
    with pytest.raises(ConfigError, match=message) as raised:
        load_jsonl(path)
    assert "\n" not in str(raised.value)


def test_a_file_that_cannot_be_read_or_written(tmp_path):
    with pytest.raises(ConfigError, match=r"Cannot read .*: No such file"):
        load_jsonl(tmp_path / "none.jsonl")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match="not text in UTF-8"):
        load_jsonl(tmp_path / "bytes")
    with pytest.raises(TraceError, match="Cannot write"):
        save_jsonl(tmp_path / "no" / "trace.jsonl", ())


def test_a_request_counts_its_tokens():
    assert RequestSpec(0, 3, 4).num_tokens == 7
    with pytest.raises(InputError, match="arrival_s"):
        RequestSpec(math.inf, 1, 1)
