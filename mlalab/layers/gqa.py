"""An ordinary attention layer, as Llama has it: grouped queries over a paged key/value cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import mlalab.ops  # noqa: F401  registers torch.ops.mlalab
from mlalab.cache import PagedKVCache
from mlalab.context import BatchMetadata
from mlalab.errors import ContextError
from mlalab.kernels import pick
from mlalab.layers.fused import fused_gqa_update
from mlalab.layers.options import LayerOptions, build_rope
from mlalab.rope import RotaryEmbedding
from mlalab.shapes import GQAShape


class GQAAttention(nn.Module):
    """Attention over `hidden [T, D]`; `qkv_proj` holds a checkpoint's q, k and v weights.

    For inference: its ops write in place and have no backward, so parameters want no gradient.

    Args:
        shape: sizes on this rank.
        layer_name: key of this layer in the forward context.
    """

    kind = "gqa"

    def __init__(
        self,
        shape: GQAShape,
        layer_name: str = "model.layers.0.self_attn",
        options: LayerOptions = LayerOptions(),  # noqa: B008  frozen
    ) -> None:
        super().__init__()
        self.shape, self.layer_name, self.options = shape, layer_name, options
        factory: dict[str, Any] = {
            **{"dtype": options.dtype, "device": options.device},
            "bias": shape.attention_bias,
        }
        qkv_size = shape.q_size + 2 * shape.kv_size
        self.qkv_proj = nn.Linear(shape.hidden_size, qkv_size, **factory)
        self.o_proj = nn.Linear(shape.q_size, shape.hidden_size, **factory)
        # As in vLLM, YaRN changes the table here, not the form of the rotation.
        self.rotary_emb = build_rope(
            *(None if shape.rope.kind == "none" else RotaryEmbedding, shape.rope, shape.head_dim),
            *(shape.max_position_embeddings, options),
        )
        self.softmax_scale = shape.head_dim**-0.5
        one = torch.ones((), dtype=torch.float32, device=options.device)
        self.register_buffer("k_scale", one.clone(), persistent=False)
        self.register_buffer("v_scale", one.clone(), persistent=False)
        self._kv_cache: PagedKVCache | None = None
        self.requires_grad_(False)

    k_scale: Tensor
    v_scale: Tensor

    def forward(self, positions: Tensor, hidden_TD: Tensor) -> Tensor:
        """Return `[T, D]`; writes the new rows into the cache of the forward context's layer.

        Args:
            positions: `[T]` int64.
            hidden_TD: `[T, D]`.
        """
        shape = self.shape
        sizes = [shape.q_size, shape.kv_size, shape.kv_size]
        q_TW, k_TW, v_TW = self.qkv_proj(hidden_TD).split(sizes, dim=-1)
        fused = self.options.fusion == "layer" and self.rotary_emb is not None
        if self.rotary_emb is not None and not fused:
            q_TW, k_TW = self.rotary_emb(positions, q_TW, k_TW)
        q_TNH = q_TW.view(-1, shape.num_heads, shape.head_dim)
        k_TGH, v_TGH = (x.view(-1, shape.num_kv_heads, shape.head_dim) for x in (k_TW, v_TW))
        if fused:
            dummy = fused_gqa_update(self, positions, q_TNH, k_TGH, v_TGH)
        else:
            dummy = torch.ops.mlalab.unified_kv_cache_update(k_TGH, v_TGH, self.layer_name)
        output = q_TW.new_empty((q_TW.size(0), shape.q_size))
        torch.ops.mlalab.unified_attention_with_output(
            q_TNH, k_TGH, v_TGH, output, self.layer_name, kv_cache_dummy_dep=dummy
        )
        return self.o_proj(output)

    @property
    def kv_cache(self) -> PagedKVCache:
        """The layer's cache."""
        if self._kv_cache is None:
            raise ContextError(
                f"Layer {self.layer_name!r} has no cache yet; "
                f"call layer.allocate_cache(num_blocks)."
            )
        return self._kv_cache

    def allocate_cache(self, num_blocks: int, block_size: int = 16) -> PagedKVCache:
        """Give the layer a zeroed cache of `num_blocks × block_size` rows and return it."""
        self._kv_cache = PagedKVCache(
            *(num_blocks, block_size, self.shape.num_kv_heads, self.shape.head_dim),
            kv_cache_dtype=self.options.kv_cache_dtype,
            dtype=self.options.dtype,
            device=self.options.device,
        )
        return self._kv_cache

    def attend(self, q_TNH: Tensor, metadata: BatchMetadata) -> Tensor:
        """Return attention of the batch, `[T, N, H]`; its keys and values are in the cache."""
        return pick("paged_attention", q_TNH.device)(
            *(q_TNH, self.kv_cache.typed, metadata.block_table),
            *(metadata.query_lens, metadata.seq_lens, self.softmax_scale),
            *(self.k_scale, self.v_scale),
        )
