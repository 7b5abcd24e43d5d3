"""Reading graphs: names, written arguments, storage, printed text, records."""

import operator

import pytest
import torch
from torch import fx
from torch._higher_order_ops.auto_functionalize import auto_functionalized
from torch._subclasses import FakeTensorMode

import mlalab
import mlalab.ops
from mlalab import graphs
from mlalab.node_records import node_records, node_text, printed

aten = torch.ops.aten
ops = torch.ops.mlalab


def test_written_arguments_are_read_off_the_schema():
    fused = ops.fused_rope_unified_mla_kv_cache_update.default
    assert graphs.mutated_arguments(fused) == ("q_pe", "k_pe")
    assert graphs.mutated_arguments(ops.rotary_embedding.default) == ("query", "key")
    assert graphs.mutated_arguments(ops.unified_mla_kv_cache_update.default) == ()
    assert graphs.mutated_arguments(operator.getitem) == ()


def test_names_of_plain_and_functionalised_calls():
    graph = fx.Graph()
    x = graph.placeholder("x")
    plain = graph.call_function(aten.mm.default, (x, x))
    wrapped = graph.call_function(
        auto_functionalized, (ops.rotary_embedding.default,), {"positions": x, "query": x}
    )
    item = graph.call_function(operator.getitem, (wrapped, 1))
    assert [graphs.op_name(n) for n in (x, plain, wrapped, item)] == [
        "placeholder",
        "aten.mm",
        "auto_functionalized(mlalab.rotary_embedding)",
        "getitem",
    ]
    assert node_text(item) == "getitem = auto_functionalized[1]"
    assert node_text(plain) == "mm_default = aten.mm(x, x)"
    assert graphs.wrapped_op(wrapped) is ops.rotary_embedding.default
    assert graphs.wrapped_op(plain) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2**63 - 1, "MAX"),
        ([1, 2**63 - 1], "[1, MAX]"),
        ("auto", "'auto'"),
        (torch.float32, "float32"),
        (ops.rotary_embedding.default, "mlalab.rotary_embedding"),
        (None, "None"),
        (..., "..."),
        (slice(32, None), "32:"),
        (slice(None, None, 2), "::2"),
        (True, "True"),
    ],
)
def test_printed_arguments(value, text):
    assert printed(value) == text


def test_views_get_their_new_base_as_values_and_others_values_of_their_own():
    with FakeTensorMode():
        old, new = torch.empty(4, 6), torch.empty(4, 6)
    graph = fx.Graph()
    a, b = graph.placeholder("a"), graph.placeholder("b")
    view = graph.call_function(aten.unsqueeze.default, (a, 1))
    deeper = graph.call_function(aten.slice.Tensor, (view, 2, 1, 3))
    a.meta["val"], b.meta["val"] = old, new
    view.meta["val"], deeper.meta["val"] = old.unsqueeze(1), old.unsqueeze(1)[..., 1:3]
    assert graphs.storage_key(deeper) == graphs.storage_key(a)
    view.args = (b, 1)
    graphs.give_own_values([view])
    assert graphs.storage_key(view) == graphs.storage_key(b) != graphs.storage_key(a)
    # A reader is left to those who compare what it was with what it is.
    assert graphs.storage_key(deeper) == graphs.storage_key(a)
    graphs.give_own_values([deeper])
    assert graphs.storage_key(deeper) == graphs.storage_key(b)
    assert deeper.meta["val"].storage_offset() == 1
    pure = graph.call_function(aten.neg.default, (b,))
    pure.meta["val"] = new
    graphs.give_own_values([pure])
    assert graphs.storage_key(pure) not in (graphs.storage_key(a), graphs.storage_key(b))


def test_records_of_a_real_layer_know_layer_source_alias_and_mutation():
    trace = mlalab.trace("tiny", tokens=3, num_layers=2)
    final = {n.name: n for n in trace[-1].nodes}
    fused = [n for n in final.values() if "fused_rope" in n.target]
    assert [n.layer for n in fused] == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    for node in fused:
        query, key = (final[name] for name in node.mutates)
        assert (query.shape, key.shape) == ((3, 4, 16), (3, 16))
        assert final[query.alias_of].target == "aten.mm"
        assert query.plumbing
    assert all(node.source and node.source.startswith("mla.py:") for node in fused)
    halves = [n for n in final.values() if (n.shape, n.dtype) == ((3, 64), "bfloat16")]
    assert halves and all(n.bytes == 3 * 64 * 2 for n in halves)


def test_symbolic_sizes_are_printed_and_have_no_byte_count():
    trace = mlalab.trace("tiny", tokens=3, dynamic=True)
    (fused,) = [n for n in trace[-1].nodes if "fused_rope" in n.target]
    query = next(n for n in trace[-1].nodes if n.name == fused.mutates[0])
    assert isinstance(query.shape[0], str)
    assert query.bytes is None


def test_layer_is_none_outside_any_layer():
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output((graph.call_function(aten.neg.default, (x,)),))
    assert {record.layer for record in node_records(graph)} == {None}


def test_plumbing_of_a_dynamo_graph():
    """Methods are views or not by what they return, and an index of positions gathers."""

    def looks_and_moves(x, positions):
        first, second = x.split([2, 3], dim=-1)
        rows = x[positions]
        return first.unsqueeze(1), second.contiguous(), rows, rows[0].add_(1), x.size(0)

    backend = mlalab.LabBackend(passes=())
    compiled = torch.compile(looks_and_moves, backend=backend, fullgraph=True)
    compiled(torch.ones(4, 5), torch.tensor([3, 0]))
    nodes = {node.name: node for node in backend.recorders[0].steps[0].nodes}
    looks = {name for name, node in nodes.items() if node.plumbing}
    assert looks >= {"split", "first", "second"}
    assert {node.target for node in nodes.values() if not node.plumbing} >= {
        "Tensor.contiguous",
        "Tensor.add_",
    }
    assert [nodes[n].plumbing for n in ("rows", "unsqueeze")] == [False, True]
