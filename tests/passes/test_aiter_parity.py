"""Lifted and fused decode graphs equal eager bit for bit, attention running and caches compared."""

from __future__ import annotations

import itertools

import pytest
import torch

from mlalab.compile.capture import LabBackend
from mlalab.compile.config import PassConfig
from mlalab.context import ForwardContext, make_batch
from mlalab.layers.mla import MLAOptions
from mlalab.ops import mla_decode
from mlalab.workbench import BLOCK_SIZE, build
from tests.passes.models import MANY, PLUMBING, assert_same, outcome, shape_of, slot_maps
from tests.passes.test_fusion_parity import negative_sin, pairwise, with_argument

FUSED = "mlalab.fused_aiter_qk_rope_kvcache_q_concat_quant_mla"
REPLACED = ("mlalab.fused_rope_unified_mla_kv_cache_update", "mlalab.mla_decode_q_prep")
ON = PassConfig(fuse_aiter_qk_rope_kvcache_mla=True)
FACTORS = {
    "kind": ("yarn", "default"),
    "is_neox": (False, True),
    "arithmetic": ("custom op", "fp32", "activation dtype"),
    "dtype": (torch.bfloat16, torch.float32, torch.float16),
    "kv_cache_dtype": ("auto", "fp8"),
    "layers": (1, 2, 3),
    "tokens": ("any", 0, 1, 3, 5, 63),
}


def batches(tokens):
    """Yield uniform decode batches of one token and, where it goes, three each; and None."""
    for query_len in (1, 3):
        if tokens % query_len == 0:
            count = tokens // query_len
            lengths = ([query_len] * count, [7] * count)
            yield make_batch(*lengths, num_decodes=count, block_size=BLOCK_SIZE)
    yield None


def steps_of(bench, tokens):
    hidden = torch.randn(tokens, bench.layers[0].shape.hidden_size)
    layers = {layer.layer_name: layer for layer in bench.layers}
    pairs = itertools.product(batches(tokens), slot_maps(tokens))
    if tokens > MANY:
        pairs = zip(itertools.cycle(batches(tokens)), slot_maps(tokens), strict=False)
    for metadata, slots in pairs:
        positions = torch.arange(tokens) + 3 if metadata is None else metadata.positions()
        context = ForwardContext(layers=layers, metadata=metadata, slot_mapping=slots)
        yield context, positions, hidden.to(bench.layers[0].options.dtype)


class Chain(torch.nn.Module):
    """Layers without residuals: with them Inductor would round once where eager rounds twice."""

    def __init__(self, layers):
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, positions, hidden):
        for layer in self.layers:
            hidden = layer(positions, hidden)
        return hidden


def check(*, kind, is_neox, arithmetic, dtype, kv_cache_dtype, layers, tokens):
    options = MLAOptions(
        kv_cache_dtype=kv_cache_dtype,
        rope_custom_op=arithmetic == "custom op",
        rope_in_fp32=arithmetic != "activation dtype",
        dtype=dtype,
    )
    bench = build(shape_of(kind, is_neox), tokens=64, num_layers=layers, options=options)
    module = Chain(bench.layers).eval()
    backend = LabBackend(ON, decode_only=True, keep_graphs=False)
    torch._dynamo.reset()
    compiled = torch.compile(module, backend=backend, fullgraph=True)

    def marked(*inputs):
        for x in inputs if tokens == "any" else ():
            torch._dynamo.mark_dynamic(x, 0)
        return compiled(*inputs)

    for count in (5, 3, 63) if tokens == "any" else (tokens,):
        for step in steps_of(bench, count):
            expected = outcome(bench, module, step)
            assert_same(expected, outcome(bench, marked, step))
            if step[0].metadata is not None and count:
                assert expected["output"].abs().sum() > 0, "attention did not run"
    (recorder,) = backend.recorders
    ops = [node.target for node in recorder.steps[-1].nodes]
    assert ops.count(FUSED) == layers
    assert not {*REPLACED, *PLUMBING} & set(ops)


CASES = pairwise(FACTORS)


@pytest.mark.parametrize("factors", CASES, ids=lambda f: "-".join(map(str, f.values())))
def test_parity(factors):
    check(**factors)


PLAIN = {name: values[0] for name, values in FACTORS.items()}
PLAIN |= {"dtype": torch.float32, "kv_cache_dtype": "fp8", "tokens": 5}
DAMAGE = {
    "the absorbed weight": with_argument(2, lambda w_uk: w_uk.roll(1, 0)),
    "the unrotated query": with_argument(0, lambda q_nope: q_nope * 1.1),
    "the latent": with_argument(3, lambda kv_c: kv_c * 1.1),
    "the query's scale": with_argument(9, torch.ones_like),
    "the key's scale": with_argument(8, torch.ones_like),
    "the slot": with_argument(7, lambda slots: None if slots is None else slots.roll(1)),
    "the written query": with_argument(6, torch.clone),
    "the position": with_argument(10, lambda positions: positions + 1),
    "the sign of sin": with_argument(11, negative_sin),
    "the pairing": with_argument(12, lambda is_neox: not is_neox),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_parity_notices_a_broken_kernel(damage, monkeypatch):
    pick = mla_decode.pick

    def damaged(op, device):
        kernel = pick(op, device)
        return lambda *arguments: kernel(*DAMAGE[damage](list(arguments)))

    monkeypatch.setattr(mla_decode, "pick", damaged)
    with pytest.raises(AssertionError, match="TensorDiff"):
        check(**PLAIN)
