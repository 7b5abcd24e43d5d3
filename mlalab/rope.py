"""Rotary embeddings: the tables (plain and YaRN) and the layer's own, native, rotation.

Two native forms stand for the two classes of vLLM, because a compiler sees two different graphs:
`RotaryEmbedding` works on half-width cos and sin, `DeepseekScalingRotaryEmbedding` repeats them to
full width and adds a rotated copy. Their results are equal bit for bit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import mlalab.ops  # noqa: F401  registers torch.ops.mlalab
from mlalab.errors import ConfigError
from mlalab.shapes import RopeSpec
from mlalab_kernels.numerics import rotate


def inverse_frequencies(spec: RopeSpec, rotary_dim: int) -> Tensor:
    """Return the angular step per position of each pair, `[R/2]` fp32 (YaRN: Peng et al. 2023).

    The order of operations is vLLM's and transformers': one last bit here is 3e-4 rad at position
    163840.
    """
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
    wavelengths = spec.theta**exponents
    if spec.kind != "yarn":
        return 1.0 / wavelengths

    def pair_of(rotations: float) -> float:
        wavelength_ratio = spec.original_max_position_embeddings / (rotations * 2 * math.pi)
        return rotary_dim * math.log(wavelength_ratio) / (2 * math.log(spec.theta))

    low, high = pair_of(spec.beta_fast), pair_of(spec.beta_slow)
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    high = high + 0.001 if low == high else high
    ramp = ((torch.arange(rotary_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    keep = 1 - ramp
    return 1.0 / (spec.factor * wavelengths) * (1 - keep) + 1.0 / wavelengths * keep


def yarn_mscale(factor: float, mscale: float) -> float:
    """Return YaRN's magnitude correction: 0.1 · mscale · ln(factor) + 1."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def attention_factor(spec: RopeSpec) -> float:
    """Return what the cos and sin tables are multiplied by.

    As transformers does: an explicit factor wins; with both `mscale` and `mscale_all_dim` the
    ratio of the two corrections; otherwise the plain correction.
    """
    if spec.kind != "yarn":
        return 1.0
    if spec.attention_factor is not None:
        return spec.attention_factor
    if spec.mscale and spec.mscale_all_dim:
        numerator = yarn_mscale(spec.factor, spec.mscale)
        return numerator / yarn_mscale(spec.factor, spec.mscale_all_dim)
    return yarn_mscale(spec.factor, 1.0)


def softmax_scale(spec: RopeSpec, head_dim: int) -> float:
    """Return head_dim^-0.5, times the square of YaRN's all-dim correction where it has one."""
    correction = 1.0
    if spec.kind == "yarn" and spec.mscale_all_dim:
        correction = yarn_mscale(spec.factor, spec.mscale_all_dim)
    return head_dim**-0.5 * correction * correction


def cos_sin_table(spec: RopeSpec, rotary_dim: int, num_positions: int) -> Tensor:
    """Return `[num_positions, R]` fp32: cos of each pair's angle, then sin."""
    angles = torch.outer(
        torch.arange(num_positions, dtype=torch.float32), inverse_frequencies(spec, rotary_dim)
    )
    return torch.cat((angles.cos(), angles.sin()), dim=-1) * attention_factor(spec)


class RotaryEmbedding(nn.Module):
    """Plain RoPE.

    A position outside the table is the caller's mistake here: it fails or, when negative, wraps.
    The ops clamp it, or raise in a checked context.

    Args:
        spec: table and pairing.
        custom_op: call `torch.ops.mlalab.rotary_embedding`, which rotates in place, instead of
            the native form.
        in_fp32: arithmetic of the native form; see `mlalab_kernels.numerics.rotate`.
        cache_dtype: dtype of the table.
    """

    cos_sin_cache: Tensor

    def __init__(
        self,
        spec: RopeSpec,
        rotary_dim: int,
        num_positions: int,
        *,
        custom_op: bool = False,
        in_fp32: bool = True,
        cache_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if custom_op and not in_fp32:
            raise ConfigError(
                "The custom rotary op computes in fp32; drop custom_op or keep in_fp32=True."
            )
        self.spec, self.custom_op, self.in_fp32 = spec, custom_op, in_fp32
        table = cos_sin_table(spec, rotary_dim, num_positions).to(cache_dtype)
        self.register_buffer("cos_sin_cache", table, persistent=False)

    def forward(self, positions: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Return rotated query and key, in their own shapes; the custom op writes both.

        Args:
            query, key: `[T, heads, R]`, or `[T, heads · R]`: heads side by side.
        """
        table, is_neox = self.cos_sin_cache, self.spec.is_neox
        rotary_dim = table.size(-1)
        if self.custom_op:
            torch.ops.mlalab.rotary_embedding(positions, query, key, rotary_dim, table, is_neox)
            return query, key
        if query.dim() == 2:
            heads = (x.unflatten(-1, (-1, rotary_dim)) for x in (query, key))
            q_rot, k_rot = self.forward(positions, *heads)
            return q_rot.flatten(1), k_rot.flatten(1)
        return self.forward_static(positions, query, key, table, is_neox, self.in_fp32)

    @staticmethod
    def forward_static(
        positions: Tensor,
        query: Tensor,
        key: Tensor,
        cos_sin_cache: Tensor,
        is_neox: bool,
        in_fp32: bool,
    ) -> tuple[Tensor, Tensor]:
        """Rotate natively, as a function of tensors only: this is what a pattern traces."""
        cos, sin = cos_sin_cache[positions].chunk(2, dim=-1)
        return rotate(query, cos, sin, is_neox, in_fp32), rotate(key, cos, sin, is_neox, in_fp32)


class DeepseekScalingRotaryEmbedding(RotaryEmbedding):
    """RoPE in the full-width form of DeepSeek's models: x · cos + rotated(x) · sin."""

    @staticmethod
    def forward_static(
        positions: Tensor,
        query: Tensor,
        key: Tensor,
        cos_sin_cache: Tensor,
        is_neox: bool,
        in_fp32: bool,
    ) -> tuple[Tensor, Tensor]:
        """Rotate natively, as a function of tensors only: this is what a pattern traces."""
        cos, sin = cos_sin_cache[positions].chunk(2, dim=-1)
        if is_neox:
            cos, sin = torch.cat((cos, cos), dim=-1), torch.cat((sin, sin), dim=-1)
        else:
            cos, sin = cos.repeat_interleave(2, dim=-1), sin.repeat_interleave(2, dim=-1)
        cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
        return (
            _rotate_full_width(query, cos, sin, is_neox, in_fp32),
            _rotate_full_width(key, cos, sin, is_neox, in_fp32),
        )


def _rotate_full_width(x: Tensor, cos: Tensor, sin: Tensor, is_neox: bool, in_fp32: bool) -> Tensor:
    compute_dtype = torch.float32 if in_fp32 else x.dtype
    wide, cos, sin = x.to(compute_dtype), cos.to(compute_dtype), sin.to(compute_dtype)
    if is_neox:
        first, second = wide.chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1)
    else:
        turned = torch.stack((-wide[..., 1::2], wide[..., ::2]), dim=-1).flatten(-2)
    return (wide * cos + turned * sin).to(x.dtype)


ROPE_CLASSES = {"default": RotaryEmbedding, "yarn": DeepseekScalingRotaryEmbedding}
"""Rope kind → the class whose graph a layer of that kind holds."""
