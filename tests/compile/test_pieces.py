"""Where a graph is cut, and that its pieces together do what it does."""

from __future__ import annotations

import pytest
import torch

from mlalab.compile.pieces import SPLITTING_OPS, cut
from mlalab.context import graph_serves
from mlalab.workbench import build
from tests.compile.batches import compiled, decode, flags, mixed, model, prefill, run
from tests.passes.models import assert_same

FP8 = {"kv_cache_dtype": "fp8", "dtype": torch.bfloat16}


def pieces_of(kind="general", exposed=True):
    """Return the names of the ops in each piece, and whether a graph may hold it."""
    from mlalab.compile.faces import Face
    from mlalab.layers.options import LayerOptions

    options = LayerOptions(exposed=exposed, kv_cache_dtype="fp8", dtype=torch.bfloat16)
    bench = build("tiny", tokens=4, num_layers=2, options=options)
    face = Face(bench.module, kind, typical_rows=8)
    with graph_serves(kind):
        gm, _ = bench.run(face.traced, bench.positions, bench.hidden_TD)
    split, safe = cut(gm, face.activations)
    names = {name: [str(node.target) for node in getattr(split, name).graph.nodes] for name in safe}
    return [(safe[name], " ".join(names[name])) for name in safe]


@pytest.mark.parametrize("kind", ["general", "decode", "prefill"])
@pytest.mark.parametrize("exposed", [False, True], ids=["opaque", "exposed"])
def test_attention_stands_alone_and_the_rest_may_be_captured(kind, exposed):
    pieces = pieces_of(kind, exposed=exposed)
    # An exposed model's one split comes first of all.
    first = [False] if exposed and kind == "general" else []
    assert [safe for safe, _ in pieces] == [*first, True, False, True, False, True]
    for safe, ops in pieces:
        assert safe != any(str(op) in ops.split() for op in SPLITTING_OPS)


def test_what_has_the_split_in_its_sizes_stays_with_attention():
    ops = [text for safe, text in pieces_of() if not safe]
    assert "mla_split_batch" in ops[0]
    for name in ("bmm", "cat", "mla_attention_decode", "mla_attention_prefill", "clamp"):
        assert name in ops[1]
    assert not any("linear" in text for text in ops)


@pytest.mark.parametrize("exposed", [False, True], ids=["opaque", "exposed"])
def test_generated_code_of_pieces_does_what_eager_mode_does(exposed):
    eager = model("tiny", "tiny", **FP8)
    module = model("tiny", "tiny", exposed=exposed, **FP8)
    settings = {"mode": "inductor", "cudagraph_mode": "PIECEWISE"}
    function = compiled(module, pass_config=flags(module, aiter=False), **settings)
    for batch in (mixed(2, 3), mixed(1, 1, 4), prefill(4, 1), decode(3)):
        expected = run(eager, list(eager.layers), batch)
        assert_same(expected, run(function, list(module.layers), batch))
    assert all(entry.partitions == 5 for entry in function.entries.values())


def test_the_outcomes_of_a_pass_in_all_pieces_are_one():
    module = model("tiny", "tiny", exposed=True, **FP8)
    function = compiled(module, cudagraph_mode="PIECEWISE", pass_config=flags(module, aiter=False))
    run(function, list(module.layers), mixed(2, 3))
    (row,) = function.report()
    assert (row.name, row.status, row.matched) == ("MLARoPEKVCacheCatFusionPass", "applied", 2)


def test_an_empty_batch_is_not_cut():
    module = model("tiny", exposed=True, **FP8)
    function = compiled(module, cudagraph_mode="PIECEWISE", pass_config=flags(module, aiter=False))
    run(function, list(module.layers), prefill())
    assert [entry.partitions for entry in function.entries.values()] == [1]
