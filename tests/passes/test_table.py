"""Every fusion on, against every fusion off and eager mode: how often each pass matches, by table.

Outputs and whole caches, slots that no token maps to included, agree bit for bit. The committed
cases cover every pair of values of every two factors; `check` takes any combination.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mlalab.checking import compare
from mlalab.compile.capture import LabBackend
from mlalab.compile.config import PassConfig
from mlalab.compile.ranges import CompileRange
from mlalab.context import ForwardContext, make_batch
from mlalab.layers.options import LayerOptions
from mlalab.ops import gqa, mla, mla_decode
from mlalab.shapes import RopeSpec, preset
from mlalab.workbench import BLOCK_SIZE, Workbench, build
from tests.passes.models import PLUMBING, Model, assert_same, chain, outcome, shape_of
from tests.passes.test_fusion_parity import negative_sin, pairwise, with_argument

FLAGS = ("fuse_rope_kvcache", "fuse_rope_kvcache_cat_mla", "fuse_aiter_qk_rope_kvcache_mla")
ON, OFF = (PassConfig(**dict.fromkeys(FLAGS, value)) for value in (True, False))
SERVED = CompileRange(0, 256)
FACTORS = {
    "kind": ("mla", "gqa"),
    "custom_op": (True, False),
    "is_neox": (True, False),
    "scaling": ("default", "yarn"),
    "stored": ("bf16 auto", "bf16 fp8", "fp16 auto", "fp32 auto"),
    "layers": (1, 2, 3, "unlike"),
    "dynamic": (False, True),
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

CAT, ROPE = "MLARoPEKVCacheCatFusionPass", "RopeKVCacheFusionPass"
LIFT, AITER = "MLADecodeQPrepLiftPass", "MLAAiterQkRopeKVCacheFusionPass"
EACH, NONE, SKIPPED = "each layer", "no match", "not decode only"
EXPECTED = {
    ("mla", "decode"): {CAT: EACH, ROPE: NONE, LIFT: EACH, AITER: EACH},
    ("mla", "mixed"): {CAT: EACH, ROPE: NONE, LIFT: SKIPPED, AITER: SKIPPED},
    ("gqa", "decode"): {CAT: NONE, ROPE: EACH, LIFT: NONE, AITER: NONE},
    ("gqa", "mixed"): {CAT: NONE, ROPE: EACH, LIFT: SKIPPED, AITER: SKIPPED},
}
"""Kind of layer and of batch → what becomes of each fusion."""
LEFT = {
    ("mla", "decode"): "fused_aiter_qk_rope_kvcache_q_concat_quant_mla",
    ("mla", "mixed"): "fused_rope_unified_mla_kv_cache_update",
    ("gqa", "decode"): "fused_rope_and_unified_kv_cache_update",
    ("gqa", "mixed"): "fused_rope_and_unified_kv_cache_update",
}
"""The one op that rotates, or writes a cache, in the final graph."""
GONE = {*LEFT.values(), "rotary_embedding", "unified_mla_kv_cache_update"}
GONE |= {"unified_kv_cache_update", "mla_decode_q_prep"}

REQUESTS = {
    "decode": {5: ([1] * 5, 5), 3: ([1] * 3, 3)},
    "mixed": {5: ([1, 1, 3], 2), 3: ([1, 2], 1)},
}
"""Kind of batch → token count → query lengths, and how many of the requests decode."""


def shapes(kind, scaling, is_neox):
    """Yield a shape, then unlike ones."""
    narrow = {"num_heads": 2}
    if kind == "mla":
        yield shape_of(scaling, is_neox)
        yield shape_of(scaling, is_neox, qk_rope_head_dim=8, kv_lora_rank=32, **narrow)
        yield shape_of(scaling, is_neox, q_lora_rank=None, v_head_dim=8)
        return
    spec = RopeSpec(kind=scaling, is_neox=is_neox, original_max_position_embeddings=64)
    spec = dataclasses.replace(spec, factor=8.0) if scaling == "yarn" else spec
    yield preset("tiny-gqa", rope=spec)
    yield preset("tiny-gqa", rope=spec, num_kv_heads=1, head_dim=8, **narrow)
    yield preset("tiny-gqa", rope=spec, num_heads=3, num_kv_heads=3)


def bench_of(*, kind, custom_op, is_neox, scaling, stored, layers):
    """Return layers of one shape, or of three, with more cache than any batch uses."""
    dtype, cache = stored.split()
    options = LayerOptions(
        kv_cache_dtype=cache, rope_custom_op=custom_op, dtype=DTYPES[dtype], device="cpu"
    )
    made = [*shapes(kind, scaling, is_neox)]
    made = made if layers == "unlike" else made[:1] * layers
    made = [build(shape, tokens=1, options=options).layers[0] for shape in made]
    for index, layer in enumerate(made):
        layer.layer_name = f"model.layers.{index}.self_attn"
        layer.allocate_cache(8, BLOCK_SIZE)
    none = make_batch([], [], num_decodes=0, block_size=BLOCK_SIZE)
    return Workbench(
        module=Model(made, chain), layers=made, metadata=none, slot_mapping=torch.arange(0)
    )


def step_of(bench, batch, tokens):
    """Return context, positions and hidden states of one step; one of the rows is not cached."""
    lengths, decodes = REQUESTS[batch][tokens]
    contexts = [9 + request for request in range(len(lengths))]
    metadata = make_batch(lengths, contexts, num_decodes=decodes, block_size=BLOCK_SIZE)
    slots = metadata.slot_mapping(BLOCK_SIZE)
    slots[1] = -1
    layers = {layer.layer_name: layer for layer in bench.layers}
    context = ForwardContext(layers=layers, metadata=metadata, slot_mapping=slots)
    hidden = torch.randn(tokens, bench.layers[0].shape.hidden_size)
    return context, metadata.positions(), hidden.to(bench.layers[0].options.dtype)


def compiled(bench, config, batch, dynamic):
    """Return the compiled module and the backend that records it."""
    backend = LabBackend(
        config, compile_range=SERVED, decode_only=batch == "decode", keep_graphs=False
    )
    torch._dynamo.reset()
    function = torch.compile(bench.module, backend=backend, fullgraph=True)

    def call(*inputs):
        for x in inputs if dynamic else ():
            torch._dynamo.mark_dynamic(x, 0)
        return function(*inputs)

    return call, backend


def assert_cached(bench, found, slots):
    """Check that the slots of the batch were written in every cache, and no other byte."""
    bench.randomise(1)
    written = sorted(slot for slot in slots.tolist() if slot >= 0)
    for layer in bench.layers:
        dim = 0 if layer.kind == "mla" else 1
        before, after = (
            x.flatten(dim, dim + 1).movedim(dim, 0)
            for x in (layer.kv_cache.storage, found[layer.layer_name])
        )
        changed = (before != after).flatten(1).any(1).nonzero().flatten().tolist()
        assert changed == written
        assert len(changed) < len(before) // 2, "some slots must not be used"


def check(*, dynamic, **factors):
    bench, kind = bench_of(**factors), factors["kind"]
    off, _ = compiled(bench, OFF, "mixed", dynamic)
    counts = (5, 3) if dynamic else (5,)
    expected = {}
    for batch in REQUESTS:
        for tokens in counts:
            step = step_of(bench, batch, tokens)
            eager = outcome(bench, bench.module, step)
            expected[batch, tokens] = step, outcome(bench, off, step)
            for name, x in expected[batch, tokens][1].items():
                assert compare(name, eager[name], x).close
            assert eager["output"].abs().sum() > 0, "attention did not run"
            assert_cached(bench, eager, step[0].slot_mapping)
    for batch in REQUESTS:
        on, backend = compiled(bench, ON, batch, dynamic)
        for tokens in counts:
            step, result = expected[batch, tokens]
            assert_same(result, outcome(bench, on, step))
        assert_matches(backend, (kind, batch), len(bench.layers))


def assert_matches(backend, served, layers):
    """Compare what each fusion did with the tables."""
    (recorder,) = backend.recorders
    statuses = recorder.skipped | {step.name: step.status for step in recorder.steps}
    matches = {step.name: len(step.matches) for step in recorder.steps}
    for name, expected in EXPECTED[served].items():
        assert statuses[name] == ("applied" if expected is EACH else expected), name
        assert matches.get(name, 0) == (layers if expected is EACH else 0), name
    ops = [node.target.removeprefix("mlalab.") for node in recorder.steps[-1].nodes]
    assert {op: ops.count(op) for op in GONE if op in ops} == {LEFT[served]: layers}
    assert not set(PLUMBING) & set(ops)


@pytest.mark.parametrize("factors", pairwise(FACTORS), ids=lambda f: "-".join(map(str, f.values())))
def test_table(factors):
    check(**factors)


PLAIN = {name: values[0] for name, values in FACTORS.items()} | {"stored": "fp32 auto"}
DAMAGE = {
    "mla, mixed": ("mla", mla, "fused_rope_unified_mla_kv_cache_update", 4),
    "mla, decode": ("mla", mla_decode, "fused_absorb_qk_rope_concat_and_cache_mla", 11),
    "gqa": ("gqa", gqa, "fused_rope_and_unified_kv_cache_update", 4),
}
"""Kind of layer, module and kernel, and which of its arguments is the table of cos and sin."""


def break_kernel(monkeypatch, damage):
    """Turn the wrong way; returns the factors of a check that runs the kernel."""
    kind, module, kernel, place = DAMAGE[damage]
    pick, change = module.pick, with_argument(place, negative_sin)

    def damaged(op, device):
        whole = pick(op, device)
        return (lambda *given: whole(*change([*given]))) if op == kernel else whole

    monkeypatch.setattr(module, "pick", damaged)
    return PLAIN | {"kind": kind}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_broken_kernel_is_noticed(damage, monkeypatch):
    with pytest.raises(AssertionError, match="TensorDiff"):
        check(**break_kernel(monkeypatch, damage))


def test_a_rotation_that_turns_nothing_would_hide_it(monkeypatch):
    factors, make = break_kernel(monkeypatch, "mla, mixed"), bench_of

    def unturned(**arguments):
        bench = make(**arguments)
        for layer in bench.layers:
            cos, sin = layer.rotary_emb.cos_sin_cache.chunk(2, -1)
            cos.fill_(1), sin.fill_(0)
        return bench

    monkeypatch.setitem(globals(), "bench_of", unturned)
    check(**factors)
