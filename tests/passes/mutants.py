"""Graphs that differ from a matching one in one place, and what each of them computes.

The subject is a variant of the fusion's own pattern, compiled as a model would be: the graph is the
one that the pass sees.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.utils import _pytree as pytree

from mlalab.cache import PagedLatentCache
from mlalab.compile.capture import LabBackend
from mlalab.context import ForwardContext, forward_context
from mlalab.graphs import aten, fake_mode_of, value_of
from mlalab.passes.fusion import CleanUp, PassResult, Variant
from mlalab.passes.tracing import meaning

TOKENS, HEADS, ROPE, LATENT = 5, 3, 8, 16
SLOTS = (0, 3, 7, -1, 9)
LAYER, OTHER = LAYERS = ("layer", "other layer")


class _Probe(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.function(*tensors)


@dataclass(slots=True)
class _Layer:
    kv_cache: PagedLatentCache
    kind: str = "mla"


def pattern_of(variant: Variant) -> Callable[..., Any]:
    """Return a variant's pattern as a function of tensors only."""
    return functools.partial(variant.pattern, layer_name=LAYER, kv_cache_dtype="auto")


def run(function: Callable[..., Any], inputs: Sequence[Any]) -> list[torch.Tensor]:
    """Call `function` on copies of `inputs`; returns its outputs and the caches of two layers."""
    layers = {}
    for name in LAYERS:
        cache = PagedLatentCache(4, 4, LATENT + ROPE, kv_cache_dtype="auto", dtype=torch.float32)
        layers[name] = _Layer(cache)
    context = ForwardContext(layers=layers, slot_mapping=torch.tensor(SLOTS))
    with torch.no_grad(), forward_context(context):
        outputs = function(*copy.deepcopy(inputs))
    return [*outputs, *(layer.kv_cache.storage_BKC for layer in layers.values())]


def tensors_of(variant: Variant) -> list[torch.Tensor]:
    """Return random inputs of the dtypes that `variant` is for."""
    sizes = [(TOKENS, HEADS, ROPE), (TOKENS, 1, ROPE), (TOKENS, LATENT), (len(SLOTS) + 2, ROPE)]
    examples = variant.examples()[1:]
    drawn = [torch.randn(size).to(like.dtype) for size, like in zip(sizes, examples, strict=False)]
    return [torch.tensor([3, 1, 6, 0, 5]), *drawn, torch.tensor(1.0)]


def lowered(
    function: Callable[..., Any],
    tensors: Sequence[torch.Tensor],
    dynamic: Sequence[int] = (),
) -> tuple[fx.GraphModule, list[Any]]:
    """Compile a function up to where the pass runs; returns that graph and its flat inputs.

    Args:
        dynamic: places of the tensors whose first size is symbolic.
    """
    kept: list[fx.GraphModule] = []

    def keep(graph: fx.Graph) -> PassResult:
        kept.append(copied(graph.owning_module))
        return PassResult()

    backend = LabBackend(passes=[CleanUp(name="keep", note="", run=keep)], keep_graphs=False)
    torch._dynamo.reset()
    compiled = torch.compile(_Probe(function), backend=backend, fullgraph=True)

    def marked(*inputs: torch.Tensor) -> Any:
        for place in dynamic:
            torch._dynamo.mark_dynamic(inputs[place], 0)
        return compiled(*inputs)

    with contextlib.suppress(RuntimeError):  # a graph need not run to be looked at
        run(marked, tensors)
    return kept[0], backend.inputs_of("aot")


def copied(gm: fx.GraphModule) -> fx.GraphModule:
    """Return a graph module with a copy of the graph."""
    return fx.GraphModule(gm, copy.deepcopy(gm.graph))


def revalue(gm: fx.GraphModule) -> None:
    """Recompute every recorded value; raises where the graph makes no sense."""
    values = [value_of(node) for node in gm.graph.find_nodes(op="placeholder")]
    FakeTensorProp(gm, fake_mode_of(values)).propagate_dont_convert_inputs(*values)


def mutants(gm: fx.GraphModule) -> Iterator[tuple[str, Callable[[], fx.GraphModule]]]:
    """Yield each way to change a graph in one place: what it is, and a maker of the changed copy.

    Many make no sense.
    """
    for node in gm.graph.nodes:
        if node.op != "call_function":
            continue
        for what, *call in _calls(node):
            yield f"{node}: {what}", functools.partial(_with_call, gm, node, *call)
        for user in node.users:
            for op in _INSERTED:
                what = f"{op[0]} between {node} and {user}"
                yield what, functools.partial(_with_insertion, gm, node, user, *op)


def _with_call(
    gm: fx.GraphModule, node: fx.Node, target: Any, args: Any, kwargs: Any
) -> fx.GraphModule:
    new, twins = _copy_of(gm)
    twin = twins[node]
    twin.target = target
    twin.args, twin.kwargs = (fx.node.map_arg(x, twins.__getitem__) for x in (args, kwargs))
    return new


def _with_insertion(
    gm: fx.GraphModule, node: fx.Node, user: fx.Node, op: Any, *arguments: Any
) -> fx.GraphModule:
    new, twins = _copy_of(gm)
    with new.graph.inserting_after(twins[node]):
        call = new.graph.call_function(op, (twins[node], *arguments))
    twins[user].replace_input_with(twins[node], call)
    return new


def _copy_of(gm: fx.GraphModule) -> tuple[fx.GraphModule, dict[fx.Node, fx.Node]]:
    new = copied(gm)
    return new, dict(zip(gm.graph.nodes, new.graph.nodes, strict=True))


_INSERTED = (
    (aten.neg.default,),
    (aten.mul.Tensor, 2),
    (aten.flip.default, [-1]),
    (aten.roll.default, [1], [0]),
    (aten.clone.default,),
)
_SWAPPED = {
    aten.add.Tensor: (aten.sub.Tensor, aten.mul.Tensor),
    aten.sub.Tensor: (aten.add.Tensor, aten.rsub.Tensor),
    aten.mul.Tensor: (aten.div.Tensor, aten.add.Tensor),
    aten.neg.default: (aten.abs.default, aten.clone.default),
}
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _calls(node: fx.Node) -> Iterator[tuple[str, Any, Any, Any]]:
    """Yield what, op, arguments and keywords of each call that could stand for `node`."""
    for target in _SWAPPED.get(node.target, ()):
        yield f"{target}", target, node.args, node.kwargs
    if node.target in (aten.add.Tensor, aten.sub.Tensor):
        yield "alpha=2", node.target, node.args, {**node.kwargs, "alpha": 2}
    flat, spec = pytree.tree_flatten((list(node.args), dict(node.kwargs)))
    for index, value in enumerate(flat):
        for other in _others(value, node):
            args, kwargs = pytree.tree_unflatten([*flat[:index], other, *flat[index + 1 :]], spec)
            yield f"argument {index} {value} -> {other}", node.target, tuple(args), kwargs
    places = [i for i, value in enumerate(flat) if isinstance(value, fx.Node)]
    for i, j in itertools.combinations(places, 2):
        swapped = list(flat)
        swapped[i], swapped[j] = flat[j], flat[i]
        args, kwargs = pytree.tree_unflatten(swapped, spec)
        yield f"arguments {i} and {j} exchanged", node.target, tuple(args), kwargs


def _others(value: Any, node: fx.Node) -> list[Any]:
    """Return what could stand in an argument's place."""
    if isinstance(value, fx.Node):
        earlier = itertools.takewhile(lambda n: n is not node, node.graph.nodes)
        kind = meaning(value_of(value))
        return [n for n in earlier if n is not value and meaning(value_of(n)) == kind is not None]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return sorted({value + 1, value - 1, -value, 0, 2, 2**63 - 1} - {value})
    return [x for x in _DTYPES if x is not value] if isinstance(value, torch.dtype) else []
