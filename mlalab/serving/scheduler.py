"""Continuous batching with chunked prefill: which tokens of which requests make up the next step.

Requests are admitted in the order in which they came, once there are blocks for all their tokens,
so that none is ever preempted and none overtakes another. In each step every request that decodes
takes one token of the budget; prompts share the rest, oldest first. Only `complete` moves a
request on: a step that failed can be scheduled again, and is the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np

from mlalab.errors import ConfigError, InputError
from mlalab.serving.blocks import BlockPool
from mlalab.serving.steps import Request, Step


class Scheduler:
    """Queue of requests over a pool of cache blocks.

    Args:
        max_num_batched_tokens: most tokens of a step; at least `max_num_seqs`, so that in every
            step each request that decodes gets its token.
        max_num_seqs: most requests that are admitted at a time.
        max_model_len: most tokens of a request, prompt and output together.

    Raises:
        ConfigError: a limit that cannot be used.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_num_batched_tokens: int,
        max_num_seqs: int,
        max_model_len: int,
    ) -> None:
        if min(max_num_seqs, max_model_len) < 1 or max_num_batched_tokens < max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens must be at least max_num_seqs, and every limit at least "
                f"1, got max_num_batched_tokens={max_num_batched_tokens}, "
                f"max_num_seqs={max_num_seqs} and max_model_len={max_model_len}."
            )
        self.pool, self.max_model_len = pool, max_model_len
        self.max_num_batched_tokens, self.max_num_seqs = max_num_batched_tokens, max_num_seqs
        self._waiting: deque[Request] = deque()
        self._running: dict[int, Request] = {}
        self._next_id = 0

    @property
    def num_waiting(self) -> int:
        """Requests that are not admitted yet."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests that are admitted and not finished."""
        return len(self._running)

    @property
    def busy(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self._waiting or self._running)

    def check(self, prompt_len: int, output_len: int) -> None:
        """Refuse a request that could never run.

        Raises:
            InputError: no prompt or output, or too long for the model or for the whole cache.
        """
        total = prompt_len + output_len
        if min(prompt_len, output_len) < 1:
            raise InputError(
                f"A request needs a prompt and an output of at least one token, got {prompt_len} "
                f"and {output_len}."
            )
        if total > self.max_model_len:
            raise InputError(
                f"A request of {total} tokens is longer than max_model_len={self.max_model_len}; "
                f"shorten its prompt or output."
            )
        if self.pool.blocks_for(total) > self.pool.num_blocks:
            raise InputError(
                f"A request of {total} tokens needs {self.pool.blocks_for(total)} cache blocks "
                f"and there are {self.pool.num_blocks}; shorten it or allocate more blocks."
            )

    def submit(self, prompt: Sequence[int], output_len: int) -> Request:
        """Queue a request.

        Args:
            prompt: token ids.

        Raises:
            InputError: it could never run.
        """
        self.check(len(prompt), output_len)
        request = Request(self._next_id, [*prompt], len(prompt), output_len)
        self._next_id += 1
        self._waiting.append(request)
        return request

    def cancel(self, request_id: int) -> None:
        """Forget a request, wherever it is, and release its blocks.

        Raises:
            InputError: no such request is waiting or running.
        """
        if request_id in self._running:
            self._retire(self._running[request_id])
            return
        waiting = next((r for r in self._waiting if r.id == request_id), None)
        if waiting is None:
            raise InputError(f"Cannot cancel request {request_id}: it is not waiting or running.")
        self._waiting.remove(waiting)

    def abort(self) -> None:
        """Cancel every request."""
        self._waiting.clear()
        for request in [*self._running.values()]:
            self._retire(request)

    def schedule(self) -> Step:
        """Return the next step, admitting what there is room for; without requests, an empty one.

        The step is computed anew until it is completed, so after a failure it can be run again.
        """
        decodes = [r for r in self._running.values() if r.decodes]
        budget = self.max_num_batched_tokens - len(decodes)
        chunks: list[tuple[Request, int]] = []
        # Going on admits the next request, so it must not happen without a budget for it.
        for request in self._prefilling():
            chunk = min(request.prompt_len - request.num_cached, budget)
            chunks.append((request, chunk))
            budget -= chunk
            if budget == 0:
                break
        requests = (*decodes, *(request for request, _ in chunks))
        return Step(
            requests,
            (1,) * len(decodes) + tuple(chunk for _, chunk in chunks),
            tuple(request.num_cached for request in requests),
            len(decodes),
        )

    def _prefilling(self) -> Iterator[Request]:
        """Yield requests with prompts to cache, oldest first, admitted one by one as asked for."""
        yield from [r for r in self._running.values() if not r.decodes]
        while self._waiting and self.num_running < self.max_num_seqs:
            needed = self.pool.blocks_for(self._waiting[0].num_tokens)
            if needed > self.pool.num_free:
                return
            request = self._waiting.popleft()
            request.blocks = np.array(self.pool.allocate(needed), dtype=np.int32)
            self._running[request.id] = request
            yield request

    def complete(self, step: Step, next_tokens: Sequence[int]) -> tuple[Request, ...]:
        """Take in what a step computed, and return the requests that got a token.

        A request that was cancelled since is passed over; one that is finished gives its blocks
        back.

        Args:
            next_tokens: a token for each request of `step.sampled`.

        Raises:
            InputError: as many tokens as the step does not ask for, or a step that is out of date.
        """
        if len(next_tokens) != len(step.sampled):
            raise InputError(
                f"The step asks for {len(step.sampled)} tokens and got {len(next_tokens)}."
            )
        pairs = zip(step.requests, step.context_lens, strict=True)
        if any(request.num_cached != context for request, context in pairs):
            raise InputError("The step was completed before; schedule a new one.")
        for request, length in zip(step.requests, step.query_lens, strict=True):
            if request.id in self._running:
                request.num_cached += length
        pairs_told = zip((step.requests[at] for at in step.sampled), next_tokens, strict=True)
        told = [(r, token) for r, token in pairs_told if r.id in self._running]
        for request, token in told:
            request.tokens.append(token)
            if request.finished:
                self._retire(request)
        return tuple(request for request, _ in told)

    def _retire(self, request: Request) -> None:
        assert request.blocks is not None
        self.pool.release(request.blocks.tolist())
        del self._running[request.id]
