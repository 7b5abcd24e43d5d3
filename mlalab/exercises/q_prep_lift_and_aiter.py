"""Exercises of notebook 07: an honest fake, a cycle, and who may have the decode graph."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)

from mlalab.errors import first_line
from mlalab.teach import Exercise, cases, same_as
from mlalab_kernels.mla_decode_q_prep.reference import mla_decode_q_prep

Graph = Mapping[str, tuple[str, ...]]
"""Node → the nodes that it reads, in the order they run."""


class Sizes(NamedTuple):
    """One query: tokens, heads, columns without and with position, latent, and its cache."""

    T: int
    N: int
    P: int
    R: int
    L: int
    cache_dtype: torch.dtype
    strided: bool = False
    """The query is a slice of wider rows."""

    def __str__(self) -> str:
        lies = ", strided" if self.strided else ""
        cache = str(self.cache_dtype).removeprefix("torch.")
        return f"T = {self.T}, N = {self.N}, a {cache} cache{lies}"


FAKES = (
    Sizes(5, 4, 8, 4, 16, torch.bfloat16),
    Sizes(1, 4, 8, 4, 16, torch.float8_e4m3fn),
    Sizes(0, 3, 6, 2, 5, torch.float8_e4m3fn),
    Sizes(7, 1, 8, 8, 16, torch.float8_e4m3fn, strided=True),
)


def honest_fake(q_TNH: Tensor, w_uk_NPL: Tensor, cache_dtype: torch.dtype) -> Tensor:
    """Return a tensor like `mla_decode_q_prep`'s result, with nothing in it.

    Args:
        q_TNH: `[T, N, P + R]`, any strides.
        w_uk_NPL: `[N, P, L]`.
        cache_dtype: what the result is stored in.

    Returns:
        `[T, N, L + R]` contiguous.
    """
    _, nope, latent = w_uk_NPL.shape
    width = latent + q_TNH.size(-1) - nope
    return q_TNH.new_empty((*q_TNH.shape[:2], width), dtype=cache_dtype)


def closes_cycle(inputs: Graph, taken: Collection[str]) -> bool:
    """Return whether making one node of `taken` would make it wait for itself.

    So it does when something outside reads a result of `taken`, directly or over other nodes
    outside, and something of `taken` reads that.
    """
    queue = [name for node in taken for name in inputs[node] if name not in taken]
    seen: set[str] = set()
    while queue:
        node = queue.pop()
        if node in taken:
            return True
        if node not in seen:
            seen.add(node)
            queue += inputs[node]
    return False


def has_decode_graph(
    query_lens: Sequence[int], num_decodes: int, decode_query_len: int, most_tokens: int
) -> bool:
    """Return whether a batch may be served by the graph of fused decode queries.

    Args:
        query_lens: new tokens of each request, requests that decode first.
        num_decodes: how many decode.
        decode_query_len: new tokens of a decode request that the graph was made for.
        most_tokens: the largest batch that it was made for.
    """
    decodes = 0 < len(query_lens) == num_decodes
    uniform = all(length == decode_query_len for length in query_lens)
    return decodes and uniform and sum(query_lens) <= most_tokens


_CHAIN = {"q": (), "rope": ("q",), "scatter": ("q", "rope"), "prep": ("scatter",)}
GRAPHS: tuple[tuple[str, Graph, tuple[str, ...]], ...] = (
    ("nothing taken", {"q": ()}, ()),
    ("one node", _CHAIN, ("prep",)),
    ("a reader directly behind", {"q": (), "rope": ("q",), "prep": ("rope",)}, ("rope", "prep")),
    ("the scatter between them", _CHAIN, ("rope", "prep")),
    ("the scatter taken as well", _CHAIN, ("rope", "scatter", "prep")),
    ("the query before the scatter", {**_CHAIN, "prep": ("q",)}, ("rope", "prep")),
    (
        "two ways, one of them over a node outside",
        {"q": (), "rope": ("q",), "scale": ("rope",), "prep": ("rope", "scale")},
        ("rope", "prep"),
    ),
    (
        "a long way around",
        {"q": (), "rope": ("q",), "a": ("rope",), "b": ("a",), "c": ("b", "q"), "prep": ("q", "c")},
        ("rope", "prep"),
    ),
    (
        "a reader that leads nowhere",
        {"q": (), "rope": ("q",), "shown": ("rope",), "prep": ("q",)},
        ("rope", "prep"),
    ),
    (
        "two layers, the second behind the first",
        {"q": (), "rope": ("q",), "next": ("rope",), "rope2": ("next",), "prep2": ("rope2",)},
        ("rope2", "prep2"),
    ),
)
GATES: tuple[tuple[str, tuple[list[int], int, int, int]], ...] = (
    ("five decode requests", ([1] * 5, 5, 1, 8)),
    ("a prefill of five tokens", ([5], 0, 1, 8)),
    ("two decodes and a prefill", ([1, 1, 3], 2, 1, 8)),
    ("a prefill of one token beside a decode", ([1, 1], 1, 1, 8)),
    ("nine decode requests, one too many", ([1] * 9, 9, 1, 8)),
    ("as many tokens as there may be", ([1] * 8, 8, 1, 8)),
    ("two tokens each, as the graph has it", ([2, 2, 2], 3, 2, 6)),
    ("one token each, where the graph has two", ([1, 1], 2, 2, 6)),
    ("decode requests of unlike lengths", ([1, 2], 2, 1, 8)),
    ("no request", ([], 0, 1, 8)),
)


def _judge_fake(attempt: Any) -> str | None:
    if not callable(attempt):
        return f"A function is expected here, and this is a {type(attempt).__name__}."
    for sizes in FAKES:
        complaint = _fake_complaint(attempt, sizes)
        if complaint:
            return f"With {sizes}: {complaint}."
    return None


def _fake_complaint(attempt: Callable[..., Any], sizes: Sizes) -> str | None:
    rows = torch.zeros(sizes.T, sizes.N, sizes.P + sizes.R + 2, dtype=torch.bfloat16)
    q_TNH = rows[..., 2:] if sizes.strided else rows[..., 2:].contiguous()
    w_uk_NPL = torch.zeros(sizes.N, sizes.P, sizes.L, dtype=torch.bfloat16)
    wanted = mla_decode_q_prep(q_TNH, w_uk_NPL, torch.ones(1), sizes.cache_dtype)
    shapes = ShapeEnv()
    mode = FakeTensorMode(shape_env=shapes)
    # torch.compile takes 0 and 1 as they are; any other number of tokens stays a symbol.
    dims = [DimDynamic.DYNAMIC if sizes.T > 1 else DimDynamic.STATIC, *[DimDynamic.STATIC] * 2]
    context: Any = StatelessSymbolicContext(dynamic_sizes=dims)
    fake_q = mode.from_tensor(q_TNH, symbolic_context=context, source=ConstantSource("q"))
    fake_w = mode.from_tensor(w_uk_NPL, static_shapes=True)
    guards = len(shapes.guards)
    try:
        with mode:
            found = attempt(fake_q, fake_w, sizes.cache_dtype)
    except Exception as error:  # whatever a learner's code raises is the answer
        return f"it stopped with {first_line(error)}"
    if complaint := _unlike(wanted, found, fake_q.size(0)):
        return complaint
    if len(shapes.guards) != guards:
        return "it asks how many tokens there are, which ties the graph to this number"
    return None


def _unlike(wanted: Tensor, found: Any, rows: int | torch.SymInt) -> str | None:
    """Say how a fake result differs from a real one, which has `rows` rows."""
    if found is ...:
        return "the blank `...` is still there: put your code in its place"
    if not isinstance(found, Tensor):
        return f"a tensor is expected, and this is a {type(found).__name__}"
    if found.dim() != 3 or str(found.size(0)) != str(rows):
        symbol = "" if isinstance(rows, int) else ", a symbol, for any number of tokens"
        return (
            f"its shape is {_text(found.shape)}, and the result has as many rows as q_TNH: "
            f"{rows}{symbol}"
        )
    if _text(found.shape[1:]) != _text(wanted.shape[1:]):
        return f"its rows are {_text(found.shape[1:])}, and the op's {_text(wanted.shape[1:])}"
    if found.dtype != wanted.dtype:
        return f"it is {found.dtype}, and the result {wanted.dtype}"
    if _text(found.stride()) != _text(wanted.stride()):
        return f"its strides are {_text(found.stride())}, and the op's {_text(wanted.stride())}"
    return None


def _text(sizes: Sequence[Any]) -> str:
    return f"[{', '.join(str(size) for size in sizes)}]"


EXERCISES = {
    "07.fake": Exercise(
        _judge_fake, "Rows, dtype and strides are all that a compiler knows before it allocates."
    ),
    "07.cycle": Exercise(
        same_as(closes_cycle, cases([(label, (graph, taken)) for label, graph, taken in GRAPHS])),
        "The way around may be long; what is taken as well is no way around.",
    ),
    "07.gate": Exercise(
        same_as(has_decode_graph, cases(GATES)),
        "By what kind of batch it is, and then by size.",
    ),
}
