"""Ranges and exact sizes as a compiled model uses them: which graphs there are, and at the borders.

Every run is compared with eager mode, bit for bit, and must leave its inputs as they were.
"""

from __future__ import annotations

import pytest
import torch

from mlalab.compile.config import PassConfig
from mlalab.compile.dispatch import CompiledModel
from mlalab.compile.settings import CompileConfig
from mlalab.context import ForwardContext, forward_context, make_batch
from mlalab.graphs import value_of
from mlalab.layers.options import LayerOptions
from mlalab.passes.fusion import CleanUp, PassResult
from mlalab.passes.pipeline import PIPELINE
from mlalab.shapes import preset
from mlalab.workbench import BLOCK_SIZE, build
from tests.compile.batches import flags
from tests.passes.models import assert_same, chain, on_bench, shape_of


def bench_of(shape, blocks):
    options = LayerOptions(dtype=torch.bfloat16, kv_cache_dtype="fp8", device="cpu")
    bench = build(shape, tokens=1, options=options)
    bench.layers[0].allocate_cache(blocks, BLOCK_SIZE)
    return on_bench(chain, bench.layers, bench)


def compiled(bench, **settings):
    """Return the compiled model, and a list that gets the row count of each graph compiled."""
    rows = []

    def note(graph):
        sizes = [value_of(n).size(0) for n in graph.find_nodes(op="placeholder") if _is_row(n)]
        rows.append(sizes[0] if isinstance(sizes[0], int) else "any")
        return PassResult()

    watch = CleanUp(name="watch", note="", run=note)
    config = CompileConfig(**{"mode": "display", "pass_config": flags(bench.module)} | settings)
    return CompiledModel(bench.module, config, [watch, *PIPELINE]), rows


def _is_row(node):
    value = value_of(node)
    return isinstance(value, torch.Tensor) and value.dtype == torch.int64


def decode(tokens, slots=None):
    """Return a uniform decode batch and its slots."""
    batch = make_batch([1] * tokens, [3] * tokens, num_decodes=tokens, block_size=BLOCK_SIZE)
    return batch, batch.slot_mapping(BLOCK_SIZE) if slots is None else slots


def prefill(tokens):
    batch = make_batch([tokens], [3], num_decodes=0, block_size=BLOCK_SIZE)
    return batch, batch.slot_mapping(BLOCK_SIZE)


def run(bench, function, batch, slots):
    bench.randomise(1)
    (layer,) = bench.layers
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(batch.num_tokens, layer.shape.hidden_size, generator=generator)
    positions, hidden = batch.positions(), hidden.to(layer.options.dtype)
    given = [positions.clone(), hidden.clone(), slots.clone()]
    context = ForwardContext(
        layers={layer.layer_name: layer}, metadata=batch, slot_mapping=given[2], checked=False
    )
    with torch.no_grad(), forward_context(context):
        output = function(*given[:2])
    for before, after in zip((positions, hidden, slots), given, strict=True):
        assert torch.equal(before, after), "an input was written"
    return {"output": output, "cache": layer.kv_cache.storage.clone()}


def check(bench, function, batch, slots):
    expected = run(bench, bench.module, batch, slots)
    assert_same(expected, run(bench, function, batch, slots))
    return expected["output"]


def test_three_ranges_and_three_sizes_are_six_graphs():
    bench = bench_of(shape_of(), 9)
    sizes = {"compile_sizes": (16, 64, 128), "compile_ranges_endpoints": (8, 32)}
    model, rows = compiled(bench, pass_config=PassConfig(), **sizes)
    for tokens in (4, 16, 20, 64, 100, 128):
        check(bench, model, *prefill(tokens))
    expected = ["1..8", "16", "9..32", "64", "33..8192", "128"]
    assert [str(key) for key in model.entries] == [f"general {x}" for x in expected]
    assert rows == ["any", 16, "any", 64, "any", 128]
    for tokens in (128, 8, 1, 9, 16, 32, 33, 64):
        check(bench, model, *prefill(tokens))
    assert len(rows) == 6, "a graph that there is is not compiled again"


@pytest.mark.parametrize(
    ("shape", "name", "make"),
    [
        (shape_of(), "MLAAiterQkRopeKVCacheFusionPass", decode),
        (preset("tiny-gqa"), "RopeKVCacheFusionPass", prefill),
    ],
    ids=["mla", "gqa"],
)
def test_the_border_of_a_fusion_is_crossed_both_ways(shape, name, make):
    bench = bench_of(shape, 257)
    model, rows = compiled(bench)
    for tokens in (256, 257, 256, 257, 255):
        check(bench, model, *make(tokens))
    assert len(rows) == 2
    matched = [(row.graph.split()[1], row.matched) for row in model.report() if row.name == name]
    assert sorted(matched) == [("1..256", 1), ("257..8192", 0)]


SLOTS = {
    "some negative": torch.tensor([-1, 40, -7, 3, 66]),
    "all negative": torch.full((5,), -1),
    "short": torch.tensor([40, 3]),
    "none at all": torch.empty(0, dtype=torch.int64),
}


@pytest.mark.parametrize("slots", SLOTS)
def test_negative_and_short_slot_maps(slots):
    bench = bench_of(shape_of(), 9)
    model, _ = compiled(bench)
    check(bench, model, *decode(5, SLOTS[slots]))
    assert [key.decode_only for key in model.entries] == [True]


def test_sizes_as_of_cuda_graphs():
    bench = bench_of(shape_of(), 256)
    model, rows = compiled(bench, compile_sizes=(1, 256))
    for tokens in (1, 256, 1, 256):
        batch, slots = decode(tokens)
        output = check(bench, model, batch, slots)
        assert output.isfinite().all()
        assert output.shape == (tokens, shape_of().hidden_size)
    assert rows == [1, 256]
