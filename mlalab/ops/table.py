"""One table row per op: schema, real implementation, fake implementation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mlalab.ops import gqa, mla, mla_decode, mla_split

_LIBRARY = torch.library.Library("mlalab", "DEF")


@dataclass(frozen=True, slots=True)
class Op:
    """An op of `torch.ops.mlalab`; a `!` in the schema is the one truth on what it writes."""

    schema: str
    real: Callable[..., Any]
    fake: Callable[..., Any]

    @property
    def name(self) -> str:
        """The op's name in `torch.ops.mlalab`, with its overload's where that has one."""
        return self.schema.split("(", 1)[0]


_AITER = "fused_aiter_qk_rope_kvcache_q_concat_quant_mla"
_AITER_ARGUMENTS = (
    "Tensor q_nope, Tensor q_pe, Tensor k_pe, Tensor kv_c, Tensor positions, "
    "Tensor cos_sin_cache, bool is_neox, str kv_cache_dtype, Tensor k_scale, str layer_name, "
    "bool rope_in_fp32=True"
)
OPS: tuple[Op, ...] = (
    Op(
        "rotary_embedding(Tensor positions, Tensor(a!) query, Tensor(b!)? key, int head_size, "
        "Tensor cos_sin_cache, bool is_neox) -> ()",
        mla.rotary_embedding,
        mla.rotary_embedding_fake,
    ),
    Op(
        "unified_mla_kv_cache_update(Tensor kv_c, Tensor k_pe, str layer_name, "
        "str kv_cache_dtype, Tensor k_scale) -> Tensor",
        mla.unified_mla_kv_cache_update,
        mla.unified_mla_kv_cache_update_fake,
    ),
    Op(
        "unified_mla_attention_with_output(Tensor? q, Tensor kv_c, Tensor? k_pe, "
        "Tensor(a!) output, str layer_name, Tensor? kv_cache_dummy_dep=None, "
        "Tensor? q_prepped=None) -> ()",
        mla.unified_mla_attention_with_output,
        mla.unified_mla_attention_with_output_fake,
    ),
    Op(
        "fused_rope_unified_mla_kv_cache_update(Tensor positions, Tensor(a!) q_pe, "
        "Tensor(b!) k_pe, Tensor kv_c, Tensor cos_sin_cache, bool is_neox, str kv_cache_dtype, "
        "Tensor kv_cache_scale, str layer_name, bool rope_in_fp32=True) -> Tensor",
        mla.fused_rope_unified_mla_kv_cache_update,
        mla.fused_rope_unified_mla_kv_cache_update_fake,
    ),
    Op(
        "mla_decode_q_prep(Tensor q, str layer_name) -> Tensor",
        mla_decode.mla_decode_q_prep,
        mla_decode.mla_decode_q_prep_fake,
    ),
    Op(
        f"{_AITER}({_AITER_ARGUMENTS}) -> Tensor",
        mla_decode.fused_aiter_qk_rope_kvcache_q_concat_quant_mla,
        mla_decode.fused_aiter_qk_rope_kvcache_q_concat_quant_mla_fake,
    ),
    Op(
        f"{_AITER}.rotated({_AITER_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
        mla_decode.fused_aiter_qk_rope_kvcache_q_concat_quant_mla_rotated,
        mla_decode.fused_aiter_qk_rope_kvcache_q_concat_quant_mla_rotated_fake,
    ),
    Op(
        "mla_split_batch(Tensor kv_c, str layer_name) -> SymInt",
        mla_split.mla_split_batch,
        mla_split.mla_split_batch_fake,
    ),
    Op(
        "mla_attention_decode(Tensor q, str layer_name, Tensor? kv_cache_dummy_dep=None) -> Tensor",
        mla_split.mla_attention_decode,
        mla_split.mla_attention_decode_fake,
    ),
    Op(
        "mla_attention_prefill(Tensor? q, Tensor kv_c, Tensor? k_pe, str layer_name, "
        "Tensor? kv_cache_dummy_dep=None) -> Tensor",
        mla_split.mla_attention_prefill,
        mla_split.mla_attention_prefill_fake,
    ),
    Op(
        "unified_kv_cache_update(Tensor key, Tensor value, str layer_name) -> Tensor",
        gqa.unified_kv_cache_update,
        gqa.unified_kv_cache_update_fake,
    ),
    Op(
        "unified_attention_with_output(Tensor query, Tensor key, Tensor value, "
        "Tensor(a!) output, str layer_name, Tensor? kv_cache_dummy_dep=None) -> ()",
        gqa.unified_attention_with_output,
        gqa.unified_attention_with_output_fake,
    ),
    Op(
        "fused_rope_and_unified_kv_cache_update(Tensor(a!) query, Tensor(b!) key, Tensor value, "
        'Tensor positions, Tensor cos_sin_cache, bool is_neox, str layer_name="", '
        "bool rope_in_fp32=True) -> Tensor",
        gqa.fused_rope_and_unified_kv_cache_update,
        gqa.fused_rope_and_unified_kv_cache_update_fake,
    ),
)


def _register(op: Op) -> None:
    _LIBRARY.define(op.schema)
    _LIBRARY.impl(op.name, op.real, "CompositeExplicitAutograd")
    torch.library.register_fake(f"mlalab::{op.name}", op.fake, lib=_LIBRARY)


for _op in OPS:
    _register(_op)
