"""RoPE + cache update of ordinary attention: fused, unfused and eager are equal bit for bit."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mlalab.compile.capture import LabBackend
from mlalab.compile.config import PassConfig
from mlalab.compile.ranges import CompileRange
from mlalab.layers.options import LayerOptions
from mlalab.ops import gqa as ops_module
from mlalab.passes.pipeline import PIPELINE
from mlalab.passes.rope_kvcache import RopeKVCacheFusionPass, replacement_with
from mlalab.shapes import RopeSpec, preset
from mlalab.workbench import build
from tests.passes.models import (
    PLUMBING,
    assert_same,
    chain,
    fuse,
    on_bench,
    outcome,
    stand,
    steps_of,
    targets,
)
from tests.passes.test_fusion_parity import negative_sin, ops_of, pairwise, with_argument

NAME = RopeKVCacheFusionPass.name
FUSED = "mlalab.fused_rope_and_unified_kv_cache_update"
UPDATE = "mlalab.unified_kv_cache_update"
ON, OFF = (PassConfig(fuse_rope_kvcache=x, fuse_rope_kvcache_cat_mla=x) for x in (True, False))
SERVED = CompileRange(0, 256)
FACTORS = {
    "kind": ("default", "yarn"),
    "is_neox": (True, False),
    "arithmetic": ("custom op", "fp32", "activation dtype"),
    "dtype": (torch.bfloat16, torch.float32, torch.float16),
    "table": (torch.float32, None),
    "kv_cache_dtype": ("auto", "fp8"),
    # One graph for all token counts, or one graph for this count.
    "tokens": ("any", 0, 1, 3, 5, 63),
}
SEVERAL = (5, 3, 63)


def shape_of(kind="default", is_neox=True, **overrides):
    spec = RopeSpec(kind=kind, is_neox=is_neox, original_max_position_embeddings=64)
    if kind == "yarn":
        spec = dataclasses.replace(spec, factor=8.0)
    return preset("tiny-gqa", rope=spec, **overrides)


def bench_of(*, kind, is_neox, arithmetic, dtype, table, kv_cache_dtype):
    options = LayerOptions(
        kv_cache_dtype=kv_cache_dtype,
        rope_custom_op=arithmetic == "custom op",
        rope_in_fp32=arithmetic != "activation dtype",
        rope_cache_dtype=table,
        dtype=dtype,
    )
    return build(shape_of(kind, is_neox), tokens=64, options=options)


def compiled(bench, config, tokens, served=SERVED):
    """Return the compiled module and the backend that recorded it."""
    backend = LabBackend(config, compile_range=served, keep_graphs=False)
    torch._dynamo.reset()
    function = torch.compile(bench.module, backend=backend, fullgraph=True)

    def call(*inputs):
        for x in inputs if tokens == "any" else ():
            torch._dynamo.mark_dynamic(x, 0)
        return function(*inputs)

    return call, backend


def check(tokens, **factors):
    bench = bench_of(**factors)
    fused, fused_backend = compiled(bench, ON, tokens)
    unfused, unfused_backend = compiled(bench, OFF, tokens)
    for count in SEVERAL if tokens == "any" else (tokens,):
        for step in steps_of(bench, count):
            expected = outcome(bench, bench.module, step)
            assert_same(expected, outcome(bench, fused, step))
            assert_same(expected, outcome(bench, unfused, step))
    ops = ops_of(fused_backend)
    assert ops.count(FUSED) == 1
    assert not {UPDATE, "mlalab.rotary_embedding", *PLUMBING} & set(ops)
    assert ops_of(unfused_backend).count(UPDATE) == 1


@pytest.mark.parametrize("factors", pairwise(FACTORS), ids=lambda f: "-".join(map(str, f.values())))
def test_parity(factors):
    check(**factors)


def fused(bench, **arguments):
    return fuse(bench, config=ON, **arguments)


@pytest.mark.parametrize("custom_op", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_every_layer_is_fused_once(layers, custom_op):
    bench = stand(chain, layers, shape=shape_of(), rope_custom_op=custom_op, dtype=torch.bfloat16)
    trace = fused(bench)
    names = [f"model.layers.{i}.self_attn" for i in range(layers)]
    assert [match.layer for match in trace[NAME].matches] == names
    assert targets(trace).count(FUSED) == layers
    assert not {UPDATE, *PLUMBING} & set(targets(trace))


def test_layers_of_unlike_shapes_and_kinds_in_one_graph():
    shapes = [
        shape_of(),
        shape_of("yarn", is_neox=False, num_heads=4, num_kv_heads=4, head_dim=8),
        preset("tiny"),
        shape_of(num_heads=3, num_kv_heads=1),
    ]
    half = {"dtype": torch.bfloat16}
    given = (half, {"kv_cache_dtype": "fp8"}, half, {**half, "rope_custom_op": True})
    options = [LayerOptions(**x) for x in given]
    benches = [build(x, tokens=5, options=o) for x, o in zip(shapes, options, strict=True)]
    layers = [bench.layers[0] for bench in benches]
    for index, layer in enumerate(layers):
        layer.layer_name = f"model.layers.{index}.self_attn"

    def model(layers, positions, hidden):
        for layer in layers:
            hidden = layer(positions, hidden.to(layer.options.dtype))
        return hidden

    trace = fused(on_bench(model, layers, benches[0]))
    assert [match.variant for match in trace[NAME].matches] == [
        "plain/neox (half, fp32 table)",
        "plain/gptj (fp32)",
        "custom op/neox, flat",
    ]
    assert len(trace["MLARoPEKVCacheCatFusionPass"].matches) == 1


def on_heads(layers, positions, hidden):
    """Rotate heads instead of flat tensors, and show the rotated query and key."""
    (layer,) = layers
    shape = layer.shape
    q, k, v = layer.qkv_proj(hidden).split([shape.q_size, shape.kv_size, shape.kv_size], -1)
    q, k, v = (x.view(-1, x.size(-1) // shape.head_dim, shape.head_dim) for x in (q, k, v))
    q, k = layer.rotary_emb(positions, q * 2, k * 3)
    dummy = torch.ops.mlalab.unified_kv_cache_update(k, v, layer.layer_name)
    output = q.new_empty((q.size(0), shape.q_size))
    torch.ops.mlalab.unified_attention_with_output(q, k, v, output, layer.layer_name, dummy)
    return output, q, k


@pytest.mark.parametrize("is_neox", [True, False])
def test_a_custom_op_on_heads_is_fused_too(is_neox):
    trace = fused(stand(on_heads, shape=shape_of(is_neox=is_neox), rope_custom_op=True))
    (match,) = trace[NAME].matches
    assert match.variant == f"custom op/{'neox' if is_neox else 'gptj'}"


@pytest.mark.parametrize(
    ("end", "status"), [(256, "applied"), (257, "out of range"), (None, "out of range")]
)
def test_the_range_ends_where_the_configuration_says(end, status):
    bench = stand(chain, shape=shape_of())
    served = None if end is None else CompileRange(1, end)
    function, backend = compiled(bench, ON, 5, served)
    bench.run(function, bench.positions, bench.hidden_TD)
    (recorder,) = backend.recorders
    ran = {step.name: step.status for step in recorder.steps}
    assert {**ran, **recorder.skipped}[NAME] == status


def test_without_rope_it_does_not_match_and_says_why():
    trace = fused(stand(chain, shape=shape_of("none")))
    assert trace[NAME].status == "refused"
    (refusal,) = trace[NAME].refusals
    assert refusal.layer == "model.layers.0.self_attn"


@pytest.mark.parametrize("custom_op", [False, True])
def test_fused_twice_is_fused_once(custom_op):
    again = dataclasses.replace(RopeKVCacheFusionPass, name="again")
    passes = list(PIPELINE)
    passes.insert(passes.index(RopeKVCacheFusionPass) + 1, again)
    trace = fused(stand(chain, 2, shape=shape_of(), rope_custom_op=custom_op), passes=passes)
    assert len(trace[NAME].matches) == 2
    assert (trace["again"].status, trace["again"].matches) == ("no match", ())


DAMAGE = {
    "the written query": with_argument(0, torch.clone),
    "the value": with_argument(2, lambda value: value + 1),
    "the position": with_argument(3, lambda positions: positions + 1),
    "the sign of sin": with_argument(4, negative_sin),
    "the pairing": with_argument(5, lambda is_neox: not is_neox),
    "the slot": with_argument(7, lambda slots: None if slots is None else slots.roll(1)),
    "the scale of keys": with_argument(8, torch.ones_like),
    "the scale of values": with_argument(9, torch.ones_like),
}
DAMAGED = {name: values[0] for name, values in FACTORS.items()}
DAMAGED |= {"arithmetic": "fp32", "dtype": torch.float32, "kv_cache_dtype": "fp8", "tokens": 5}


def test_parity_holds_while_the_kernel_is_whole():
    check(**DAMAGED)


def break_kernel(monkeypatch, damage):
    pick = ops_module.pick

    def damaged(op, device):
        if op != "fused_rope_and_unified_kv_cache_update":
            return pick(op, device)
        return lambda *arguments: pick(op, device)(*damage(list(arguments)))

    monkeypatch.setattr(ops_module, "pick", damaged)


@pytest.mark.parametrize("damage", DAMAGE)
def test_parity_notices_a_broken_kernel(damage, monkeypatch):
    break_kernel(monkeypatch, DAMAGE[damage])
    with pytest.raises(AssertionError, match="TensorDiff"):
        check(**DAMAGED)


@pytest.mark.parametrize("written", [0, 1])
def test_a_query_or_key_that_is_not_written_is_noticed(written, monkeypatch):
    # Attention reads keys from the cache, so only a model that shows them can tell.
    break_kernel(monkeypatch, with_argument(written, torch.clone))
    with pytest.raises(AssertionError, match="TensorDiff"):
        fused(stand(on_heads, shape=shape_of()))


def test_parity_notices_a_wrong_replacement():
    variants = tuple(
        dataclasses.replace(v, replacement=replacement_with("gptj" in v.name, True))
        for v in RopeKVCacheFusionPass.variants
    )
    wrong = {NAME: dataclasses.replace(RopeKVCacheFusionPass, variants=variants)}
    passes = [wrong.get(p.name, p) for p in PIPELINE]
    with pytest.raises(AssertionError, match=NAME):
        fused(stand(chain, shape=shape_of()), passes=passes)
