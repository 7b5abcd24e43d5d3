"""Serving a real, tiny decoder: right tokens, right times, and what is left behind by a failure."""

from __future__ import annotations

import pytest

from mlalab.compile.config import PassConfig
from mlalab.compile.dispatch import CompiledModel
from mlalab.compile.settings import CompileConfig
from mlalab.errors import InputError, ServingError
from mlalab.serving.clock import VirtualClock
from mlalab.serving.engine import Engine, StepsTaken
from mlalab.serving.requests import RequestSpec, prompt_tokens
from mlalab.shapes import preset
from tests.serving.decoders import TRACE, VOCAB, alone, decoder, engine, scheduler

PROMPTS = [prompt_tokens(spec, index, VOCAB) for index, spec in enumerate(TRACE)]


@pytest.fixture(scope="module")
def expected():
    """What each request gets when it is served alone."""
    return alone(decoder(), PROMPTS)


def test_tokens_in_company_are_those_of_each_request_alone(expected):
    result = engine(decoder()).run(TRACE)
    assert list(result.tokens) == expected
    assert set(result.steps) == {"decode", "mixed", "prefill"}
    assert len({*result.tokens[0], *result.tokens[5]}) > 5, "a constant would prove nothing"


@pytest.mark.parametrize("limits", [{"blocks": 10}, {"max_num_seqs": 1}, {"max_num_seqs": 8}])
def test_tokens_do_not_depend_on_how_requests_are_batched(expected, limits):
    assert list(engine(decoder(), **limits).run(TRACE).tokens) == expected


@pytest.mark.parametrize(("exposed", "passes"), [(False, False), (True, True)])
def test_compiled_faces_say_the_same(expected, exposed, passes):
    model = decoder(exposed=exposed)
    config = PassConfig(fuse_rope_kvcache_cat_mla=passes)
    settings = {"max_num_batched_tokens": 8, "max_num_seqs": 4, "pass_config": config}
    graph = CompiledModel(model.stack, CompileConfig(mode="display", **settings))
    graph.warm_up()
    compiled = len(graph.entries)
    result = engine(model, graph).run(TRACE[:4])
    assert list(result.tokens) == expected[:4] and "mixed" in result.steps
    assert len(graph.entries) == compiled, "a batch of the run met no graph of the warm-up"


def test_an_exposed_model_says_the_same_uncompiled(expected):
    assert list(engine(decoder(exposed=True)).run(TRACE).tokens) == expected


def scripted(clock, **limits):
    """Return an engine whose model answers with zeros, at no cost."""
    return Engine(
        scheduler(**limits), lambda step: [0] * len(step.sampled), vocab_size=VOCAB, clock=clock
    )


def test_times_by_a_clock_that_is_known():
    trace = (RequestSpec(0.25, 3, 2), RequestSpec(0.5, 12, 1), RequestSpec(8.0, 1, 1))
    result = scripted(VirtualClock(step_s=1.0)).run(trace)
    assert [times.token_s for times in result.times] == [(1.25, 2.25), (3.25,), (9.0,)]
    assert [times.arrival_s for times in result.times] == [0.25, 0.5, 8.0]
    # The second came during a step, waits for it, and shares the next with a decode.
    assert result.steps == {"prefill": StepsTaken(3, 9, 3.0), "mixed": StepsTaken(1, 8, 1.0)}


def test_an_engine_serves_one_trace_after_the_other():
    server = scripted(VirtualClock(step_s=1.0))
    first, again = server.run(TRACE), server.run(TRACE)
    assert first == again
    empty = server.run(())
    assert (empty.tokens, empty.times, empty.steps) == ((), (), {})


def test_a_trace_with_a_request_that_cannot_run_is_refused_before_anything_runs():
    ran = []
    server = Engine(scheduler(), ran.append, vocab_size=VOCAB, clock=VirtualClock())
    with pytest.raises(InputError, match="longer than max_model_len"):
        server.run((RequestSpec(0.0, 1, 1), RequestSpec(0.0, 39, 2)))
    assert not ran and not server.scheduler.busy


def test_a_trace_beside_requests_that_are_there_already_is_refused():
    server = scripted(VirtualClock())
    server.scheduler.submit([1, 2], 2)
    with pytest.raises(ServingError, match="being served already"):
        server.run(TRACE[:1])
    assert server.scheduler.busy


class Failing:
    """An attention op that raises on some of its calls."""

    def __init__(self, monkeypatch, model, calls):
        self.seen, self.calls = 0, calls
        layer = next(reversed(model.attention_layers.values()))
        self.attend = layer.attend
        monkeypatch.setattr(layer, "attend", self)

    def __call__(self, *arguments, **options):
        self.seen += 1
        if self.seen in self.calls:
            raise RuntimeError("the kernel is on fire")
        return self.attend(*arguments, **options)


def finish(server):
    while server.scheduler.busy:
        server.step()
    assert server.scheduler.pool.num_used == 0


@pytest.mark.parametrize("call", [1, 2, 3, 5])
def test_a_step_that_fails_can_be_run_again(monkeypatch, expected, call):
    """The last layer fails: the cache rows of the first are written, and written again."""
    model = decoder()
    Failing(monkeypatch, model, {call})
    server = engine(model)
    requests = [server.scheduler.submit(PROMPTS[i], TRACE[i].output_len) for i in (0, 1, 3)]
    with pytest.raises(ServingError, match=r"step of \d+ tokens .* failed with RuntimeError: th"):
        finish(server)
    used = server.scheduler.pool.num_used
    assert used == sum(r.blocks.size for r in requests if r.blocks is not None and not r.finished)
    finish(server)
    assert [r.outputs for r in requests] == [expected[i] for i in (0, 1, 3)]


def test_after_a_failure_a_request_can_be_cancelled(monkeypatch, expected):
    model = decoder()
    Failing(monkeypatch, model, {2})
    server = engine(model)
    doomed, other = (server.scheduler.submit(PROMPTS[i], TRACE[i].output_len) for i in (0, 1))
    with pytest.raises(ServingError):
        finish(server)
    server.scheduler.cancel(doomed.id)
    finish(server)
    assert other.outputs == expected[1] and not doomed.finished


def test_a_failure_ends_a_whole_run_and_leaves_nothing(monkeypatch, expected):
    model = decoder()
    Failing(monkeypatch, model, {4})
    server = engine(model)
    with pytest.raises(ServingError, match="the kernel is on fire; no request moved on"):
        server.run(TRACE)
    assert not server.scheduler.busy
    assert server.scheduler.pool.num_used == 0
    assert list(server.run(TRACE).tokens) == expected


@pytest.mark.parametrize("steps", [0, 1, 3, 5])
def test_a_request_cancelled_midway_disturbs_no_other(expected, steps):
    server = engine(decoder())
    requests = [server.scheduler.submit(p, s.output_len) for p, s in zip(PROMPTS, TRACE, strict=1)]
    for _ in range(steps):
        server.step()
    server.scheduler.cancel(requests[1].id)
    finish(server)
    assert [r.outputs for i, r in enumerate(requests) if i != 1] == expected[:1] + expected[2:]
    assert not requests[1].finished


def test_no_batch_is_larger_than_what_was_compiled():
    """The scheduler's budget is the compiled model's, so the largest range always holds."""
    sizes = []

    def graph(positions, hidden_TD):
        sizes.append(positions.size(0))
        return hidden_TD

    engine(decoder(), graph, max_num_batched_tokens=5).run((RequestSpec(0.0, 36, 2),) * 6)
    assert max(sizes) == 5


def test_a_lost_block_or_request_is_told():
    server = scripted(VirtualClock())
    server.scheduler.pool.allocate(1)
    with pytest.raises(ServingError, match="1 cache blocks were lost"):
        server.run(TRACE[:2])
    forgetful = scripted(VirtualClock())
    monkey = forgetful.scheduler.schedule
    forgetful.scheduler.schedule = lambda: (forgetful.scheduler.abort(), monkey())[1]
    with pytest.raises(ServingError, match="took in 2 and left 2 of them unfinished"):
        forgetful.run(TRACE[:2])


def test_the_preset_holds_the_trace():
    assert preset("tiny").max_position_embeddings >= max(s.num_tokens for s in TRACE)
