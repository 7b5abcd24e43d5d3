"""A request on its way, and one step of several."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(slots=True, eq=False)
class Request:
    """A request that was submitted.

    Args:
        tokens: prompt and what was generated so far.
        blocks: int32 cache blocks, in order; None before admission.
        num_cached: tokens whose cache rows are written.
    """

    id: int
    tokens: list[int]
    prompt_len: int
    output_len: int
    blocks: npt.NDArray[np.int32] | None = None
    num_cached: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and output together, once it is finished."""
        return self.prompt_len + self.output_len

    @property
    def decodes(self) -> bool:
        """Whether the whole prompt is cached."""
        return self.num_cached >= self.prompt_len

    @property
    def finished(self) -> bool:
        """Whether every output was generated."""
        return len(self.tokens) == self.num_tokens

    @property
    def outputs(self) -> tuple[int, ...]:
        """What was generated so far."""
        return tuple(self.tokens[self.prompt_len :])


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass: decode requests first, then prompts or chunks of them.

    Args:
        query_lens: new tokens of each request.
        context_lens: tokens of each request that are cached already.
        num_decodes: how many of the first requests decode.
        sampled: which requests, by their place, get a token from this step.
    """

    requests: tuple[Request, ...]
    query_lens: tuple[int, ...]
    context_lens: tuple[int, ...]
    num_decodes: int
    sampled: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        last_chunks = (
            place
            for place in range(self.num_decodes, len(self.requests))
            if self.context_lens[place] + self.query_lens[place] == self.requests[place].prompt_len
        )
        object.__setattr__(self, "sampled", (*range(self.num_decodes), *last_chunks))

    @property
    def num_tokens(self) -> int:
        """New tokens of all requests."""
        return sum(self.query_lens)

    @property
    def kind(self) -> str:
        """`decode`, `prefill` or `mixed`."""
        if self.num_decodes == len(self.requests):
            return "decode"
        return "mixed" if self.num_decodes else "prefill"
