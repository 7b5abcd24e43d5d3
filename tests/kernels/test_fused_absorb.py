"""The one-launch preparation against its reference: interpreted here, compiled with -m gpu."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch

from mlalab_kernels.fused_absorb_qk_rope_concat_and_cache_mla import launch_config
from mlalab_kernels.fused_absorb_qk_rope_concat_and_cache_mla.launch_config import (
    Config,
    config_for,
)
from mlalab_kernels.fused_absorb_qk_rope_concat_and_cache_mla.triton_kernel import (
    fused_absorb_qk_rope_concat_and_cache_mla,
)
from mlalab_kernels.launch import recording
from mlalab_kernels.tuning import ENVIRONMENT, nearest, table_of
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
    {"staged": False, "rope_in_fp32": False},
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


@pytest.mark.parametrize("T", [63, 64, 65, 257, 513])
def test_many_tokens(T):
    """Interpreted, so with one small head; the card does the rest (test_fused_absorb_gpu.py)."""
    config = Config(block_t=64, block_l=16, tiles=4, rows=128)
    agree(Step(T, 1, 16, 2, 16), config=config)


@pytest.mark.parametrize("N", [16, 64, 128])
def test_many_heads(N):
    agree(Step(2, N, 16, 2, 16), config=Config(block_l=16, rows=64))


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
    assert flipped <= 1e-4 + 2 / got["query"].numel()
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
    monkeypatch.setattr(launch_config, "COPY_ENGINE", ("cpu", "sm_90"))
    for T in (0, 1, 17, 70):
        step = Step(T, 3, 32, 8, 64, device=device)
        step.q = torch.cat([step.q, step.q[..., :7]], -1)[..., :40]
        step.w_uk = step.w_uk.contiguous()
        agree(step, config=Config(16, 32, 2, 2, 4, 16, described=True))


def test_tensors_the_copy_engine_cannot_take_go_by_pointer(monkeypatch):
    monkeypatch.setattr(launch_config, "COPY_ENGINE", ("cpu",))
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


def test_the_table_is_asked_for_the_nearest_cell(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    assert config_for("cpu", 16, 8, FN) == Config()
    assert config_for("cpu", 16, 800, FN) == Config(block_t=64)
    rows = table_of(launch_config.OP, (), None)
    found = nearest(rows, "sm_90", "float8_e4m3fn", 96, 300)
    assert (found["heads"], found["tokens"]) == (128, 256)
    assert nearest(rows, "sm_10", "float8_e4m3fn", 96, 300) is None


CELL = {"arch": "cpu", "dtype": "float8_e4m3fn", "heads": 16, "tokens": 8}


def test_a_table_of_ones_own_goes_first_from_the_next_call_on(monkeypatch, tmp_path):
    assert config_for("cpu", 16, 8, FN) == Config()
    own, file = Config(32, 64, warps=8), tmp_path / "own.json"
    file.write_text(json.dumps({launch_config.OP: {"rows": [CELL | asdict(own)]}}))
    monkeypatch.setenv(ENVIRONMENT, str(file))
    assert config_for("cpu", 16, 8, FN) == own


@pytest.mark.parametrize(
    "text", [None, "", "[]", "{}", json.dumps({launch_config.OP: {"rows": [CELL]}})], ids=str
)
def test_a_table_that_cannot_be_used_is_told_in_a_sentence(monkeypatch, tmp_path, text):
    file = tmp_path / "own.json"
    if text is not None:
        file.write_text(text)
    monkeypatch.setenv(ENVIRONMENT, str(file))
    with pytest.raises(RuntimeError, match=r"own.json is no tuning table .* unset MLALAB_TUNING"):
        config_for("cpu", 16, 9, FN)


def test_indices_may_be_strided(device):
    step = Step(5, device=device)
    step.positions = step.positions.repeat_interleave(3)[::3]
    agree(step, slots=step.slots.repeat_interleave(2)[::2])


def test_layouts_that_cannot_be_written_are_refused(device):
    step = Step(3, device=device)
    kernel = fused_absorb_qk_rope_concat_and_cache_mla

    def with_cache(change):
        return lambda *args, **more: kernel(*args[:5], change(args[5]), *args[6:], **more)

    for change in (lambda c: c.t().contiguous().t(), lambda c: c.unflatten(0, (-1, 1))):
        with pytest.raises(RuntimeError, match="flatten its blocks"):
            step.run(with_cache(change))
    rotated = torch.empty(3, 3, 8, dtype=BF16, device=device)[..., :4]
    with pytest.raises(RuntimeError, match="must be contiguous"):
        step.run(kernel, q_pe_out=rotated)


def test_a_weight_that_is_copied_is_not_fetched_ahead(monkeypatch):
    monkeypatch.setattr(launch_config, "COPY_ENGINE", ("sm_90",))
    for turned in (False, True):
        step = Step(1, 16, 128, 64, 512)
        step.w_uk = step.w_uk.mT.contiguous().mT if turned else step.w_uk.contiguous()
        with recording("sm_90") as launches:
            step.run(fused_absorb_qk_rope_concat_and_cache_mla)
        assert launches[0].options.get("launch_pdl", False) is not turned


def test_far_heads_are_addressed_in_int64():
    step = Step(2, 3)
    with pytest.MonkeyPatch.context() as patch:
        # Poison would need all of the four gigabytes that nothing else touches.
        patch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
        far = torch.empty(2**31 + 64, dtype=BF16).as_strided(step.q.shape, (12, 2**30 + 8, 1))
    step.q = far.copy_(step.q)
    agree(step)
