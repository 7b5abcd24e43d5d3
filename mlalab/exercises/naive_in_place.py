"""What a hasty rewrite gets wrong: back to in-place ops, with nothing proved.

It is what one writes first, and what notebook 05 breaks. Two of its faults are marked; never run
it on a graph that matters.
"""

from __future__ import annotations

from torch import fx

from mlalab.graphs import aten, is_call, mutated_arguments, value_of, wrapped_op
from mlalab.passes.fusion import CleanUp, PassResult


def naive_in_place(graph: fx.Graph) -> PassResult:
    """Turn every functionalised call of `graph` into a plain one, whatever still reads it."""
    for call in list(graph.nodes):
        if wrapped_op(call) is not None:
            _turn_back(graph, call)
    return PassResult()


def _turn_back(graph: fx.Graph, call: fx.Node) -> None:
    op = wrapped_op(call)
    assert op is not None
    with graph.inserting_before(call):
        plain = graph.call_function(op, (), dict(call.kwargs))
    returns = max(len(op._schema.returns), 1)
    plain.meta = {**call.meta, "val": value_of(call)[0]}
    for item in list(call.users):
        index = item.args[1] - returns
        # Fault 1: nobody asks who reads the old value of what is written here.
        new = plain if index < 0 else call.kwargs[mutated_arguments(op)[index]]
        if index >= 0:
            _drop_chain(item)
        item.replace_all_uses_with(new)
        graph.erase_node(item)
    graph.erase_node(call)


def _drop_chain(item: fx.Node) -> None:
    """Replace each scatter of a result by its base."""
    copies = [user for user in item.users if is_call(user, aten.copy.default)]
    for source in (item, *copies):
        for scatter in list(source.users):
            # Fault 2: nobody compares where it writes with where the result lies.
            if is_call(scatter, aten.slice_scatter.default) and scatter.args[1] is source:
                scatter.replace_all_uses_with(scatter.args[0])
                scatter.graph.erase_node(scatter)
    for copy in copies:
        if not copy.users:
            copy.graph.erase_node(copy)


NaiveInPlacePass = CleanUp(
    name="NaiveInPlacePass",
    note="Functionalised ops write in place again, without a proof: for teaching only.",
    run=naive_in_place,
    last=True,
)
"""Stands where `FixFunctionalizationPass` would."""
