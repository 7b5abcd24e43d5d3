"""A batch whose tensors stay where they are: what a CUDA graph reads, filled for each replay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mlalab.cache import PAD_SLOT
from mlalab.compile.settings import CompileConfig
from mlalab.context import BatchMetadata, ForwardContext
from mlalab.ops.checks import check_slot_count
from mlalab_kernels.mla_decode_attention.lengths import DeviceLengths


class StaticBatch:
    """Buffers for batches of up to `rows` tokens.

    Rows beyond a batch have slot -1 and belong to requests without a cached row, so they are
    computed, written nowhere, and read by nobody.

    Args:
        layers: attention layers with caches; sizes and device are those of the first.
        rows: of the largest batch that is captured.
    """

    def __init__(self, layers: Sequence[Any], config: CompileConfig, rows: int) -> None:
        layer = layers[0]
        device = layer.o_proj.weight.device
        blocks = -(-config.max_model_len // layer.kv_cache.block_size)
        self.config, self._layers = config, {x.layer_name: x for x in layers}
        self.positions = torch.zeros(rows, dtype=torch.int64, device=device)
        self.hidden_TD = torch.zeros(
            (rows, layer.shape.hidden_size), dtype=layer.options.dtype, device=device
        )
        self._slots = torch.full((rows,), PAD_SLOT, dtype=torch.int64, device=device)
        requests = rows // config.decode_query_len
        self._block_table = torch.zeros((requests, blocks), dtype=torch.int32, device=device)
        self._seq_lens = torch.zeros(requests, dtype=torch.int32, device=device)
        self._starts = torch.arange(requests + 1, dtype=torch.int32, device=device)
        self._starts *= config.decode_query_len

    def fits(self, metadata: BatchMetadata) -> bool:
        """Return whether the block tables of these requests fit."""
        return metadata.block_table.size(1) <= self._block_table.size(1)

    def fill(
        self, positions: Tensor, hidden_TD: Tensor, slot_mapping: Tensor | None, size: int
    ) -> None:
        """Take over a batch of at most `size` tokens, and make the rest of the rows padding.

        Raises:
            InputError: slots of more tokens than there are.
        """
        tokens = positions.size(0)
        if slot_mapping is not None:
            check_slot_count(slot_mapping, tokens)
        self.positions[:tokens].copy_(positions)
        self.positions[tokens:size].zero_()
        self.hidden_TD[:tokens].copy_(hidden_TD)
        written = 0 if slot_mapping is None else slot_mapping.size(0)
        if slot_mapping is not None:
            self._slots[:written].copy_(slot_mapping)
        self._slots[written:size].fill_(PAD_SLOT)

    def fill_requests(self, metadata: BatchMetadata, size: int) -> None:
        """Take over the requests of a uniform decode batch."""
        lengths = metadata.decode_lengths_on(self._seq_lens.device).seq_lens
        requests, blocks = metadata.block_table.shape
        self._block_table[:requests, :blocks].copy_(metadata.block_table)
        self._seq_lens[:requests].copy_(lengths)
        self._seq_lens[requests : size // self.config.decode_query_len].zero_()

    def context(self, size: int, metadata: BatchMetadata | None) -> ForwardContext:
        """Return the forward context of a batch that lies in the first `size` rows."""
        return ForwardContext(
            layers=self._layers,
            metadata=metadata,
            slot_mapping=self._slots[:size],
            # Checks wait for the device.
            checked=False,
        )

    def decode_metadata(self, size: int) -> BatchMetadata:
        """Return a uniform decode batch of `size` tokens, of whose requests only the most is known.

        What the requests are a replay reads from the buffers.
        """
        query_len = self.config.decode_query_len
        requests = size // query_len
        return BatchMetadata(
            query_lens=(query_len,) * requests,
            context_lens=(max(self.config.max_model_len - query_len, 0),) * requests,
            num_decodes=requests,
            block_table=self._block_table[:requests],
            decode_lengths=DeviceLengths(
                self._starts[: requests + 1], self._seq_lens[:requests], changing=True
            ),
        )
