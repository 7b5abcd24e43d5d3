"""Following columns back: which op moves them where, and where the walk ends."""

from __future__ import annotations

import time

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from mlalab.graphs import aten
from mlalab.passes.columns import Columns, Piece, cut, joined

T, N, W = 5, 3, 12


def last(function, *shapes):
    """Return the node that `function` of random tensors returns, and the graph's inputs."""
    tensors = [torch.randn(shape or (T, N, W)) for shape in shapes or [()]]
    graph = make_fx(function, tracing_mode="fake")(*tensors).graph
    inputs = graph.find_nodes(op="placeholder")
    return graph.output_node().args[0], inputs


def pieces(function, *shapes):
    """Return (input or op name, first column, width) of each piece."""
    node, _ = last(function, *shapes)
    return [(p.source.name, p.first, p.width) for p in Columns().of(node)]


def scattered(x, y):
    return aten.slice_scatter(x, y, 2, 8, 2**63 - 1)


MOVES = {
    "slice": (lambda x: x[..., 3:7], [("x_1", 3, 4)]),
    "slice of a slice": (lambda x: x[..., 3:][..., 2:4], [("x_1", 5, 2)]),
    "slice from the end": (lambda x: x[..., -3:], [("x_1", 9, 3)]),
    "clone": (lambda x: x.clone(), [("x_1", 0, W)]),
    "reshape and back": (lambda x: x.reshape(T, N * W).view(T, N, W), [("x_1", 0, W)]),
    "unsqueeze and back": (lambda x: x.unsqueeze(1).squeeze(1), [("x_1", 0, W)]),
    "split": (lambda x: x.split_with_sizes([4, 8], -1)[1], [("x_1", 4, 8)]),
    "cat of neighbours": (lambda x: torch.cat((x[..., :5], x[..., 5:]), -1), [("x_1", 0, W)]),
    "cat": (lambda x: torch.cat((x[..., 5:], x[..., :5]), -1), [("x_1", 5, 7), ("x_1", 0, 5)]),
    "copy": (lambda x: aten.copy(torch.zeros(T, N, W), x), [("x_1", 0, W)]),
}


@pytest.mark.parametrize("move", MOVES)
def test_what_moves_columns_is_followed(move):
    function, expected = MOVES[move]
    assert pieces(function) == expected


ENDS = {
    "mul": lambda x: x * 2,
    "a reshape to another shape": lambda x: x.reshape(T, N * W),
    "a view that reorders": lambda x: x.transpose(0, 1).reshape(T, N, W),
    "transpose": lambda x: x.transpose(0, 1),
    "expand": lambda x: x[:1].expand(T, N, W),
    "a slice of rows": lambda x: x[1:],
    "a step": lambda x: x[..., ::2],
    "cat of rows": lambda x: torch.cat((x, x)),
    "another dtype": lambda x: torch.cat((x[..., :3].double(), x[..., 3:].double()), -1),
    "a scatter of rows": lambda x: aten.slice_scatter(x, x[:2] * 2, 0, 0, 2),
    "a broadcast copy": lambda x: aten.copy(torch.zeros(2, T, N, W), x),
}


@pytest.mark.parametrize("name", ENDS)
def test_what_computes_or_moves_rows_ends_the_walk(name):
    node, (x,) = last(ENDS[name])
    assert x not in [piece.source for piece in Columns().of(node)]


def test_a_scatter_replaces_columns():
    sizes = (T, N, W), (T, N, 4)
    assert pieces(scattered, *sizes) == [("x_1", 0, 8), ("y_1", 0, 4)]
    twice = [("y_1", 2, 2), ("x_1", 2, 6), ("y_1", 0, 4)]
    assert (
        pieces(lambda x, y: aten.slice_scatter(scattered(x, y), y[..., 2:], 2, 0, 2), *sizes)
        == twice
    )


def test_a_tower_of_joins_is_walked_once():
    def tower(x):
        for _ in range(60):
            x = torch.cat((x[..., :6], x[..., 6:]), -1).clone()
        return x

    node, _ = last(tower)
    start = time.perf_counter()
    assert [(p.first, p.width) for p in Columns().of(node)] == [(0, W)]
    assert time.perf_counter() - start < 1


def test_deep_chains_need_no_stack():
    node, (x,) = last(lambda x: x)
    graph = node.graph
    for _ in range(3000):
        with graph.inserting_before(graph.output_node()):
            node = graph.call_function(aten.clone.default, (node,))
        node.meta["val"] = x.meta["val"]
    assert Columns().of(node) == (Piece(x, 0, W),)


def test_cutting_and_joining():
    _, (x,) = last(lambda x: x)
    parts = (Piece(x, 2, 3), Piece(x, 8, 4))
    assert cut(parts, 1, 5) == (Piece(x, 3, 2), Piece(x, 8, 2))
    assert cut(parts, 3, 3) == ()
    assert joined(cut(parts, 0, 1), cut(parts, 1, 7)) == parts
    assert Piece(x, 0, W).is_all
    assert not parts[0].is_all
