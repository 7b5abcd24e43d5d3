"""Exercises of notebook 12: where a batch splits, two halves of one result, what is captured."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode

from mlalab.context import BatchKind
from mlalab.errors import InputError, first_line
from mlalab.exercises.exposed_lesson import Call, Captured, captured
from mlalab.teach import Case, Exercise, cases, same_as

Op = Callable[[Tensor], Tensor]

ON_THE_HOST = frozenset(
    (
        "mlalab.mla_split_batch",
        "mlalab.mla_attention_decode",
        "mlalab.mla_attention_prefill",
        "mlalab.unified_mla_attention_with_output",
    )
)
"""Ops that read the lengths of requests on the host."""


def graph_and_split(
    query_lens: Sequence[int], num_decodes: int, decode_query_len: int
) -> tuple[BatchKind, int]:
    """Return the most special kind of graph that serves a batch, and its first prefill row.

    Args:
        query_lens: new tokens of each request, requests that decode first.
        num_decodes: how many decode.
        decode_query_len: new tokens of each request that the decode graph was made for.
    """
    rows = sum(query_lens[:num_decodes])
    if not query_lens:
        return "general", rows
    if not num_decodes:
        return "prefill", rows
    uniform = num_decodes == len(query_lens) and set(query_lens) == {decode_query_len}
    return "decode" if uniform else "general", rows


def attend(hidden_TD: Tensor, n: int, decode: Op, prefill: Op) -> Tensor:
    """Return `[T, D]`: `decode` of the first n rows, `prefill` of the rest.

    Args:
        hidden_TD: any strides; not written.
        n: 0 to T, and a symbol while a graph is traced.
        decode: takes the first n rows and nothing else, also when there are none.
        prefill: takes the other rows.
    """
    return torch.cat((decode(hidden_TD[:n]), prefill(hidden_TD[n:])))


def may_capture(
    call: Call, sizes: Mapping[str, Collection[str]], of_the_batch: Collection[str]
) -> bool:
    """Return whether a CUDA graph, captured for one number of rows, may hold a call.

    Args:
        call: its name, its op and the names of what it reads.
        sizes: by name, the sizes made up while tracing that a value has to do with.
        of_the_batch: those of them that are the number of rows.
    """
    known = (set(sizes[name]) <= set(of_the_batch) for name in (call.name, *call.reads))
    return call.op not in ON_THE_HOST and all(known)


KINDS: tuple[tuple[str, tuple[list[int], int, int]], ...] = (
    ("five decode requests", ([1] * 5, 5, 1)),
    ("two prompts", ([3, 2], 0, 1)),
    ("two decode requests and a prompt of three tokens", ([1, 1, 3], 2, 1)),
    ("a prompt of one token beside a decode request", ([1, 1], 1, 1)),
    ("one prompt of one token", ([1], 0, 1)),
    ("no request", ([], 0, 1)),
    ("two guesses with every decode request", ([3, 3], 2, 3)),
    ("two guesses with every decode request, and a prompt", ([3, 3, 4], 2, 3)),
    ("decode requests of unlike lengths", ([2, 1], 2, 2)),
    ("decode requests longer than the graph has them", ([2, 2], 2, 1)),
)


def _only(rows: int, function: Op) -> Op:
    """Return an op that takes as many rows as it should get, like attention."""

    def op(x: Tensor) -> Tensor:
        if x.size(0) != rows:
            raise InputError(f"got {x.size(0)} rows where the batch has {rows}")
        return function(x)

    return op


def _same(x: Tensor) -> Tensor:
    """Return the rows themselves: what comes out is the memory that went in."""
    return x


def _doubled(x: Tensor) -> Tensor:
    return x * 2


def _negated(x: Tensor) -> Tensor:
    return -x


def _join_case(
    label: str, rows: int, n: int, decode: Op = _doubled, step: int = 1
) -> Callable[[], Case]:
    def make() -> Case:
        hidden = torch.randn(rows, 4 * step)[:, ::step]
        return Case(label, (hidden, n, _only(n, decode), _only(rows - n, _negated)))

    return make


JOINS = (
    _join_case("5 rows, 2 of them decode", 5, 2),
    _join_case("all of 5 rows decoding", 5, 5),
    _join_case("no row that decodes", 5, 0),
    _join_case("one row", 1, 1),
    _join_case("no row at all", 0, 0),
    _join_case("7 strided rows, 3 of them decode", 7, 3, _doubled, 2),
    _join_case("a decode op that returns its argument", 4, 2, _same),
)


class _Writes(TorchDispatchMode):
    """Notes which op wrote into memory."""

    def __init__(self) -> None:
        super().__init__()
        self.op: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable:
            self.op = self.op or str(func.overloadpacket)
        return func(*args, **(kwargs or {}))


_JOINED = same_as(attend, JOINS)


def _judge_attend(attempt: Any) -> str | None:
    return _JOINED(attempt) or _traced(attempt)


def _traced(attempt: Callable[..., Any]) -> str | None:
    """Say what keeps an attempt from being traced for any split and any number of rows."""
    shapes = ShapeEnv()
    rows, n = shapes.create_unbacked_symint(), shapes.create_unbacked_symint()
    for fact in (rows >= 0, n >= 0, n <= rows):
        torch._check(fact)
    with FakeTensorMode(shape_env=shapes), _Writes() as writes:
        try:
            found = attempt(torch.empty(rows, 4), n, _doubled, _negated)
        except GuardOnDataDependentSymNode:
            return "While a graph is traced: it asks how large n is, and nobody knows that yet."
        except Exception as error:  # whatever a learner's code raises is the answer
            return f"While a graph is traced: it stopped with {first_line(error)}."
    if writes.op:
        return f"While a graph is traced: {writes.op} writes into memory; join the parts instead."
    if str(found.size(0)) != str(rows):
        return f"While a graph is traced: the result has {found.size(0)} rows instead of {rows}."
    return None


T, N = frozenset({"u0"}), frozenset({"u1"})
SMALL = Captured(
    calls=(
        Call("q", "linear", ("hidden", "weight")),
        Call("n", "mlalab.mla_split_batch", ("q",)),
        Call("first", "getitem", ("q", "n")),
        Call("absorbed", "bmm", ("first", "weight")),
        Call("latent", "mlalab.mla_attention_decode", ("absorbed",)),
        Call("rest", "getitem", ("q", "n")),
        Call("prompts", "mlalab.mla_attention_prefill", ("rest",)),
        Call("joined", "cat", ("latent", "prompts")),
        Call("out", "linear", ("joined", "weight")),
    ),
    sizes={
        **dict.fromkeys(("hidden", "q", "joined", "out"), T),
        **dict.fromkeys(("n", "first", "absorbed", "latent"), N),
        **dict.fromkeys(("rest", "prompts"), T | N),
        "weight": frozenset(),
    },
    of_the_batch=T,
    held=dict.fromkeys(("n", "first", "absorbed", "latent", "rest", "prompts", "joined"), False)
    | {"q": True, "out": True},
    pieces=(),
)
GRAPHS: Mapping[str, Callable[[], Captured]] = {
    "the small graph": lambda: SMALL,
    "an exposed layer's graph for any batch": lambda: captured("general"),
    "an exposed layer's graph for decode": lambda: captured("decode"),
    "two opaque layers": lambda: captured("general", exposed=False, num_layers=2),
}
"""What is judged → the graph; what a CUDA graph may hold of it is the library's own cut."""


def _judge_captured(attempt: Any) -> str | None:
    if not callable(attempt):
        return f"A function is expected here, and this is a {type(attempt).__name__}."
    for label, make in GRAPHS.items():
        graph = make()
        for call in graph.calls:
            complaint = _capture_complaint(attempt, call, graph)
            if complaint:
                return f"With {label}, at {call.name} ({call.op}): {complaint}."
    return None


def _capture_complaint(attempt: Callable[..., Any], call: Call, graph: Captured) -> str | None:
    try:
        found = attempt(call, graph.sizes, graph.of_the_batch)
    except Exception as error:  # whatever a learner's code raises is the answer
        return f"it stopped with {first_line(error)}"
    if found is ...:
        return "the blank `...` is still there: put your code in its place"
    if not isinstance(found, bool):
        return f"True or False is expected, and this is a {type(found).__name__}"
    if found == graph.held[call.name]:
        return None
    if found:
        return "a replay would repeat what was true of the batch that was captured"
    return "nothing here changes but the rows' values, and it was left out"


EXERCISES = {
    "12.split": Exercise(
        same_as(graph_and_split, cases(KINDS)),
        "Rows are counted by requests that decode, not by how long a request is.",
    ),
    "12.join": Exercise(
        _judge_attend, "Two parts that may be empty, joined: no question asked, nothing written."
    ),
    "12.capture": Exercise(
        _judge_captured, "What is decided after the capture must stay outside of it."
    ),
}
