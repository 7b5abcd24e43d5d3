"""The fused layer equals the unfused one and the eager one, bit for bit, cache bytes included.

The committed cases cover every pair of values of every two factors; `check` takes any combination.
"""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from mlalab.compile.capture import LabBackend
from mlalab.compile.config import config_of
from mlalab.layers.mla import MLAOptions
from mlalab.ops import mla as ops_module
from mlalab.passes.mla_rope_kvcache_cat import MLARoPEKVCacheCatFusionPass, replacement_with
from mlalab.passes.pipeline import PIPELINE
from mlalab.workbench import build
from tests.passes.models import (
    FUSED,
    FUSION,
    PLUMBING,
    UPDATE,
    assert_same,
    chain,
    fuse,
    on_bench,
    outcome,
    shape_of,
    stand,
    steps_of,
    targets,
)

FACTORS = {
    "kind": ("yarn", "default"),
    "is_neox": (False, True),
    "arithmetic": ("custom op", "fp32", "activation dtype"),
    "dtype": (torch.bfloat16, torch.float32, torch.float16),
    "table": (torch.float32, None),
    "kv_cache_dtype": ("auto", "fp8"),
    "q_lora_rank": (48, None),
    # One graph for all token counts, asked for in two ways, or one graph for this count.
    "tokens": ("marked", "dynamic", 0, 1, 3, 5, 63),
}
SEVERAL = (5, 3, 63)
"""Token counts that one dynamic graph serves; the first is traced."""


def pairwise(factors):
    """Return few combinations such that every two values of two factors meet in one of them."""
    names = list(factors)
    product = list(itertools.product(*factors.values()))
    pairs = {
        combination: set(itertools.combinations(zip(names, combination, strict=True), 2))
        for combination in product
    }
    missing = set().union(*pairs.values())
    chosen = []
    while missing:
        best = max(product, key=lambda combination: len(pairs[combination] & missing))
        missing -= pairs[best]
        chosen.append(dict(zip(names, best, strict=True)))
    return chosen


def bench_of(*, kind, is_neox, arithmetic, dtype, table, kv_cache_dtype, q_lora_rank):
    options = MLAOptions(
        kv_cache_dtype=kv_cache_dtype,
        rope_custom_op=arithmetic == "custom op",
        rope_in_fp32=arithmetic != "activation dtype",
        rope_cache_dtype=table,
        dtype=dtype,
    )
    bench = build(shape_of(kind, is_neox, q_lora_rank=q_lora_rank), tokens=64, options=options)
    bench.layers[0].k_scale.fill_(0.37)
    return bench


def compiled(bench, level, tokens):
    """Return the compiled module and the backend that recorded it."""
    backend = LabBackend(config_of(level), keep_graphs=False)
    torch._dynamo.reset()
    function = torch.compile(
        bench.module, backend=backend, fullgraph=True, dynamic=True if tokens == "dynamic" else None
    )

    def call(*inputs):
        for x in inputs if tokens == "marked" else ():
            torch._dynamo.mark_dynamic(x, 0)
        return function(*inputs)

    return call, backend


def check(tokens, **factors):
    bench = bench_of(**factors)
    counts = (tokens,) if isinstance(tokens, int) else SEVERAL
    fused, fused_backend = compiled(bench, "O2", tokens)
    runs = []
    for count in counts:
        for step in steps_of(bench, count):
            runs.append((step, outcome(bench, bench.module, step)))
            assert_same(runs[-1][1], outcome(bench, fused, step))
    unfused, unfused_backend = compiled(bench, "O0", tokens)
    for step, expected in runs:
        assert_same(expected, outcome(bench, unfused, step))
    ops = ops_of(fused_backend)
    assert ops.count(FUSED) == 1
    assert not {UPDATE, *PLUMBING} & set(ops)
    ops = ops_of(unfused_backend)
    assert (ops.count(FUSED), ops.count(UPDATE)) == (0, 1)


def ops_of(backend):
    """Return the ops of the one final graph: no token count asked for another."""
    # dynamic=True makes torch start over once it sees that eps is a number that never changes.
    (recorder,) = (r for r in backend.recorders if len(r.steps) > 1)
    return [node.target for node in recorder.steps[-1].nodes]


CASES = pairwise(FACTORS)


@pytest.mark.parametrize("factors", CASES, ids=lambda f: "-".join(map(str, f.values())))
def test_parity(factors):
    check(**factors)


def test_cases_cover_every_pair():
    values = [(name, value) for name, options in FACTORS.items() for value in options]
    for (a, x), (b, y) in itertools.combinations(values, 2):
        assert a == b or any(case[a] == x and case[b] == y for case in CASES)


@pytest.mark.parametrize("custom_op", [False, True])
def test_every_layer_is_fused_once(custom_op):
    trace = fuse(stand(chain, 3, rope_custom_op=custom_op, dtype=torch.bfloat16))
    layers = [f"model.layers.{i}.self_attn" for i in range(3)]
    assert [match.layer for match in trace[FUSION].matches] == layers
    assert targets(trace).count(FUSED) == 3
    assert not {UPDATE, *PLUMBING} & set(targets(trace))


def test_layers_of_different_widths_and_dtypes_in_one_graph():
    benches = [
        build(shape_of(), tokens=5, options=MLAOptions(dtype=torch.bfloat16)),
        build(
            shape_of("default", True, qk_rope_head_dim=8, num_heads=2, kv_lora_rank=32),
            tokens=5,
            options=MLAOptions(dtype=torch.float32, kv_cache_dtype="fp8"),
        ),
        build(shape_of(), tokens=5, options=MLAOptions(dtype=torch.bfloat16, rope_custom_op=True)),
    ]
    layers = [bench.layers[0] for bench in benches]
    for index, layer in enumerate(layers):
        layer.layer_name = f"model.layers.{index}.self_attn"

    def model(layers, positions, hidden):
        for layer in layers:
            hidden = layer(positions, hidden.to(layer.options.dtype))
        return hidden

    trace = fuse(on_bench(model, layers, benches[0]))
    assert [match.variant for match in trace[FUSION].matches] == [
        "deepseek_scaling/gptj (half, fp32 table)",
        "plain/neox (fp32)",
        "custom op/gptj",
    ]


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_layer_without_rope_does_not_match_and_says_why(dynamic):
    trace = fuse(stand(chain, shape=shape_of("none")), dynamic=dynamic)
    assert trace[FUSION].status == "refused"
    (refusal,) = trace[FUSION].refusals
    assert refusal.reason == f"expected {refusal.expected}, found aten.unsqueeze at unsqueeze"
    assert refusal.layer == "model.layers.0.self_attn"
    assert targets(trace).count(UPDATE) == 1


def broken(name, change):
    """Return a replacement for `pick` that damages what one kernel gets."""
    pick = ops_module.pick

    def damaged(op, device):
        kernel = pick(op, device)
        return (lambda *arguments: kernel(*change(list(arguments)))) if op == name else kernel

    return damaged


def with_argument(index, change):
    def changed(arguments):
        arguments[index] = change(arguments[index])
        return arguments

    return changed


def negative_sin(table):
    cos, sin = table.chunk(2, dim=-1)
    return torch.cat((cos, -sin), dim=-1)


KERNEL = "fused_rope_unified_mla_kv_cache_update"
DAMAGE = {
    "the sign of sin": with_argument(4, negative_sin),
    "the pairing": with_argument(5, lambda is_neox: not is_neox),
    "the slot": with_argument(7, lambda slots: slots.roll(1)),
    "the scale": with_argument(8, torch.ones_like),
    "the position": with_argument(0, lambda positions: positions + 1),
    "the written query": with_argument(1, torch.clone),
    "the written key": with_argument(2, torch.clone),
}


DAMAGED = {name: values[0] for name, values in FACTORS.items()}
DAMAGED |= {"dtype": torch.float32, "kv_cache_dtype": "fp8", "tokens": 5}


def test_parity_holds_while_the_kernel_is_whole():
    check(**DAMAGED)


@pytest.mark.parametrize("damage", DAMAGE)
def test_parity_notices_a_broken_kernel(damage, monkeypatch):
    monkeypatch.setattr(ops_module, "pick", broken(KERNEL, DAMAGE[damage]))
    with pytest.raises(AssertionError, match="TensorDiff"):
        check(**DAMAGED)


def test_parity_notices_a_wrong_replacement():
    variants = tuple(
        dataclasses.replace(v, replacement=replacement_with("gptj" in v.name, True))
        for v in MLARoPEKVCacheCatFusionPass.variants
    )
    wrong = dataclasses.replace(MLARoPEKVCacheCatFusionPass, variants=variants)
    passes = [wrong if p is MLARoPEKVCacheCatFusionPass else p for p in PIPELINE]
    bench = stand(chain)
    fuse(bench)
    with pytest.raises(AssertionError, match=FUSION):
        fuse(bench, passes=passes)
