"""A small decoder on the CPU, and an engine around it."""

from __future__ import annotations

from collections.abc import Sequence

from mlalab.layers.options import LayerOptions
from mlalab.serving.blocks import BlockPool
from mlalab.serving.clock import Clock, VirtualClock
from mlalab.serving.engine import Engine
from mlalab.serving.model import Decoder, Graph, decoder_shape
from mlalab.serving.requests import RequestSpec
from mlalab.serving.runner import ModelRunner
from mlalab.serving.scheduler import Scheduler

BLOCK, BLOCKS, LONGEST = 4, 24, 40
VOCAB = 256
# Short and long prompts, one-token outputs, one request that arrives when all others are done.
TRACE = tuple(
    RequestSpec(*fields)
    for fields in [
        *((0.0, 5, 6), (0.0, 19, 4), (0.0, 1, 1), (0.02, 9, 7), (0.02, 16, 2)),
        *((0.03, 2, 9), (5.0, 4, 3)),
    ]
)


def decoder(**options: object) -> Decoder:
    """Return two layers in fp32; every call gives the same weights."""
    model = Decoder(decoder_shape("tiny", 2), LayerOptions(**options))
    model.allocate_cache(BLOCKS, BLOCK)
    return model


def scheduler(**limits: int) -> Scheduler:
    return Scheduler(
        BlockPool(limits.pop("blocks", BLOCKS), BLOCK),
        **{"max_num_batched_tokens": 8, "max_num_seqs": 4, "max_model_len": LONGEST} | limits,
    )


def engine(
    model: Decoder, graph: Graph | None = None, clock: Clock | None = None, **limits: int
) -> Engine:
    """Return an engine with a small budget, so that prompts go in chunks."""
    runner = ModelRunner(model, graph, max_model_len=LONGEST, block_size=BLOCK)
    return Engine(
        scheduler(**limits), runner, vocab_size=VOCAB, clock=clock or VirtualClock(step_s=0.01)
    )


def alone(model: Decoder, prompts: Sequence[Sequence[int]], trace=TRACE) -> list[tuple[int, ...]]:
    """Return the outputs of each request served by itself, its prompt in one piece."""
    server = engine(model, max_num_batched_tokens=LONGEST)
    outputs = []
    for prompt, spec in zip(prompts, trace, strict=True):
        request = server.scheduler.submit(prompt, spec.output_len)
        while not request.finished:
            server.step()
        outputs.append(request.outputs)
    return outputs
