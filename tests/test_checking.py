"""The proof beside each step: it sees every kind of damage, down to one bit."""

import pytest
import torch

import mlalab
from mlalab.checking import compare
from mlalab.errors import TraceError
from mlalab.lab import record
from mlalab.passes.fusion import CleanUp, PassResult
from mlalab.passes.pipeline import PIPELINE
from mlalab.workbench import build

aten = torch.ops.aten


def test_compare_counts_bits_not_values():
    a = torch.tensor([0.0, torch.nan, 1.0, 2.0])
    b = torch.tensor([-0.0, torch.nan, 1.0, 2.5])
    diff = compare("x", a, b)
    assert (diff.mismatched, diff.total, diff.max_abs, diff.equal) == (2, 4, 0.5, False)
    assert compare("x", a, a.clone()).equal


def test_compare_handles_empty_scalar_bytes_and_strided():
    assert compare("empty", torch.empty(0, 3), torch.empty(0, 3)).equal
    assert compare("scalar", torch.tensor(1.0), torch.tensor(1.0)).equal
    assert (
        compare(
            "bytes",
            torch.tensor([1, 2], dtype=torch.uint8),
            torch.tensor([1, 3], dtype=torch.uint8),
        ).mismatched
        == 1
    )
    square = torch.arange(9.0).reshape(3, 3)
    assert compare("strided", square.t(), square.t().contiguous()).equal


def test_compare_sees_a_nan_where_a_number_was():
    diff = compare("x", torch.tensor([1.0]), torch.tensor([torch.nan]))
    assert (diff.mismatched, diff.max_abs) == (1, float("inf"))


@pytest.mark.parametrize("other", [torch.zeros(3), torch.zeros(2, dtype=torch.float64)])
def test_compare_refuses_another_shape_or_dtype(other):
    with pytest.raises(TraceError, match="expected"):
        compare("x", torch.zeros(2), other)


def _damage(run):
    """A pass that damages the graph, as a clean-up after all others."""

    def damaged(graph):
        run(graph)
        return PassResult()

    return (*PIPELINE, CleanUp(name="Damage", note="", run=damaged))


def _scale_output(graph):
    output = graph.output_node()
    (result,) = output.args[0]
    with graph.inserting_before(output):
        scaled = graph.call_function(aten.mul.Tensor, (result, 1.5))
    scaled.meta = dict(result.meta)
    output.args = ((scaled,),)


def _drop_fused_op(graph):
    fused = torch.ops.mlalab.fused_rope_unified_mla_kv_cache_update.default
    (node,) = graph.find_nodes(op="call_function", target=fused)
    kv_c = node.kwargs["kv_c"]
    with graph.inserting_before(node):
        dummy = graph.call_function(aten.new_empty.default, (kv_c, [0]))
    dummy.meta = dict(node.meta)
    node.replace_all_uses_with(dummy)
    graph.erase_node(node)


def _write_input(graph):
    hidden = next(
        n for n in graph.nodes if n.op == "placeholder" and n.meta["val"].shape == (5, 64)
    )
    with graph.inserting_before(graph.output_node()):
        write = graph.call_function(aten.mul_.Tensor, (hidden, 2))
    write.meta["val"] = hidden.meta["val"]


def _write_weight(graph):
    weight = next(
        n for n in graph.nodes if n.op == "placeholder" and n.meta["val"].shape == (64, 128)
    )
    with graph.inserting_before(graph.output_node()):
        write = graph.call_function(aten.mul_.Tensor, (weight, 1))
    write.meta["val"] = weight.meta["val"]


@pytest.mark.parametrize(
    ("damage", "seen_in"),
    [
        (_scale_output, "output 0"),
        (_drop_fused_op, "cache model.layers.0.self_attn"),
        (_write_input, "input hidden"),
        (_write_weight, "weights and tables"),
    ],
)
def test_damage_is_seen_where_it_is_done(damage, seen_in):
    trace = record(build("tiny", tokens=5), passes=_damage(damage), verify=False).check()
    assert not trace.ok
    *sound, damaged = trace.steps
    assert all(step.check.ok for step in sound)
    assert seen_in in [diff.name for diff in damaged.check.diffs if not diff.equal]
    assert "FAILED" in repr(trace)


def test_a_trace_is_checked_after_others_of_its_kind_were_made():
    first = mlalab.trace("tiny", tokens=4)
    for tokens in (1, 3):
        assert mlalab.trace("tiny", tokens=tokens).check().ok
    assert first.check().ok
