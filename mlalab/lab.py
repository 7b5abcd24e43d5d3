"""From a model's name to a trace, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mlalab.checking import Replay
from mlalab.compile.capture import LabBackend, Mode
from mlalab.compile.config import PassConfig, resolve
from mlalab.compile.ranges import CompileRange
from mlalab.context import BatchKind, BatchMetadata, graph_serves
from mlalab.errors import ConfigError
from mlalab.kernels import summary
from mlalab.layers.kinds import Attention
from mlalab.layers.options import LayerOptions
from mlalab.passes.fusion import Pass
from mlalab.passes.pipeline import PIPELINE
from mlalab.shapes import AttentionShape
from mlalab.traces import Trace
from mlalab.workbench import Workbench, build


def trace(
    model: str | Path | AttentionShape | Attention = "tiny",
    *,
    tokens: int = 8,
    num_layers: int = 1,
    options: LayerOptions | None = None,
    metadata: BatchMetadata | None = None,
    slot_mapping: Tensor | None = None,
    level: str = "O2",
    config: PassConfig | None = None,
    decode_only: bool | None = None,
    passes: Sequence[Pass] = PIPELINE,
    mode: Mode = "display",
    dynamic: bool = False,
) -> Trace:
    """Compile a model with `torch.compile` and return the record of every stage.

    Args:
        model: a preset's name, a Hugging Face directory, a shape, or a layer.
        tokens, num_layers, options, metadata, slot_mapping: see `mlalab.workbench.build`.
        level: decides the flags that `config` leaves open.
        config, decode_only, passes, mode, dynamic: see `record`.

    Raises:
        ConfigError, CheckpointError: the model or an option cannot be used.
    """
    # Refused before seconds are spent on building.
    config = resolve(config or PassConfig(), level)
    bench = build(
        model,
        tokens=tokens,
        num_layers=num_layers,
        options=options,
        metadata=metadata,
        slot_mapping=slot_mapping,
    )
    name = str(model) if isinstance(model, (str, Path)) else type(model).__name__
    result = record(
        *(bench, name),
        config=config,
        decode_only=decode_only,
        passes=passes,
        mode=mode,
        dynamic=dynamic,
    )
    result.meta["level"] = level
    return result


def record(
    bench: Workbench,
    name: str = "model",
    *,
    config: PassConfig | None = None,
    decode_only: bool | None = None,
    passes: Sequence[Pass] = PIPELINE,
    mode: Mode = "display",
    dynamic: bool = False,
    keep_graphs: bool = True,
    verify: bool = True,
) -> Trace:
    """Compile what stands on a workbench and return the record of every stage.

    Args:
        name: shown in the trace's title.
        config: which passes are on; what it leaves open, level O2 decides.
        decode_only: the graph will serve nothing but uniform decode batches; by default, whether
            the bench's batch is one.
        passes: in the order they run.
        mode: "display" interprets the final graph; "inductor" generates code.
        dynamic: leave the token count symbolic, so that one graph serves all.
        keep_graphs: keep each step's graph so that `Trace.check` can run it.
        verify: check after each pass that the graph is sound.
    """
    count = bench.metadata.num_tokens
    if decode_only is None:
        decode_only = bench.metadata.uniform_query_len is not None
    backend = LabBackend(
        config,
        mode=mode,
        passes=passes,
        compile_range=None if dynamic else CompileRange(count, count),
        decode_only=decode_only,
        keep_graphs=keep_graphs,
        verify=verify,
    )
    torch._dynamo.reset()
    compiled = torch.compile(bench.module, backend=backend, fullgraph=True)
    if dynamic:
        _mark_dynamic(bench)
    others: BatchKind = "prefill" if bench.metadata.kind == "prefill" else "general"
    with graph_serves("decode" if decode_only else others):
        bench.run(compiled, bench.positions, bench.hidden_TD)
    replayed = backend.first_graph(bench.positions, bench.hidden_TD)
    size = "any number of" if dynamic else str(count)
    return Trace(
        f"{name}: {len(bench.layers)} layer(s), {size} tokens",
        backend.recorders[0].steps,
        {"model": name, "tokens": size, "mode": mode, **_facts(bench)},
        Replay(bench, replayed, backend) if keep_graphs else None,
        backend.recorders[0].skipped,
    )


def _mark_dynamic(bench: Workbench) -> None:
    # `dynamic=True` would also turn the norms' eps into a graph input.
    if bench.metadata.num_tokens < 2:
        raise ConfigError(
            "A graph for any number of tokens is traced with at least 2: torch.compile "
            "specialises on 0 and 1."
        )
    for x in (bench.positions, bench.hidden_TD):
        torch._dynamo.mark_dynamic(x, 0)


def _facts(bench: Workbench) -> dict[str, str]:
    options = bench.layers[0].options
    device = torch.device(options.device or "cpu")
    return {
        "layers": str(len(bench.layers)),
        "dtype": str(options.dtype).removeprefix("torch."),
        "kv cache": options.kv_cache_dtype,
        "device": str(device),
        "kernels": summary(device),
        "torch": torch.__version__,
    }
