"""`python -m mlalab bench serve`: what is run in which order, what is said, and exit codes."""

from __future__ import annotations

import json

import pytest
import torch

from mlalab.bench import serve as bench_serve
from mlalab.bench.serve_faces import SetUp
from mlalab.cli import main
from mlalab.serving.agreement import Agreement
from mlalab.serving.clock import VirtualClock
from mlalab.serving.engine import Result, StepsTaken
from mlalab.serving.metrics import RequestTimes
from mlalab.serving.requests import RequestSpec, save_jsonl

TRACE = (RequestSpec(0.0, 3, 2), RequestSpec(0.0, 2, 1))
RIGHT = ((5, 6), (7,))


class Played:
    """A form that answers at once; `served` tells who served when, and by which clock."""

    served: list[tuple[str, str]]
    answers: dict[str, list]

    def __init__(self, face, level, setting, weights):
        self.name = face if level is None else f"{face} {level}"
        self.decoder, self.set_up, self.compiled_later = self.name, SetUp(1.5, 0.5, 3, 1), 0
        self.shares = weights
        if weights is None:
            Played.served, Played.first = [], self.name
        assert weights is None or weights == Played.first

    def rehearse(self, trace, told):
        result, _ = self.serve(trace, VirtualClock())
        pairs = zip(result.tokens, told or result.tokens, strict=True)
        wrong = [
            (request, place)
            for request, (own, other) in enumerate(pairs)
            for place, (a, b) in enumerate(zip(own, other, strict=True))
            if a != b
        ]
        return result, Agreement(choices=3, wrong=wrong)

    def serve(self, trace, clock):
        Played.served.append((self.name, type(clock).__name__))
        answers = Played.answers.get(self.name, [RIGHT])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, BaseException):
            raise answer
        speed = {"opaque O2": 1.0, "exposed O2": 2.0}.get(self.name, 4.0)
        times = (RequestTimes(0.0, (1 / speed, 2 / speed)), RequestTimes(0.0, (1 / speed,)))
        return Result(answer, times, {"decode": StepsTaken(2, 3, 0.5 / speed)}), 3 << 20


@pytest.fixture
def played(monkeypatch):
    monkeypatch.setattr(bench_serve, "Contestant", Played)
    monkeypatch.setattr(bench_serve, "machine", lambda device: {"device": "played"})
    Played.answers = {}
    return Played


@pytest.fixture
def bench(capsys, tmp_path):
    """Return `bench(*options)`, which returns exit code, output, messages and the document."""
    save_jsonl(tmp_path / "trace.jsonl", TRACE)

    def run(*options, trace=True):
        out = tmp_path / "out.json"
        given = ("--trace", tmp_path / "trace.jsonl") if trace else ()
        command = ["bench", "serve", "--device", "cpu", "--out", out, *given, *options]
        code = main([str(part) for part in command])
        said = capsys.readouterr()
        return code, said.out, said.err, json.loads(out.read_text()) if out.exists() else None

    return run


def test_every_form_is_checked_first_and_then_timed_in_turn(played, bench):
    code, out, _, told = bench("--runs", 2, "--faces", "eager,opaque", "--levels", "O0,O2")
    forms = ["eager", "opaque O0", "opaque O2"]
    checks = [(form, "VirtualClock") for form in forms]
    # Another form goes first in the second run.
    timed = [(form, "WallClock") for form in (*forms, *forms[1:], forms[0])]
    assert played.served == checks + timed
    assert code == 0
    assert [face["name"] for face in told["faces"]] == forms
    assert all(len(face["runs"]) == 2 for face in told["faces"])
    assert all(form in out for form in forms)


def test_ratios_are_to_the_first_form(played, bench):
    code, out, err, told = bench("--faces", "opaque,exposed")
    assert code == 0 and "other tokens" not in err
    rows = {line.split("  ")[0]: line for line in out.splitlines()}
    assert rows["requests/s"].endswith("2.00 (2.00..2.00) 2.00×")
    assert rows["TTFT mean, ms"].endswith("500.00 (500.00..500.00) 0.50×")
    assert rows["decode tokens/s"].endswith("12.00 (12.00..12.00) 2.00×")
    assert rows["steps: prefill/mixed/decode"].endswith("0/0/2")
    assert rows["graphs (of them cached)"].endswith("3 (1)")
    assert rows["peak memory, MiB"].endswith("3")
    assert told["faces"][1]["ratios"]["output tokens/s"] == 2.0


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (
            {"exposed O2": [((5, 6), (8,))]},
            "exposed O2 generated other tokens than opaque O2 for 1 of 2 requests, first at "
            "token 0 of request 1; its speed is not compared.\n",
        ),
        ({"exposed O2": [((4, 9), (8,))]}, "for 2 of 2 requests, first at token 0 of request 0;"),
        (
            {"exposed O2": [RIGHT, RIGHT, ((5, 9), (7,))]},
            "in one run than in another for 1 of 2 requests, first at token 1 of request 0;",
        ),
        (
            {"opaque O2": [RIGHT, RIGHT, ((5, 9), (7,))]},
            "opaque O2 generated other tokens in one run than in another for 1 of 2 requests",
        ),
    ],
)
def test_other_tokens_fail_the_run_and_no_ratio_is_told(played, bench, answers, message):
    played.answers = answers
    code, out, err, told = bench("--faces", "opaque,exposed")
    assert code == 1
    assert message in err
    assert "×" not in out and "requests differ" in out
    assert all(face["ratios"] == {} for face in told["faces"][1:])


def test_with_arrivals_in_between_only_the_check_must_agree(played, bench, tmp_path):
    late = (TRACE[0], RequestSpec(0.5, 2, 1))
    save_jsonl(tmp_path / "late.jsonl", late)
    played.answers = {"exposed O2": [RIGHT, RIGHT, ((5, 9), (7,))]}
    assert bench("--trace", tmp_path / "late.jsonl", trace=False)[0] == 0


def test_an_interruption_keeps_what_was_finished(played, bench):
    played.answers = {"exposed O2": [RIGHT, RIGHT, KeyboardInterrupt()]}
    code, out, err, told = bench("--faces", "opaque,exposed", "--runs", 3)
    assert code == 130 and err.endswith("interrupted\n")
    assert told["interrupted"] is True
    # The form that was interrupted was the first of the second run.
    assert [len(face["runs"]) for face in told["faces"]] == [1, 1]
    assert "requests/s" in out


def test_an_interruption_before_the_first_form_is_ready(played, bench):
    played.answers = {"opaque O2": [KeyboardInterrupt()]}
    code, out, _, told = bench()
    assert code == 130
    assert told["faces"] == [] and "requests/s" not in out


def test_the_document_tells_what_was_served_and_with_what(played, bench):
    _, _, _, told = bench("--layers", 3, "--kv-cache-dtype", "fp8", "--seed", 4)
    assert told["format"] == "mlalab-serve-1"
    assert told["machine"] == {"device": "played"}
    assert (told["model"], told["mlp"]) == ("tiny", "dense, in place of experts")
    assert told["setting"]["shape"]["num_layers"] == 3
    assert (told["setting"]["kv_cache_dtype"], told["setting"]["seed"]) == ("fp8", 4)
    assert told["trace"][0] == {"arrival_s": 0.0, "prompt_len": 3, "output_len": 2}
    assert told["faces"][0]["runs"][0]["steps"]["decode"]["tokens"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "tiny-gqa"), "'tiny-gqa' has no decoder to serve"),
        (("--model", "nope"), "Unknown preset 'nope'"),
        (("--faces", "opaque,open"), "Faces are eager, opaque, opaque+passes"),
        (("--levels", "O9"), "Levels are O0, O1, O2, O3, got 'O9'"),
        (("--runs", "0"), "runs must be 1 or more, got 0"),
        (("--rate", "0"), "rate must be requests a second above 0"),
        (("--requests", "-1"), "0 or more requests, got -1"),
        (("--lengths", "0,3"), "prompt_len must be a whole number"),
        (("--lengths", "500,13"), "a request of 513 tokens and tiny has 512 positions"),
        (("--lengths", "20,20", "--num-blocks", "2"), "needs 3 cache blocks and there are 2"),
        (("--num-blocks", "0"), "num_blocks must be a whole number, 1 or more"),
        (("--max-num-batched-tokens", "3"), "must be at least max_num_seqs"),
        (("--dtype", "int8"), "dtype must be one of bfloat16, float16, float32, got 'int8'"),
        (("--kv-cache-dtype", "int4"), "kv_cache_dtype must be one of auto, fp8, got 'int4'"),
        (("--mode", "fast"), "mode must be one of display, inductor, got 'fast'"),
        (
            ("--cuda-graphs", "SOME"),
            "cuda_graphs must be one of NONE, PIECEWISE, FULL,",
        ),
        (("--trace", "/nonexistent.jsonl"), "Cannot read /nonexistent.jsonl"),
        (("--out", "/nonexistent/o.json"), "does not exist"),
        (("--layers", "0"), "num_layers must be a whole number, 1 or more, got 0"),
        (("--device", "nope"), "Cannot use device"),
    ],
)
def test_mistakes_are_one_sentence_before_anything_is_compiled(played, bench, options, message):
    played.served = []
    code, out, err, _ = bench(*options, trace=False)
    assert (code, out, played.served) == (2, "", [])
    assert message in err
    assert err.count("\n") == 1


def test_a_tiny_decoder_is_served_for_real(bench):
    before = torch.get_num_threads()
    options = ("--faces", "eager,opaque", "--runs", 1, "--kv-cache-dtype", "fp8")
    code, out, err, told = bench(*options)
    assert code == 0, err
    eager, opaque = told["faces"]
    assert (eager["set_up"]["graphs"], eager["set_up"]["compile_s"]) == (0, 0.0)
    assert opaque["set_up"]["graphs"] > 0 and opaque["set_up"]["compile_s"] > 0
    assert opaque["compiled_later"] == opaque["differing"] == 0
    assert opaque["runs"][0]["summary"]["output_tokens"] == 3
    assert opaque["runs"][0]["summary"]["requests"] == 2
    assert "a rehearsal: on a CPU" in out
    assert torch.get_num_threads() == before
