"""What notebook 12 runs: batches for both faces, a graph's pieces, and tokens of a tiny decoder."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from mlalab.bench.serve_faces import FACES
from mlalab.compile.dispatch import CompiledModel
from mlalab.compile.faces import Face
from mlalab.compile.pieces import calls as calls_of
from mlalab.compile.pieces import cut, made_up_sizes
from mlalab.compile.settings import CompileConfig
from mlalab.context import BatchKind, BatchMetadata, graph_serves, make_batch
from mlalab.layers.options import LayerOptions
from mlalab.serving.blocks import BlockPool
from mlalab.serving.clock import VirtualClock
from mlalab.serving.engine import Engine
from mlalab.serving.model import Decoder, decoder_shape
from mlalab.serving.requests import RequestSpec
from mlalab.serving.runner import ModelRunner
from mlalab.serving.scheduler import Scheduler
from mlalab.workbench import BLOCK_SIZE, Workbench, build

BATCHES: Mapping[str, tuple[tuple[int, ...], int]] = {
    "decode": ((1, 1, 1, 1, 1), 5),
    "prefill": ((3, 2), 0),
    "mixed": ((1, 1, 3), 2),
    "speculative": ((2, 2, 1), 2),
    "empty": ((), 0),
}
"""New tokens of every request, and how many of the requests decode."""


def batch(name: str) -> BatchMetadata:
    """Return one of `BATCHES`, nine tokens of each request in the cache already."""
    lengths, decodes = BATCHES[name]
    return make_batch(lengths, [9] * len(lengths), num_decodes=decodes, block_size=BLOCK_SIZE)


def options(exposed: bool) -> LayerOptions:
    """Return how the lesson's layers are built: bfloat16 with an FP8 cache."""
    return LayerOptions(kv_cache_dtype="fp8", dtype=torch.bfloat16, exposed=exposed)


def bench_of(metadata: BatchMetadata, *, exposed: bool, num_layers: int = 1) -> Workbench:
    """Put the tiny model on a workbench; both faces have the same weights, rows and caches."""
    return build("tiny", num_layers=num_layers, options=options(exposed), metadata=metadata)


def served_by(model: CompiledModel, metadata: BatchMetadata) -> str:
    """Run a batch through a compiled model and return which of its graphs served it."""
    for layer in model.layers:
        layer.allocate_cache(max(1, len(metadata.query_lens)), BLOCK_SIZE)
    slots = metadata.slot_mapping(BLOCK_SIZE)
    bench = Workbench(
        module=model.module, layers=model.layers, metadata=metadata, slot_mapping=slots
    )
    bench.run(model, bench.positions, bench.hidden_TD)
    return str(model.key_for(metadata.num_tokens, model.kind_of(metadata)))


class Call(NamedTuple):
    """One call of a graph, of those that depend on the batch.

    Args:
        op: `linear`, `mlalab.mla_split_batch`.
        reads: names of what it reads.
    """

    name: str
    op: str
    reads: tuple[str, ...]


class Captured(NamedTuple):
    """A graph as the cut for CUDA graphs sees it.

    Args:
        sizes: of whatever calls make and read, the sizes that were made up while tracing.
        of_the_batch: those of them that are the number of rows.
        held: of each call, whether a CUDA graph may hold it.
        pieces: whether a CUDA graph may hold it, and the ops of each piece, in order.
    """

    calls: tuple[Call, ...]
    sizes: Mapping[str, frozenset[str]]
    of_the_batch: frozenset[str]
    held: Mapping[str, bool]
    pieces: tuple[tuple[bool, tuple[str, ...]], ...]


def captured(kind: BatchKind, *, exposed: bool = True, num_layers: int = 1) -> Captured:
    """Trace the tiny model for one kind of batch, and cut the graph."""
    bench = bench_of(batch("mixed"), exposed=exposed, num_layers=num_layers)
    face = Face(bench.module, kind, typical_rows=8)
    with graph_serves(kind):
        gm, _ = bench.run(face.traced, bench.positions, bench.hidden_TD)
    sizes = {node.name: frozenset(map(str, made_up_sizes(node))) for node in gm.graph.nodes}
    placeholders = gm.graph.find_nodes(op="placeholder")
    inputs = [placeholders[place] for place in face.activations]
    tensors = [x for x in inputs if isinstance(x.meta["example_value"], Tensor)]
    names = [node.name for node in calls_of(gm.graph)]
    depending = _depending(gm, tensors)
    calls = tuple(
        Call(node.name, _op(node), tuple(x.name for x in node.all_input_nodes))
        for node in calls_of(gm.graph)
        if node in depending
    )
    split, safe = cut(gm, face.activations)
    pieces = [(safe[name], list(calls_of(getattr(split, name).graph))) for name in safe]
    # Pieces name their nodes anew, and keep the order.
    flags = [may for may, nodes in pieces for _ in nodes]
    return Captured(
        calls,
        sizes,
        frozenset().union(*(sizes[x.name] for x in inputs)),
        dict(zip(names, flags, strict=True)),
        tuple((may, tuple(map(_op, nodes))) for may, nodes in pieces),
    )


def _depending(gm: fx.GraphModule, inputs: Collection[fx.Node]) -> set[fx.Node]:
    found = set(inputs)
    for node in calls_of(gm.graph):
        if not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _op(node: fx.Node) -> str:
    target: Any = node.target
    if isinstance(target, str):
        return target
    name = str(target)
    return name.removesuffix(".default") if name.startswith("mlalab.") else target.__name__


REQUESTS = (RequestSpec(0.0, 5, 5), RequestSpec(0.0, 19, 3), RequestSpec(0.0, 1, 4))
"""Three requests at once; the longest prompt goes in chunks, so steps of every kind are run."""
_LIMITS = (16, 3, 32)
"""Most tokens of a step, requests, and tokens of a request."""


def generated(face: str) -> tuple[tuple[int, ...], ...]:
    """Return the tokens that a tiny decoder in 32 bits generates for `REQUESTS`.

    Args:
        face: a name of `mlalab.bench.serve_faces.FACES`: "eager", "exposed+passes".
    """
    exposed, passes = FACES[face].exposed, FACES[face].passes
    decoder = Decoder(decoder_shape("tiny", 1), LayerOptions(exposed=exposed))
    pool = BlockPool(2 * len(REQUESTS), BLOCK_SIZE)
    decoder.allocate_cache(pool.num_blocks, BLOCK_SIZE)
    tokens, requests, longest = _LIMITS
    graph = None
    if passes is not None:
        config = CompileConfig(
            mode="display",
            pass_config=passes,
            max_num_batched_tokens=tokens,
            max_num_seqs=requests,
        )
        graph = CompiledModel(decoder.stack, config)
    scheduler = Scheduler(
        pool, max_num_batched_tokens=tokens, max_num_seqs=requests, max_model_len=longest
    )
    runner = ModelRunner(decoder, graph, max_model_len=longest, block_size=BLOCK_SIZE)
    vocabulary = decoder.shape.vocab_size
    engine = Engine(scheduler, runner, vocab_size=vocabulary, clock=VirtualClock())
    return engine.run(REQUESTS).tokens
