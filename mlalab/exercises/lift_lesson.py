"""What notebook 07 shows going wrong: a lying fake, a gate by size, another package's name."""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from mlalab.compile.capture import LabBackend
from mlalab.compile.config import PassConfig
from mlalab.compile.ranges import CompileRange
from mlalab.context import make_batch
from mlalab.graphs import aten, bound_arguments, fake_mode_of, value_of
from mlalab.layers.options import LayerOptions
from mlalab.passes.attention import attentions, change_arguments
from mlalab.passes.fusion import CleanUp, PassResult
from mlalab.passes.pipeline import PIPELINE
from mlalab.workbench import BLOCK_SIZE, Workbench, build

ON = PassConfig(fuse_aiter_qk_rope_kvcache_mla=True)
BATCHES = {
    "decode": ((1, 1, 1, 1, 1), 5),
    "mixed": ((1, 1, 3), 2),
    "small prefill": ((5,), 0),
}
"""Five tokens each: new tokens of every request, and how many of the requests decode."""

_LIBRARY = torch.library.Library("mlalab_lesson", "FRAGMENT")
_numbers = itertools.count()


def scratch_op(real: Callable[[Tensor], Tensor], fake: Callable[[Tensor], Tensor]) -> Any:
    """Return a new custom op of one tensor that computes by `real` and is traced by `fake`."""
    name = f"prep_{next(_numbers)}"
    _LIBRARY.define(f"{name}(Tensor q) -> Tensor")
    _LIBRARY.impl(name, real, "CompositeExplicitAutograd")
    torch.library.register_fake(f"mlalab_lesson::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.mlalab_lesson, name).default


def complaint_of_opcheck(op: Any, *arguments: Tensor) -> str:
    """Return in one line what torch says that compares an op with its fake; "" if nothing."""
    try:
        torch.library.opcheck(op, arguments, test_utils="test_faketensor")
    except Exception as error:  # torch raises its own kinds, and wraps them
        return (str(error.__cause__ or error).splitlines() or [""])[0]
    return ""


def bench_of(name: str, options: LayerOptions | None = None) -> Workbench:
    """Put the tiny model on a workbench with one of `BATCHES`, nine tokens cached per request."""
    lengths, decodes = BATCHES[name]
    context = [9] * len(lengths)
    batch = make_batch(lengths, context, num_decodes=decodes, block_size=BLOCK_SIZE)
    bench = build("tiny", tokens=batch.num_tokens, options=options, metadata=batch)
    bench.positions = batch.positions()
    return bench


def by_size(bench: Workbench) -> Callable[..., Any]:
    """Compile as the gate of vLLM #41839 does: fused for every batch of at most eight tokens.

    Attention keeps a query and key for its prefill rows, as there; nothing has rotated them.
    """
    unrotated = CleanUp(name="keep unrotated", note="", run=_keep_unrotated)
    backend = LabBackend(
        ON,
        passes=[*PIPELINE[:-1], unrotated, PIPELINE[-1]],
        compile_range=CompileRange(1, 8),
        decode_only=True,
        keep_graphs=False,
    )
    torch._dynamo.reset()
    compiled: Callable[..., Any] = torch.compile(bench.module, backend=backend, fullgraph=True)
    return compiled


def _keep_unrotated(graph: fx.Graph) -> PassResult:
    for node, arguments in attentions(graph):
        fused = bound_arguments(arguments["q_prepped"])
        with graph.inserting_before(node):
            key = graph.call_function(aten.unsqueeze.default, (fused["k_pe"], 1))
        with fake_mode_of(value_of(fused["k_pe"])):
            key.meta["val"] = value_of(fused["k_pe"]).unsqueeze(1)
        change_arguments(node, q=fused["q_nope"].args[0], k_pe=key)
    return PassResult()


def wrong_rows(bench: Workbench, function: Callable[..., Any]) -> list[int]:
    """Return the rows in which `function` differs from the eager model, on one random input."""
    outputs = []
    for run in (bench.module, function):
        bench.randomise(1)
        outputs.append(bench.run(run, bench.positions.clone(), bench.hidden_TD.clone()))
    rows: list[int] = (outputs[0] != outputs[1]).any(-1).nonzero().flatten().tolist()
    return rows


@contextmanager
def pypi_aiter() -> Iterator[None]:
    """Have PyPI's package called `aiter` found inside the block; nothing of it is imported."""
    with tempfile.TemporaryDirectory() as folder:
        for path, text in {
            "aiter/__init__.py": "raise ImportError('never imported')\n",
            "aiter-0.13.dist-info/METADATA": "Metadata-Version: 2.1\nName: aiter\nVersion: 0.13\n"
            "Summary: Useful patterns building upon asynchronous iteration\n",
        }.items():
            file = Path(folder, path)
            file.parent.mkdir()
            file.write_text(text, encoding="utf-8")
        sys.path.insert(0, folder)
        try:
            yield
        finally:
            sys.path.remove(folder)
