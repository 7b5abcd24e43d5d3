"""An exposed layer compiled: a graph for each kind of batch, the same bits, what a trace shows."""

from __future__ import annotations

import pytest
import torch

import mlalab
from mlalab.compile import entries
from mlalab.context import make_batch
from tests.compile.batches import compiled, flags, mixed, model, run
from tests.layers.test_mla_paths import BATCHES, CACHES, outcome
from tests.passes.models import assert_same, targets

SPLIT, DECODE, PREFILL = (
    "mlalab.mla_split_batch",
    "mlalab.mla_attention_decode",
    "mlalab.mla_attention_prefill",
)
OPAQUE = "mlalab.unified_mla_attention_with_output"


@pytest.fixture
def compilations(monkeypatch):
    """Count what is compiled."""
    counted = []
    original = entries.inductor.compile_with

    def compile_with(*arguments):
        counted.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(entries.inductor, "compile_with", compile_with)
    return counted


def compare_all(options, *names, **settings):
    opaque, exposed = (model(*names, exposed=x, **options) for x in (False, True))
    function = compiled(exposed, pass_config=flags(exposed, aiter=False), **settings)
    for name, (batch, rows) in BATCHES.items():
        found, expected = run(function, list(exposed.layers), batch, rows), outcome(opaque, name)
        if name == "padded decode":
            # The graph multiplies the padding too, and rows in number may sum in another order.
            torch.testing.assert_close(found.pop("output"), expected.pop("output"))
        assert_same(expected, found)
    return function


# A batch of no rows has a graph of its own.
SERVED = {"general 0", "general 1..64", "decode 1..64", "prefill 1..64"}


@pytest.mark.parametrize("options", CACHES)
def test_one_graph_of_each_kind_serves_every_split(options, compilations):
    function = compare_all(CACHES[options], "tiny", *(["tiny"] if options == "fp8" else []))
    assert {str(key) for key in function.entries} == SERVED
    assert len(compilations) == len(SERVED)


def test_generated_code_does_the_same(compilations):
    function = compare_all(CACHES["fp8"], "tiny", mode="inductor")
    assert len(compilations) == len(function.entries) == len(SERVED)


@pytest.mark.parametrize(("mode", "options"), [("display", "fp8"), ("inductor", "bf16")])
def test_a_graph_of_one_size_serves_every_split(mode, options, compilations):
    options = CACHES[options]
    opaque, exposed = (model("tiny", exposed=x, **options) for x in (False, True))
    function = compiled(exposed, compile_sizes=(7,), mode=mode, pass_config=flags(exposed))
    for batch in (mixed(2, 5), mixed(1, 2, 4), mixed(6, 1)):
        expected = run(opaque, list(opaque.layers), batch)
        assert_same(expected, run(function, list(exposed.layers), batch))
    assert len(compilations) == 1


MIXED = make_batch([1, 2, 5], [4, 4, 3], num_decodes=2, block_size=16)


def trace(dynamic=False, **options):
    options = mlalab.LayerOptions(dtype=torch.bfloat16, exposed=True, **options)
    return mlalab.trace("tiny", options=options, metadata=MIXED, dynamic=dynamic).check()


@pytest.mark.parametrize(
    ("options", "dynamic"),
    [({}, False), ({"kv_cache_dtype": "fp8"}, True), ({"rope_custom_op": True}, False)],
)
def test_a_trace_shows_the_decode_query_made_of_plain_ops(options, dynamic):
    result = trace(dynamic, **options)
    assert result.ok
    names = targets(result)
    assert OPAQUE not in names
    at = [names.index(name) for name in (SPLIT, "aten.bmm", "aten.cat", DECODE, PREFILL)]
    assert at == sorted(at)
    quantised = [node for node in result[-1].nodes if "float8" in node.text]
    assert len(quantised) == (options == {"kv_cache_dtype": "fp8"})
    # RoPE and the cache write are fused as before.
    assert names.count("mlalab.fused_rope_unified_mla_kv_cache_update") == 1


def test_attention_is_ordered_behind_the_cache_write():
    nodes = {node.name: node for node in trace()[-1].nodes}
    (write,) = (n.name for n in nodes.values() if "kv_cache_update" in n.target)
    for op in (DECODE, PREFILL):
        (reader,) = (node for node in nodes.values() if node.target == op)
        assert write in reader.inputs


def test_a_hidden_split_leaves_the_graph_as_it_was():
    options = mlalab.LayerOptions(dtype=torch.bfloat16)
    names = targets(mlalab.trace("tiny", options=options, metadata=MIXED))
    assert names.count(OPAQUE) == 1
    assert not {SPLIT, DECODE, PREFILL} & set(names)


def test_warm_up_compiles_no_graph_that_no_batch_reaches():
    exposed = model("tiny", exposed=True, **CACHES["fp8"])
    function = compiled(exposed, pass_config=flags(exposed), verify=False)
    function.warm_up()
    keys = {f"{kind} {served}" for kind in ("general", "prefill") for served in ("1..8", "9..64")}
    assert {str(key) for key in function.entries} == keys | {"decode 1..8"}
