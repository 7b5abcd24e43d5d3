"""What the ops of ordinary attention do when a graph runs: slots, positions, profile runs."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mlalab.context import forward_context, make_batch
from mlalab.errors import ContextError, InputError
from mlalab_kernels.numerics import quantize, rotate
from tests.ops import cases
from tests.ops.cases import BLOCK_SIZE, NUM_SLOTS, PATTERN, bits, context_of
from tests.ops.gqa_cases import SHAPE, arguments_of, make_layer

UPDATE, FUSED = "unified_kv_cache_update", "fused_rope_and_unified_kv_cache_update"
ATTENTION = "unified_attention_with_output"
UPDATES = [UPDATE, FUSED]
CACHES = ["auto", "fp8"]


def call(name, layer, arguments, tokens, **context):
    with forward_context(context_of(layer, tokens, **context)):
        return getattr(torch.ops.mlalab, name)(**arguments)


def rows_of(layer):
    """Return the bytes of each slot: keys, then values."""
    return layer.kv_cache.storage.flatten(1, 2).view(torch.uint8).flatten(2)


def written_rows(layer):
    keys, values = ((rows != PATTERN).any(-1).nonzero().flatten() for rows in rows_of(layer))
    assert torch.equal(keys, values)
    return keys.tolist()


def expected_rows(name, layer, arguments):
    """Return what each token's cache rows should be, in bytes; call it before the op."""
    key, value = arguments["key"], arguments["value"]
    if name == FUSED:
        cos, sin = arguments["cos_sin_cache"][arguments["positions"]].chunk(2, -1)
        key = rotate(key, cos, sin, is_neox=True, in_fp32=True)
    dtype = layer.kv_cache.typed_dtype
    stored = (quantize(key, layer.k_scale, dtype), quantize(value, layer.v_scale, dtype))
    return torch.stack([x.contiguous().view(torch.uint8).flatten(1) for x in stored])


@pytest.mark.parametrize("kv_cache_dtype", CACHES)
@pytest.mark.parametrize(
    ("slots", "checked"),
    [
        ([7, 0, NUM_SLOTS - 1, 33, 12], True),
        ([7, -1, -9, 33, 12], True),
        ([41, 3], True),
        ([], True),
        ([7, NUM_SLOTS, 2**40, 33, -1], False),
    ],
    ids=["all", "padding", "short", "none", "outside"],
)
@pytest.mark.parametrize("name", UPDATES)
def test_rows_go_to_their_slots_and_nowhere_else(name, slots, checked, kv_cache_dtype):
    layer = make_layer(kv_cache_dtype=kv_cache_dtype, dtype=torch.bfloat16)
    arguments = arguments_of(name, layer, 5)
    rows = expected_rows(name, layer, arguments)
    mapping = torch.tensor(slots, dtype=torch.int64)
    call(name, layer, arguments, 5, slot_mapping=mapping, checked=checked)
    inside = {slot: t for t, slot in enumerate(slots) if 0 <= slot < NUM_SLOTS}
    assert written_rows(layer) == sorted(inside)
    for slot, token in inside.items():
        assert torch.equal(rows_of(layer)[:, slot], rows[:, token])


@pytest.mark.parametrize("kv_cache_dtype", CACHES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tokens", [0, 3])
@pytest.mark.parametrize("name", UPDATES)
def test_the_dummy_is_empty_and_like_the_key_in_real_and_fake(name, tokens, dtype, kv_cache_dtype):
    layer = make_layer(kv_cache_dtype=kv_cache_dtype, dtype=dtype)
    arguments = arguments_of(name, layer, tokens)
    real = call(name, layer, arguments, tokens)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = getattr(torch.ops.mlalab, name)(**arguments)
    for dummy in (real, fake):
        assert (tuple(dummy.shape), dummy.dtype, dummy.device.type) == ((0,), dtype, "cpu")


@pytest.mark.parametrize("name", UPDATES)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slot_mapping": torch.tensor([0, NUM_SLOTS, 1])}, "Slot 80 lies outside the cache"),
        ({"slot_mapping": torch.arange(4)}, "names 4 tokens but the batch has 3"),
    ],
)
def test_slots_that_do_not_fit_are_refused_before_anything_is_written(name, changes, message):
    layer = make_layer()
    arguments = arguments_of(name, layer, 3)
    assert_refused(name, layer, arguments, message, **changes)


@pytest.mark.parametrize("position", [-1, SHAPE.max_position_embeddings])
def test_positions_outside_are_refused_before_anything_is_written(position):
    layer = make_layer()
    arguments = arguments_of(FUSED, layer, 3)
    arguments["positions"][1] = position
    assert_refused(FUSED, layer, arguments, "do not fit the rope table of 512 rows")
    call(FUSED, layer, arguments, 3, checked=False)
    assert written_rows(layer) == [0, 1, 2]


@pytest.mark.parametrize("flat", ["query", "key"])
def test_flat_tensors_are_refused(flat):
    layer = make_layer()
    arguments = arguments_of(FUSED, layer, 3)
    arguments[flat] = arguments[flat].flatten(1)
    assert_refused(FUSED, layer, arguments, "view them as heads")


def assert_refused(name, layer, arguments, message, **changes):
    before = {k: v.clone() for k, v in arguments.items() if isinstance(v, torch.Tensor)}
    with pytest.raises(InputError, match=message):
        call(name, layer, arguments, 3, **changes)
    assert written_rows(layer) == []
    assert all(torch.equal(bits(arguments[key]), bits(x)) for key, x in before.items())


def test_a_profile_run_writes_nothing_but_still_rotates():
    layer = make_layer()
    layer._kv_cache = None
    arguments = arguments_of(FUSED, layer, 3)
    before = {name: arguments[name].clone() for name in ("query", "key")}
    dummy = call(FUSED, layer, arguments, 3, slot_mapping=None, metadata=None)
    assert dummy.shape == (0,)
    assert all(not torch.equal(arguments[name], x) for name, x in before.items())


@pytest.mark.parametrize("metadata", [None, make_batch([2], [0], num_decodes=0, block_size=16)])
def test_rows_of_no_request_become_zero(metadata):
    layer = make_layer(dtype=torch.bfloat16)
    arguments = arguments_of(ATTENTION, layer, 5)
    call(ATTENTION, layer, arguments, 5, metadata=metadata)
    used = 0 if metadata is None else 2
    assert not arguments["output"][used:].any()
    assert arguments["output"][:used].isfinite().all()
    assert arguments["output"][:used].any() == bool(used)


def test_metadata_of_a_larger_batch_is_refused():
    layer = make_layer()
    batch = make_batch([4], [0], num_decodes=0, block_size=BLOCK_SIZE)
    with pytest.raises(InputError, match=r"names 4 tokens and layer .* got 3 rows"):
        call(ATTENTION, layer, arguments_of(ATTENTION, layer, 3), 3, metadata=batch)


@pytest.mark.parametrize("name", [*UPDATES, ATTENTION])
def test_a_layer_of_the_other_kind_is_refused(name):
    arguments = arguments_of(name, make_layer(), 3)
    with pytest.raises(ContextError, match="is of kind 'mla'"):
        call(name, cases.make_layer(), arguments, 3)
