"""From a step of the scheduler to the tokens it brings: one forward pass of a decoder.

What a step needs on the device goes there in one copy, and the block table in another, only when
the requests of the step are others than those of the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mlalab.context import BatchMetadata, ForwardContext, forward_context
from mlalab.serving.model import Decoder, Graph
from mlalab.serving.steps import Request, Step
from mlalab_kernels.mla_decode_attention.lengths import DeviceLengths


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What a forward pass of one step takes, on the device.

    Args:
        token_ids, positions, slots: `[T]` int64.
        sampled: `[S]` int64, the rows that a next token is read from; None: all of them.
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    sampled: Tensor | None
    metadata: BatchMetadata


class ModelRunner:
    """Runs steps; called with a step, returns a token for each request of `step.sampled`.

    Args:
        decoder: with caches of `block_size`.
        graph: what runs the decoder's stack: itself, or a compiled form of it.
        max_model_len: most tokens of a request, which every block table is wide enough for.
    """

    def __init__(
        self, decoder: Decoder, graph: Graph | None = None, *, max_model_len: int, block_size: int
    ) -> None:
        self.decoder, self.graph = decoder, graph or decoder.stack
        self._layers = decoder.attention_layers
        self._device, self._block_size = decoder.device, block_size
        self._width = -(-max_model_len // block_size)
        self._served: tuple[Request, ...] = ()
        self._blocks = np.zeros((0, self._width), dtype=np.int32)
        self._block_table = torch.from_numpy(self._blocks).to(self._device)

    def __call__(self, step: Step) -> list[int]:
        """Run the step and return the likeliest token of each sampled row; waits for the device."""
        tokens: list[int] = self.logits(step).argmax(-1).tolist()
        return tokens

    def logits(self, step: Step) -> Tensor:
        """Run the step and return the logits of each sampled row, `[S, W]`."""
        inputs = self.prepare(step)
        context = ForwardContext(
            layers=self._layers,
            metadata=inputs.metadata,
            slot_mapping=inputs.slots,
            checked=False,
        )
        with torch.no_grad(), forward_context(context):
            hidden_TD = self.graph(inputs.positions, self.decoder.embed_tokens(inputs.token_ids))
            rows = hidden_TD if inputs.sampled is None else hidden_TD[inputs.sampled]
            return self.decoder.logits(rows)

    def prepare(self, step: Step) -> StepInputs:
        """Return what the forward pass of this step takes."""
        self._lay_out_blocks(step)
        query_lens = np.array(step.query_lens, dtype=np.int64)
        contexts = np.array(step.context_lens, dtype=np.int64)
        ends = query_lens.cumsum()
        request_of = np.arange(query_lens.size).repeat(query_lens)
        within = np.arange(request_of.size) - (ends - query_lens)[request_of]
        positions = contexts[request_of] + within
        blocks = self._blocks[request_of, positions // self._block_size].astype(np.int64)
        slots = blocks * self._block_size + positions % self._block_size
        sampled = ends[list(step.sampled)] - 1
        decodes = slice(step.num_decodes)
        starts = np.concatenate(([0], ends[decodes]))
        seq_lens = (contexts + query_lens)[decodes]
        arrays = (_tokens_of(step), positions, slots, sampled)
        lengths = (starts.astype(np.int32), seq_lens.astype(np.int32))
        on_device = self._to_device(*arrays, *lengths)
        token_ids, positions_T, slots_T, sampled_S, starts_R, seq_lens_R = on_device
        metadata = BatchMetadata(
            query_lens=step.query_lens,
            context_lens=step.context_lens,
            num_decodes=step.num_decodes,
            block_table=self._block_table,
            decode_lengths=DeviceLengths(starts_R, seq_lens_R),
        )
        everything = sampled.size == request_of.size
        return StepInputs(
            token_ids, positions_T, slots_T, None if everything else sampled_S, metadata
        )

    def _lay_out_blocks(self, step: Step) -> None:
        """Bring the block table up to date; a request's blocks never change while it runs."""
        if step.requests == self._served:
            return
        blocks = np.zeros((len(step.requests), self._width), dtype=np.int32)
        for row, request in zip(blocks, step.requests, strict=True):
            assert request.blocks is not None
            row[: request.blocks.size] = request.blocks
        self._block_table = torch.from_numpy(blocks).to(self._device)
        self._blocks, self._served = blocks, step.requests

    def _to_device(self, *arrays: npt.NDArray[Any]) -> list[Tensor]:
        """Return the arrays as tensors, copied as one; each begins at a multiple of 16 bytes.

        Elsewhere Triton would compile a kernel once more.
        """
        sizes = [-(-array.nbytes // 16) * 16 for array in arrays]
        # Pinned memory that torch handed out is not handed out again before the copy is done.
        pinned = self._device.type == "cuda"
        host = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=pinned)
        for array, part in zip(arrays, host.split(sizes), strict=True):
            part.numpy()[: array.nbytes] = array.view(np.uint8)
        parts = host.to(self._device, non_blocking=True).split(sizes)
        return [
            part[: array.nbytes].view(torch.from_numpy(array).dtype)
            for array, part in zip(arrays, parts, strict=True)
        ]


def _tokens_of(step: Step) -> npt.NDArray[np.int64]:
    """Return the token ids of the step, `[T]`."""
    spans = zip(step.requests, step.context_lens, step.query_lens, strict=True)
    tokens = [t for r, start, length in spans for t in r.tokens[start : start + length]]
    return np.array(tokens, dtype=np.int64)
