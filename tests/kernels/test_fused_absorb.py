"""The one-launch preparation against its reference: interpreted here, compiled with -m gpu."""

from __future__ import annotations

import pytest
import torch

from mlalab_kernels.fused_absorb_qk_rope_concat_and_cache_mla import triton_kernel
from mlalab_kernels.fused_absorb_qk_rope_concat_and_cache_mla.triton_kernel import (
    Config,
    config_for,
    fused_absorb_qk_rope_concat_and_cache_mla,
)
from tests.kernels.decode_prep_case import BF16, FN, FNUZ, FP16, FP32, Step, absorbed_unlike, unlike

TYPES = [(BF16, FN, FN), (BF16, BF16, FN), (BF16, BF16, BF16), (FP16, FN, FN), (FP16, FP16, FP16)]
SHAPES = [
    (1, 1, 8, 4, 16),
    (2, 2, 16, 2, 16),
    (3, 7, 6, 6, 10),
    (17, 3, 8, 4, 40),
    (5, 8, 32, 8, 64),
]
KINDS = [
    {},
    {"is_neox": True},
    {"rope_in_fp32": False},
    {"is_neox": True, "rope_in_fp32": False, "rotated": True},
    {"rotated": True},
    {"staged": False},
    {"cos_sin": None, "rotated": True},
    {"slots": None},
]


def agree(step, **more):
    got = step.run(fused_absorb_qk_rope_concat_and_cache_mla, **more)
    wanted = step.expected(**{k: v for k, v in more.items() if k != "config"})
    assert not unlike(got, wanted)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_and_kinds(device, shape, kind):
    agree(Step(*shape, device=device), **kind)


@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES[2:4], ids=str)
def test_dtypes(device, shape, types):
    dtype, query, cache = types
    agree(Step(*shape, dtype=dtype, query=query, cache=cache, device=device))


def test_the_other_fp8_format():
    agree(Step(3, query=FNUZ, cache=FNUZ))


def test_fp32(device):
    agree(Step(5, dtype=FP32, query=FP32, cache=FP32, device=device))


@pytest.mark.parametrize("query", [FN, BF16])
def test_the_order_of_summing_flips_a_rounding_now_and_then(device, query):
    step = Step(65, 7, 128, 64, 512, query=query, device=device, exact=False)
    if device.type == "cpu":
        step = Step(33, 2, 64, 8, 64, query=query, exact=False)
    got, wanted = step.run(fused_absorb_qk_rope_concat_and_cache_mla), step.expected()
    flipped = absorbed_unlike(got["query"], wanted["query"], step.L)
    assert flipped <= (1e-4 if query == FN else 2e-3)
    got["query"], wanted["query"] = (x["query"][..., step.L :] for x in (got, wanted))
    assert not unlike(got, wanted)


def test_no_tokens_writes_nothing(device):
    agree(Step(0, device=device), rotated=True)


@pytest.mark.parametrize("scale", [1.0, 0.37, 1.7, 1e-40])
def test_scales(device, scale):
    agree(Step(4, q_scale=scale, k_scale=scale, device=device))


@pytest.mark.parametrize("table", [FP32, BF16])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_tables_and_indices(device, table, index):
    agree(Step(6, table=table, index=index, device=device))


def test_slots_that_are_not_written(device):
    step = Step(6, device=device)
    outside = torch.tensor([2, -1, -7, step.num_slots, 2**31 - 1, 4], device=device)
    for slots in (outside, outside.int(), outside[:4], outside[:0], torch.full_like(outside, -1)):
        agree(step, slots=slots)


def test_a_key_with_a_head_dimension(device):
    step = Step(5, device=device)
    wanted = step.expected()

    def with_head(*args, **options):
        *before, k_pe = args[:5]
        fused_absorb_qk_rope_concat_and_cache_mla(*before, k_pe[:, None], *args[5:], **options)

    got = step.run(with_head)
    assert not unlike({"cache": got["cache"]}, {"cache": wanted["cache"]})


def test_values_that_no_format_holds(device):
    step = Step(6, device=device)
    for x in (step.q, step.latent):
        for offset, value in enumerate((torch.inf, -torch.inf, torch.nan, 3e38, 600.0)):
            x[..., offset::7] = value
    step.w_uk[0, 0, 0] = 0  # inf · 0
    agree(step)
    agree(Step(6, query=BF16, cache=BF16, device=device))


@pytest.mark.parametrize(
    "config", [Config(16, 16, 2, 2, 4, 8), Config(32, 16, 1, 1, 4, 64)], ids=str
)
def test_every_way_of_cutting_it_up_gives_the_same(device, config):
    agree(Step(70, 5, device=device), config=config)


def test_tiles_by_descriptor(device, monkeypatch):
    """Which the interpreter runs too, once the CPU counts as a device that has them."""
    monkeypatch.setattr(triton_kernel, "_COPY_ENGINE", ("cpu", "sm_90"))
    for T in (1, 17, 70):
        step = Step(T, 3, 32, 8, 64, device=device)
        step.q = torch.cat([step.q, step.q[..., :7]], -1)[..., :40]
        step.w_uk = step.w_uk.contiguous()
        agree(step, config=Config(16, 32, 2, 2, 4, 16, described=True))


def test_tensors_the_copy_engine_cannot_take_go_by_pointer(monkeypatch):
    monkeypatch.setattr(triton_kernel, "_COPY_ENGINE", ("cpu",))
    agree(Step(17, 3, 32, 8, 40), config=Config(16, 32, 2, 2, 4, 16, described=True))


@pytest.mark.parametrize(("query", "cache"), [(FN, torch.uint8), (FN, BF16)])
def test_types_are_refused_as_the_reference_does(query, cache):
    step = Step(2, query=query, cache=cache)
    errors = []
    for call in (step.expected, lambda: step.run(fused_absorb_qk_rope_concat_and_cache_mla)):
        with pytest.raises(RuntimeError, match="kv cache") as caught:
            call()
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


def test_the_orders_of_rounding_differ():
    """So that equality above says which one was computed."""
    step = Step(33, 4, 16, 8, 64)
    assert unlike(step.expected(), step.expected(staged=False)) != []
    assert unlike(step.expected(), step.expected(rope_in_fp32=False)) != []


def test_the_table_is_asked_for_the_nearest_cell():
    assert config_for("cpu", 16, 8, FN) == Config()
    assert config_for("cpu", 16, 800, FN) == Config(block_t=64)
    rows = triton_kernel.table_of(triton_kernel.OP)
    nearest = triton_kernel.nearest(rows, "sm_90", "float8_e4m3fn", 96, 300)
    assert (nearest["heads"], nearest["tokens"]) == (128, 256)
    assert triton_kernel.nearest(rows, "sm_10", "float8_e4m3fn", 96, 300) is None
