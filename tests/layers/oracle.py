"""The oracle nobody here wrote: transformers' DeepSeek attention, and our layer beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DeepseekV2Config, DeepseekV3Config, DynamicCache
from transformers.models.deepseek_v2 import modeling_deepseek_v2 as v2
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3

from mlalab.context import BatchMetadata, ForwardContext, forward_context, make_batch
from mlalab.layers.mla import MLAAttention, MLAOptions
from mlalab.shapes import MLAShape, RopeSpec

CONFIGS = {"v2": DeepseekV2Config, "v3": DeepseekV3Config}
ATTENTION = {"v2": v2.DeepseekV2Attention, "v3": v3.DeepseekV3Attention}
ROTARY = {"v2": v2.DeepseekV2RotaryEmbedding, "v3": v3.DeepseekV3RotaryEmbedding}

YARN = {
    **{"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0},
    **{"original_max_position_embeddings": 16, "beta_fast": 32.0, "beta_slow": 1.0},
}
ROPES = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "yarn": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    "yarn-mscales-differ": {**YARN, "mscale": 1.3, "mscale_all_dim": 0.707},
    "yarn-no-mscale": YARN,
}
BLOCK_SIZE = 4
TOLERANCE = 1e-5


def make_config(family: str = "v2", rope: str = "yarn", q_lora_rank: int | None = 28, **more):
    """Return a tiny config in which no two sizes are equal."""
    sizes = {
        **{"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 3},
        **{"qk_nope_head_dim": 24, "qk_rope_head_dim": 16, "v_head_dim": 20},
        **{"kv_lora_rank": 40, "q_lora_rank": q_lora_rank, "max_position_embeddings": 128},
    }
    kept = {"rope_parameters": dict(ROPES[rope]), "attn_implementation": "eager"}
    return CONFIGS[family](**{**sizes, **kept, **more})


def randomize(module: nn.Module) -> None:
    """Give every weight a size that matters, norms and biases included."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif parameter.dim() == 1:
                parameter.normal_(std=0.3)
            else:
                parameter.normal_(std=parameter.size(-1) ** -0.5)


@dataclass
class Oracle:
    """One transformers attention layer."""

    family: str
    config: DeepseekV2Config | DeepseekV3Config
    attention: nn.Module

    @classmethod
    def random(cls, family: str, **config) -> Oracle:
        built = make_config(family, **config)
        attention = ATTENTION[family](built, layer_idx=0).eval()
        randomize(attention)
        return cls(family, built, attention)

    @torch.no_grad()
    def run(self, hidden_TD: Tensor, chunks: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return outputs `[T, D]` and cached rows `[T, C]` of one request, run in `chunks`."""
        rotary, cache = ROTARY[self.family](self.config), DynamicCache(config=self.config)
        outputs, start = [], 0
        for length in chunks:
            positions = torch.arange(start, start + length)
            future = torch.arange(start + length) > positions[:, None]
            hidden = hidden_TD[None, start : start + length]
            output, _ = self.attention(
                hidden,
                position_embeddings=rotary(hidden, positions[None]),
                attention_mask=future.float().masked_fill(future, -torch.inf)[None, None],
                past_key_values=cache,
            )
            outputs.append(output[0])
            start += length
        layer = cache.layers[self.attention.layer_idx]
        return torch.cat(outputs), torch.cat((layer.keys, self._unsplit(layer.values)), -1)[0, 0]

    def _unsplit(self, k_pe: Tensor) -> Tensor:
        """Undo V3's habit of returning interleaved pairs as [evens | odds]."""
        if self.family == "v2" or not self.config.rope_interleave:
            return k_pe
        return torch.stack(k_pe.chunk(2, dim=-1), dim=-1).flatten(-2)

    def shape(self) -> MLAShape:
        """Return the same sizes as ours, written out by hand."""
        config, rope = self.config, dict(self.config.rope_parameters)
        rope_type, theta = rope.pop("rope_type"), rope.pop("rope_theta")
        is_neox = self.family == "v3" and not config.rope_interleave
        return MLAShape(
            hidden_size=config.hidden_size,
            num_heads=config.num_attention_heads,
            qk_nope_head_dim=config.qk_nope_head_dim,
            qk_rope_head_dim=config.qk_rope_head_dim,
            v_head_dim=config.v_head_dim,
            kv_lora_rank=config.kv_lora_rank,
            q_lora_rank=config.q_lora_rank,
            attention_bias=config.attention_bias,
            max_position_embeddings=config.max_position_embeddings,
            rope=RopeSpec(kind=rope_type, theta=theta, is_neox=is_neox, **rope),
        )

    def twin(self, **options) -> MLAAttention:
        """Return our layer with the same weights."""
        layer = MLAAttention(self.shape(), options=MLAOptions(**options))
        layer.load_state_dict(self.attention.state_dict())
        return layer


def run_step(
    layer: MLAAttention, batch: BatchMetadata, hidden_TD: Tensor, *, pad_to: int = 0
) -> Tensor:
    """Run one step of `layer` on the requests of `batch`."""
    slots = batch.slot_mapping(layer.kv_cache.block_size)
    context = ForwardContext(
        layers={layer.layer_name: layer}, metadata=batch, slot_mapping=slots, checked=not pad_to
    )
    positions = batch.positions()
    if pad_to:
        extra = pad_to - batch.num_tokens
        positions = torch.cat((positions, positions.new_zeros(extra)))
        hidden_TD = torch.cat((hidden_TD, torch.randn(extra, hidden_TD.size(1))))
    with forward_context(context):
        return layer(positions, hidden_TD)


def run_request(
    layer: MLAAttention, hidden_TD: Tensor, chunks: Iterable[tuple[str, int]]
) -> tuple[Tensor, Tensor]:
    """Return outputs and cached rows of one request, run alone; a chunk is (path, tokens)."""
    total = hidden_TD.size(0)
    layer.allocate_cache(math.ceil(total / BLOCK_SIZE), BLOCK_SIZE)
    outputs, start = [], 0
    for path, length in chunks:
        decodes = int(path == "decode")
        batch = make_batch([length], [start], num_decodes=decodes, block_size=BLOCK_SIZE)
        outputs.append(run_step(layer, batch, hidden_TD[start : start + length]))
        start += length
    return torch.cat(outputs), layer.kv_cache.rows_SC[:total]


def assert_close(name: str, ours: Tensor, theirs: Tensor, tolerance: float = TOLERANCE) -> None:
    """Compare two tensors of order one, by largest absolute difference."""
    assert theirs.abs().max() > 0.1, f"{name}: the reference is nearly zero"
    torch.testing.assert_close(
        ours, theirs, atol=tolerance, rtol=0, msg=lambda text: f"{name}: {text}"
    )
