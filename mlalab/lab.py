"""From a model's name to a trace, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mlalab.checking import Replay
from mlalab.compile.capture import LabBackend, Mode
from mlalab.compile.config import PassConfig, config_of
from mlalab.compile.ranges import CompileRange
from mlalab.context import BatchMetadata
from mlalab.layers.mla import MLAAttention, MLAOptions
from mlalab.passes.fusion import Pass
from mlalab.passes.pipeline import PIPELINE
from mlalab.shapes import MLAShape
from mlalab.traces import Trace
from mlalab.workbench import Workbench, build


def trace(
    model: str | Path | MLAShape | MLAAttention | Workbench = "tiny",
    *,
    tokens: int = 8,
    num_layers: int = 1,
    level: str = "O2",
    options: MLAOptions | None = None,
    metadata: BatchMetadata | None = None,
    slot_mapping: Tensor | None = None,
    config: PassConfig | None = None,
    passes: Sequence[Pass] = PIPELINE,
    mode: Mode = "display",
    dynamic: bool = False,
    keep_graphs: bool = True,
) -> Trace:
    """Compile a model with `torch.compile` and return the record of every stage.

    Args:
        model: a preset's name, a Hugging Face directory, a shape, a layer, or a workbench.
        tokens, num_layers, options, metadata, slot_mapping: see `mlalab.workbench.build`.
        level: O0 to O3, the defaults of the pass flags; `config` overrides them.
        passes: in the order they run.
        mode: "display" interprets the final graph; "inductor" generates code.
        dynamic: leave the token count symbolic, so that one graph serves all.
        keep_graphs: keep each step's graph so that `Trace.check` can run it.

    Raises:
        ConfigError, CheckpointError: the model or an option cannot be used.
    """
    config = config or config_of(level)
    bench = model
    if not isinstance(bench, Workbench):
        bench = build(
            bench,
            tokens=tokens,
            num_layers=num_layers,
            options=options,
            metadata=metadata,
            slot_mapping=slot_mapping,
        )
    count = bench.metadata.num_tokens
    served = None if dynamic else CompileRange(count, count)
    backend = LabBackend(
        config, mode=mode, passes=passes, compile_range=served, keep_graphs=keep_graphs
    )
    torch._dynamo.reset()
    compiled = torch.compile(bench.module, backend=backend, fullgraph=True, dynamic=dynamic)
    bench.run(compiled, bench.positions, bench.hidden_TD)
    layer = bench.layers[0]
    named = model if isinstance(model, (str, Path)) else type(model).__name__
    meta = {
        "model": str(named),
        "layers": str(len(bench.layers)),
        "tokens": "any" if dynamic else str(count),
        "dtype": str(layer.options.dtype).removeprefix("torch."),
        "kv cache": layer.options.kv_cache_dtype,
        "level": level,
        "mode": mode,
        "torch": torch.__version__,
        "device": str(layer.options.device or "cpu"),
    }
    title = f"{meta['model']}: {meta['layers']} layer(s), {meta['tokens']} tokens"
    checker = Replay(bench, compiled, backend) if keep_graphs else None
    return Trace(title, backend.recorders[0].steps, meta, checker)
