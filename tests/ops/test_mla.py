"""What the ops do when a graph runs: slots, positions, profile runs, padding."""

from __future__ import annotations

import pytest
import torch

from mlalab.context import forward_context
from mlalab.errors import InputError
from mlalab_kernels.numerics import quantize, rotate
from tests.ops.cases import (
    NUM_SLOTS,
    PATTERN,
    SHAPE,
    arguments_of,
    bits,
    context_of,
    make_layer,
)

UPDATE, FUSED = "unified_mla_kv_cache_update", "fused_rope_unified_mla_kv_cache_update"
UPDATES = [UPDATE, FUSED]
CACHES = ["auto", "fp8"]


def call(name, layer, arguments, tokens, **context):
    with forward_context(context_of(layer, tokens, **context)):
        return getattr(torch.ops.mlalab, name)(**arguments)


def rows_of(layer):
    """Return the bytes of each cache row."""
    return layer.kv_cache.storage_BKC.flatten(0, 1).view(torch.uint8)


def written_rows(layer):
    return (rows_of(layer) != PATTERN).any(-1).nonzero().flatten().tolist()


def expected_rows(name, layer, arguments):
    """Return what each token's cache row should be, in bytes; call it before the op."""
    k_pe = arguments["k_pe"].reshape(-1, SHAPE.qk_rope_head_dim)
    if name == FUSED:
        cos, sin = arguments["cos_sin_cache"][arguments["positions"]].chunk(2, -1)
        k_pe = rotate(k_pe[:, None], cos, sin, is_neox=False, in_fp32=True)[:, 0]
    rows = torch.cat((arguments["kv_c"], k_pe), -1)
    return quantize(rows, layer.k_scale, layer.kv_cache.typed_dtype).view(torch.uint8)


@pytest.mark.parametrize("kv_cache_dtype", CACHES)
@pytest.mark.parametrize("k_pe_2d", [True, False])
@pytest.mark.parametrize(
    ("slots", "checked"),
    [
        ([7, 0, NUM_SLOTS - 1, 33, 12], True),
        ([7, -1, -9, 33, 12], True),
        ([-1, -1, -1, -1, -1], True),
        ([41, 3], True),
        ([], True),
        ([7, NUM_SLOTS, 2**40, 33, -1], False),
    ],
    ids=["all", "padding", "only padding", "short", "none", "outside"],
)
@pytest.mark.parametrize("name", UPDATES)
def test_rows_go_to_their_slots_and_nowhere_else(name, slots, checked, k_pe_2d, kv_cache_dtype):
    layer = make_layer(kv_cache_dtype=kv_cache_dtype, dtype=torch.bfloat16)
    arguments = arguments_of(name, layer, 5, k_pe_2d=k_pe_2d)
    rows = expected_rows(name, layer, arguments)
    mapping = torch.tensor(slots, dtype=torch.int64)
    dummy = call(name, layer, arguments, 5, slot_mapping=mapping, checked=checked)
    assert (dummy.shape, dummy.dtype) == ((0,), torch.bfloat16)
    inside = {slot: t for t, slot in enumerate(slots) if 0 <= slot < NUM_SLOTS}
    assert written_rows(layer) == sorted(inside)
    for slot, token in inside.items():
        assert torch.equal(rows_of(layer)[slot], rows[token])


@pytest.mark.parametrize("name", UPDATES)
def test_a_shifted_slot_is_noticed(name):
    layer = make_layer()
    arguments = arguments_of(name, layer, 5)
    rows = expected_rows(name, layer, arguments)
    call(name, layer, arguments, 5, slot_mapping=torch.arange(1, 6))
    assert written_rows(layer) != [0, 1, 2, 3, 4]
    assert not torch.equal(rows_of(layer)[:5], rows)


@pytest.mark.parametrize("name", UPDATES)
def test_a_slot_outside_is_refused_before_anything_is_written(name):
    layer = make_layer()
    arguments = arguments_of(name, layer, 3)
    before = {k: v.clone() for k, v in arguments.items() if isinstance(v, torch.Tensor)}
    with pytest.raises(InputError, match=rf"Slot {NUM_SLOTS} lies outside the cache of 80 slots"):
        call(name, layer, arguments, 3, slot_mapping=torch.tensor([0, NUM_SLOTS, 1]))
    assert written_rows(layer) == []
    assert all(torch.equal(arguments[key], value) for key, value in before.items())


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("name", UPDATES)
def test_more_slots_than_tokens_are_refused(name, checked):
    layer = make_layer()
    with pytest.raises(InputError, match="names 4 tokens but the batch has 3"):
        call(
            *(name, layer, arguments_of(name, layer, 3), 3),
            slot_mapping=torch.arange(4),
            checked=checked,
        )


@pytest.mark.parametrize("name", UPDATES)
def test_a_profile_run_writes_nothing_but_still_rotates(name):
    layer = make_layer()
    arguments = arguments_of(name, layer, 3)
    rows, before = expected_rows(name, layer, arguments), arguments["k_pe"].clone()
    dummy = call(name, layer, arguments, 3, slot_mapping=None, metadata=None)
    assert dummy.shape == (0,)
    assert written_rows(layer) == []
    if name == FUSED:
        assert not torch.equal(arguments["k_pe"], before)
        assert torch.equal(bits(arguments["k_pe"]), rows[:, 4 * SHAPE.kv_lora_rank :])


@pytest.mark.parametrize("slots", [[-1, -1, -1], [5], []])
def test_padded_rows_are_rotated_all_the_same(slots):
    layer = make_layer()
    arguments = arguments_of(FUSED, layer, 3)
    cos, sin = arguments["cos_sin_cache"][arguments["positions"]].chunk(2, -1)
    expected = rotate(arguments["q_pe"], cos, sin, is_neox=False, in_fp32=True)
    call(FUSED, layer, arguments, 3, slot_mapping=torch.tensor(slots, dtype=torch.int64))
    assert torch.equal(arguments["q_pe"], expected)


@pytest.mark.parametrize("name", ["rotary_embedding", FUSED])
def test_rotation_stays_inside_its_slice(name):
    layer = make_layer()
    arguments = arguments_of(name, layer, 3)
    whole = arguments["q_pe" if name == FUSED else "query"]._base
    before = whole.clone()
    call(name, layer, arguments, 3)
    changed = (whole != before).any(0).any(0).tolist()
    assert changed == [False] * SHAPE.qk_nope_head_dim + [True] * SHAPE.qk_rope_head_dim


@pytest.mark.parametrize("position", [-1, SHAPE.max_position_embeddings])
def test_positions_outside_the_table(position):
    layer = make_layer()
    arguments = arguments_of(FUSED, layer, 3)
    arguments["positions"][1] = position
    before = arguments["q_pe"].clone()
    with pytest.raises(InputError, match=r"do not fit the rope table of 512 rows; raise max_posi"):
        call(FUSED, layer, arguments, 3)
    assert torch.equal(arguments["q_pe"], before)
    nearest = arguments["positions"].clamp(0, SHAPE.max_position_embeddings - 1)
    cos, sin = arguments["cos_sin_cache"][nearest].chunk(2, -1)
    call(FUSED, layer, arguments, 3, checked=False)
    assert torch.equal(arguments["q_pe"], rotate(before, cos, sin, is_neox=False, in_fp32=True))


def test_rotary_embedding_takes_flat_heads_and_no_key():
    layer = make_layer()
    arguments = arguments_of("rotary_embedding", layer, 3, strided=False)
    flat = {**arguments, "query": arguments["query"].clone().flatten(1), "key": None}
    torch.ops.mlalab.rotary_embedding(**arguments)
    torch.ops.mlalab.rotary_embedding(**flat)
    assert torch.equal(flat["query"], arguments["query"].flatten(1))


def test_rotary_embedding_leaves_columns_past_the_table():
    layer = make_layer()
    arguments = arguments_of("rotary_embedding", layer, 3)
    wide = torch.randn(3, 2, SHAPE.qk_rope_head_dim + 5)
    before = wide.clone()
    torch.ops.mlalab.rotary_embedding(**{**arguments, "query": wide, "head_size": wide.size(-1)})
    changed = (wide != before).any(0).any(0)
    assert changed.tolist() == [True] * SHAPE.qk_rope_head_dim + [False] * 5


ATTEND = "unified_mla_attention_with_output"


def test_a_profile_run_attends_to_nothing():
    layer = make_layer()
    arguments = arguments_of(ATTEND, layer, 3)
    call(ATTEND, layer, arguments, 3, metadata=None)
    assert not arguments["output"].any()


def test_padding_rows_become_zero():
    layer = make_layer()
    arguments, alone = arguments_of(ATTEND, layer, 5), torch.empty(3, 3 * SHAPE.v_head_dim)
    cut = {k: arguments[k][:3] for k in ("q", "kv_c", "k_pe")} | {"output": alone}
    call(ATTEND, layer, {**arguments, **cut}, 3)
    call(ATTEND, layer, arguments, 3)
    assert torch.equal(arguments["output"][:3], alone)
    assert alone.abs().sum() > 1
    assert not arguments["output"][3:].any()


def test_metadata_of_another_batch_is_refused():
    layer = make_layer()
    with pytest.raises(InputError, match=r"metadata names 4 tokens and layer .* got 3 rows"):
        call(ATTEND, layer, arguments_of(ATTEND, layer, 3), 4)
