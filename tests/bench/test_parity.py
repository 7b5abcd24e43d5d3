"""Contenders do the same thing, and the check notices when one does not."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mlalab.bench import contenders
from mlalab.bench.cells import FORMATS, CellSpec
from mlalab.bench.contenders import CHECKED, CONTENDERS, make_layers, staged_reference
from mlalab.bench.parity import compare, steps_apart
from mlalab.bench.run import check_cell
from tests.bench.stand_ins import CPU, TINY, broken_for, reference_for

FP8 = torch.float8_e4m3fn


@pytest.mark.parametrize("dtype", [FP8, torch.bfloat16, torch.float16])
def test_neighbours_are_one_step_apart(dtype):
    bits, raw = (torch.int8, 128) if dtype == FP8 else (torch.int16, 32768)
    ordered = torch.arange(-raw, raw).to(bits).view(dtype)
    finite = ordered.float()[ordered.float().isfinite()]
    values = finite.unique().to(dtype)
    assert (steps_apart(values[1:], values[:-1]) == 1).all()
    assert steps_apart(torch.tensor([0.0]).to(dtype), torch.tensor([-0.0]).to(dtype)).item() == 0


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("tokens", [1, 5])
def test_the_plain_chain_is_the_reference(tokens, format_):
    spec = CellSpec(tokens=tokens, format=format_, **TINY)
    (layer,) = make_layers(spec, 1, CPU)
    other = dataclasses.replace(layer, cache=layer.cache.clone())
    query = CONTENDERS["plain"]()(other)
    staged_reference()(layer)
    for found, wanted in ((query, layer.q_out), (other.cache, layer.cache)):
        assert found.dtype == wanted.dtype
        assert torch.equal(found.view(torch.uint8), wanted.view(torch.uint8))


def test_inductor_compiles_every_size_and_writes_the_cache():
    for tokens in (2, 3):
        (layer,) = make_layers(CellSpec(tokens=tokens, **TINY), 1, CPU)
        before = layer.cache.view(torch.uint8).clone()
        query = CONTENDERS["inductor"]()(layer)
        assert query.shape == layer.q_out.shape
        changed = (layer.cache.view(torch.uint8) != before).any(-1).nonzero().flatten()
        assert changed.tolist() == sorted(layer.slots.tolist())


def test_layers_share_ids_and_table_and_nothing_else():
    first, second = make_layers(CellSpec(tokens=3, **TINY), 2, CPU)
    shared = {"slots", "positions", "table", "k_scale", "q_scale"}
    for field in dataclasses.fields(first):
        same = getattr(first, field.name).data_ptr() == getattr(second, field.name).data_ptr()
        assert same is (field.name in shared), field.name
    assert first.k_pe.stride(0) == TINY["latent"] + TINY["rope"]


@pytest.mark.parametrize("format_", FORMATS)
def test_a_whole_kernel_passes(monkeypatch, format_):
    monkeypatch.setattr(contenders, "load", reference_for)
    result = check_cell(CellSpec(tokens=5, format=format_, **TINY), CPU, layers=2)
    assert result.ok
    assert set(result.parity) == set(CHECKED)
    assert not result.times
    assert result.parity["one"].absorbed_of == 2 * 5 * 2 * 16


def test_a_broken_rotation_fails_query_and_cache(monkeypatch):
    monkeypatch.setattr(contenders, "load", broken_for)
    result = check_cell(CellSpec(tokens=5, **TINY), CPU, layers=1)
    assert not result.ok
    for parity in result.parity.values():
        assert parity.rotated > 0
        assert parity.cache > 0
        assert parity.absorbed == 0


DAMAGE = {
    "an unwritten row": lambda layer: layer.q_out[0].view(torch.uint8).fill_(0x7F),
    "a row beyond the padding": lambda layer: layer.cache[layer.slots.max()].zero_(),
    "an absorbed value": lambda layer: layer.q_out[0, 0, :1].copy_(-layer.q_out[0, 0, :1]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_each_part_is_looked_at(damage):
    reference = staged_reference()

    def run(layer):
        reference(layer)
        DAMAGE[damage](layer)

    spec = CellSpec(tokens=5, format="bf16/bf16", **TINY)
    layers = make_layers(spec, 1, CPU)
    assert compare(reference, layers, spec).ok
    assert not compare(run, layers, spec).ok


def test_padded_tokens_are_part_of_the_check():
    """A kernel that wrote row -1, the last one, would be seen."""
    reference = staged_reference()

    def run(layer):
        reference(dataclasses.replace(layer, slots=layer.slots % layer.cache.size(0)))

    spec = CellSpec(tokens=5, **TINY)
    assert compare(run, make_layers(spec, 1, CPU), spec).cache > 0


def test_a_kernel_that_raises_fails_its_cell_alone(monkeypatch):
    def load(op, provider):
        if op == contenders.ABSORB_OP and provider == "triton":
            return lambda *_, **__: torch.empty(2).view(3)
        return reference_for(op, provider)

    monkeypatch.setattr(contenders, "load", load)
    result = check_cell(CellSpec(tokens=1, **TINY), CPU, layers=1)
    assert not result.ok
    assert result.failures["one"].startswith("RuntimeError: shape '[3]' is invalid")
    assert result.parity["two"].ok
