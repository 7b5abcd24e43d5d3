"""Continuous batching: what every step must hold, whatever arrives, is cancelled or fails."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlalab.errors import ConfigError, InputError
from mlalab.serving.blocks import BlockPool
from mlalab.serving.scheduler import Scheduler

BLOCK = 4


def scheduler(blocks=8, tokens=8, seqs=4, longest=24):
    return Scheduler(
        BlockPool(blocks, BLOCK),
        max_num_batched_tokens=tokens,
        max_num_seqs=seqs,
        max_model_len=longest,
    )


def submit(queue, prompt_len, output_len=2):
    return queue.submit([7] * prompt_len, output_len)


def advance(queue):
    """Run a step that gives each request its own number; returns the step."""
    step = queue.schedule()
    queue.complete(step, [1000 + step.requests[at].id for at in step.sampled])
    return step


def told(step):
    """Return what a step is: ids, new and cached tokens, decodes, samples."""
    ids = tuple(request.id for request in step.requests)
    return ids, step.query_lens, step.context_lens, step.num_decodes, step.sampled


def test_a_long_prompt_goes_in_chunks_beside_decodes():
    queue = scheduler()
    short, long = submit(queue, 3, 3), submit(queue, 12, 2)
    assert told(advance(queue)) == ((0, 1), (3, 5), (0, 0), 0, (0,))
    assert told(advance(queue)) == ((0, 1), (1, 7), (3, 5), 1, (0, 1))
    assert told(advance(queue)) == ((0, 1), (1, 1), (4, 12), 2, (0, 1))
    assert (short.outputs, long.outputs) == ((1000,) * 3, (1001,) * 2)
    assert short.finished and long.finished and not queue.busy
    assert queue.pool.num_used == 0
    assert told(queue.schedule()) == ((), (), (), 0, ())


def test_the_last_chunk_of_a_prompt_is_prefill_even_if_it_is_one_token():
    queue = scheduler(tokens=4)
    submit(queue, 5)
    assert told(advance(queue))[1:] == ((4,), (0,), 0, ())
    step = advance(queue)
    assert told(step)[1:] == ((1,), (4,), 0, (0,))
    assert step.kind == "prefill"
    step = advance(queue)
    assert told(step)[1:] == ((1,), (5,), 1, (0,))
    assert step.kind == "decode"


def test_a_one_token_prompt_and_output():
    queue = scheduler()
    request = submit(queue, 1, 1)
    step = advance(queue)
    assert (step.kind, step.num_tokens) == ("prefill", 1)
    assert request.outputs == (1000,) and not queue.busy


def test_no_request_overtakes_the_head_of_the_queue():
    queue = scheduler(blocks=4)
    first, big, small = submit(queue, 6), submit(queue, 12), submit(queue, 1, 1)
    step = advance(queue)
    assert [r.id for r in step.requests] == [first.id]
    assert (queue.num_running, queue.num_waiting) == (1, 2), "big needs 4 blocks, 2 are free"
    while first.id in {r.id for r in queue.schedule().requests}:
        advance(queue)
    assert [r.id for r in advance(queue).requests] == [big.id]
    assert queue.num_waiting == 1
    while queue.busy:
        advance(queue)
    assert small.finished and queue.pool.num_used == 0


def test_more_requests_than_may_run_are_queued():
    queue = scheduler(seqs=2, tokens=2, blocks=100)
    for _ in range(5):
        submit(queue, 1)
    assert told(queue.schedule())[0] == (0, 1)
    assert (queue.num_running, queue.num_waiting) == (2, 3)


def test_nothing_is_admitted_without_a_budget_for_it():
    queue = scheduler(tokens=4, seqs=4)
    submit(queue, 4), submit(queue, 4)
    advance(queue)
    assert (queue.num_running, queue.num_waiting) == (1, 1)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ((0, 1), "a prompt and an output of at least one token, got 0 and 1"),
        ((1, 0), "a prompt and an output of at least one token, got 1 and 0"),
        ((23, 2), "25 tokens is longer than max_model_len=24"),
        ((16, 1), "17 tokens needs 5 cache blocks and there are 4"),
    ],
)
def test_what_can_never_run_is_refused_at_once(lengths, message):
    queue = scheduler(blocks=4)
    with pytest.raises(InputError, match=message):
        submit(queue, *lengths)
    assert not queue.busy
    submit(queue, 15, 1)


@pytest.mark.parametrize("limits", [{"tokens": 3, "seqs": 4}, {"seqs": 0}, {"longest": 0}])
def test_limits_that_cannot_be(limits):
    with pytest.raises(ConfigError, match="max_num_batched_tokens must be at least max_num_seqs"):
        scheduler(**limits)


@pytest.mark.parametrize("steps", [0, 1, 2, 3], ids=["waiting", "prefill", "prompt done", "decode"])
def test_a_cancelled_request_gives_its_blocks_back(steps):
    queue = scheduler(blocks=6, tokens=4)
    doomed, other = submit(queue, 8, 4), submit(queue, 4, 2)
    for _ in range(steps):
        advance(queue)
    queue.cancel(doomed.id)
    while queue.busy:
        assert doomed not in advance(queue).requests
    assert other.finished and not doomed.finished
    assert queue.pool.num_used == 0
    with pytest.raises(InputError, match=f"Cannot cancel request {doomed.id}: it is not waiting"):
        queue.cancel(doomed.id)


def test_a_request_cancelled_during_its_step_is_passed_over():
    queue = scheduler()
    doomed, other = submit(queue, 3), submit(queue, 2)
    step = queue.schedule()
    queue.cancel(doomed.id)
    assert queue.complete(step, [5, 6]) == (other,)
    assert (doomed.outputs, other.outputs) == ((), (6,))
    assert doomed.num_cached == 0


def test_a_step_that_was_not_completed_is_scheduled_again():
    queue = scheduler()
    submit(queue, 5), submit(queue, 9)
    advance(queue)
    step = queue.schedule()
    assert queue.schedule() == step
    submit(queue, 1)
    later = queue.schedule()
    assert later.requests[:2] == step.requests, "what came since does not push it aside"


def test_abort_leaves_nothing():
    queue = scheduler(seqs=1, tokens=2)
    submit(queue, 5), submit(queue, 5)
    advance(queue)
    queue.abort()
    assert not queue.busy and queue.pool.num_used == 0


def test_a_step_is_completed_once_and_with_the_tokens_it_asks_for():
    queue = scheduler()
    submit(queue, 3, 1)
    step = queue.schedule()
    with pytest.raises(InputError, match="asks for 1 tokens and got 2"):
        queue.complete(step, [1, 2])
    assert queue.schedule() == step
    queue.complete(step, [1])
    with pytest.raises(InputError, match="completed before"):
        queue.complete(step, [1])
    assert queue.pool.num_used == 0


REQUESTS = st.lists(st.tuples(st.integers(1, 16), st.integers(1, 8)), max_size=10)


def check(queue, step):
    """Assert what must hold of every step."""
    assert step.num_tokens <= queue.max_num_batched_tokens
    assert len(step.requests) <= queue.max_num_seqs
    assert all(length > 0 for length in step.query_lens)
    decodes = [request.decodes for request in step.requests]
    assert decodes == sorted(decodes, reverse=True) and sum(decodes) == step.num_decodes
    assert step.query_lens[: step.num_decodes] == (1,) * step.num_decodes
    blocks = [block for request in queue._running.values() for block in request.blocks]
    assert len({*blocks}) == len(blocks) == queue.pool.num_used
    for request in step.requests:
        assert request.blocks.size * BLOCK >= request.num_tokens


@given(REQUESTS, st.integers(0, 2**32), st.integers(1, 4), st.integers(6, 12), st.integers(0, 6))
def test_whatever_comes(lengths, seed, seqs, blocks, spare):
    chance = random.Random(seed)
    queue = scheduler(blocks=blocks, tokens=seqs + spare, seqs=seqs)
    requests, cancelled, admitted = [], set(), []
    todo = list(lengths)
    while todo or queue.busy:
        if todo and chance.random() < 0.5:
            requests.append(submit(queue, *todo.pop()))
        alive = [r.id for r in requests if not r.finished and r.id not in cancelled]
        if alive and chance.random() < 0.1:
            doomed = chance.choice(alive)
            cancelled.add(doomed)
            queue.cancel(doomed)
        before = {r.id: r.num_cached for r in queue._running.values()}
        step = queue.schedule()
        check(queue, step)
        admitted += [i for i in queue._running if i not in admitted]
        assert admitted == sorted(admitted), "first come, first served"
        decoding = [r.id for r in queue._running.values() if r.decodes]
        assert {*decoding} <= {r.id for r in step.requests}, "who decodes is served every step"
        waits = [i for i in before if i not in {r.id for r in step.requests}]
        assert not waits or step.num_tokens == queue.max_num_batched_tokens
        assert step.requests or not queue.busy, "a request is there and no step serves any"
        if chance.random() < 0.8:
            queue.complete(step, [1000 + step.requests[at].id for at in step.sampled])
    assert queue.pool.num_free == blocks
    for request in requests:
        if request.id not in cancelled:
            assert request.outputs == (1000 + request.id,) * request.output_len
