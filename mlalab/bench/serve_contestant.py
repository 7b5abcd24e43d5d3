"""One form of the model in the serving benchmark: built, compiled and captured, then timed."""

from __future__ import annotations

import gc
import resource
import time
import warnings
from collections.abc import Sequence

import torch

from mlalab.bench.serve_faces import FACES, Face, ServeSetting, SetUp
from mlalab.compile.cudagraph import CudaGraphs
from mlalab.compile.dispatch import CompiledModel
from mlalab.compile.settings import CompileConfig
from mlalab.errors import PassWarning
from mlalab.layers.options import LayerOptions
from mlalab.serving.agreement import TOLERANCE, Agreement, ToldRunner
from mlalab.serving.clock import Clock, VirtualClock
from mlalab.serving.engine import Engine, Result, RunStep
from mlalab.serving.model import Decoder
from mlalab.serving.requests import RequestSpec
from mlalab.serving.runner import ModelRunner
from mlalab.workbench import BLOCK_SIZE


class Contestant:
    """One form of the model, ready to serve.

    Args:
        face: a name of `FACES`.
        level: optimisation level; None for a face that is not compiled.
        weights: of another form, to be shared; None: own ones.
    """

    def __init__(
        self, face: str, level: str | None, setting: ServeSetting, weights: Decoder | None
    ) -> None:
        self.name = face if level is None else f"{face} {level}"
        self.face, self.level, self.setting = face, level, setting
        before = _held(setting.device)
        self.decoder = _decoder(FACES[face], setting, weights)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", PassWarning)
            self.compiled, compile_s = self._compile()
            self.graphs = self._capture()
        self.runner = ModelRunner(
            self.decoder,
            self.graphs or self.decoder.stack,
            max_model_len=setting.max_model_len,
            block_size=BLOCK_SIZE,
        )
        shared = _weight_bytes(self.decoder) if weights and setting.device.type == "cuda" else 0
        entries = self.compiled.entries.values() if self.compiled else ()
        graphs = self.graphs.report() if self.graphs else []
        refused = [g for g in graphs if g.style == "NONE" and g.reason]
        self.set_up = SetUp(
            compile_s,
            self.graphs.seconds if self.graphs else 0.0,
            *(len(entries), sum(entry.cached for entry in entries)),
            partitions=self.compiled.partitions() if self.compiled else {},
            captured={g.kind: g.captures for g in graphs if g.captures},
            resident_bytes=_held(setting.device) - before + shared,
            warnings=(
                *dict.fromkeys(str(warning.message) for warning in told),
                *dict.fromkeys(f"no CUDA graphs of {g.kind} batches: {g.reason}" for g in refused),
            ),
        )

    def _compile(self) -> tuple[CompiledModel | None, float]:
        passes, setting = FACES[self.face].passes, self.setting
        if passes is None or self.level is None:
            return None, 0.0
        start = time.perf_counter()
        config = CompileConfig(
            level=self.level,
            pass_config=passes,
            mode=setting.mode,
            max_num_batched_tokens=setting.max_num_batched_tokens,
            max_num_seqs=setting.max_num_seqs,
            max_model_len=setting.max_model_len,
            cudagraph_mode=setting.cuda_graphs,
        )
        model = CompiledModel(self.decoder.stack, config)
        model.warm_up()
        _wait_for(setting.device)
        return model, time.perf_counter() - start

    def _capture(self) -> CudaGraphs | None:
        """Return the compiled model behind CUDA graphs, captured; None where it is not compiled."""
        if self.compiled is None:
            return None
        graphs = CudaGraphs(self.compiled)
        graphs.capture_all()
        _wait_for(self.setting.device)
        return graphs

    @property
    def compiled_later(self) -> int:
        """Graphs that were compiled since everything was to be ready: there should be none."""
        return len(self.compiled.entries) - self.set_up.graphs if self.compiled else 0

    def rehearse(
        self, trace: Sequence[RequestSpec], told: Sequence[Sequence[int]] | None
    ) -> tuple[Result, Agreement]:
        """Serve the trace by a clock that makes the same batches every time: a warm-up and a check.

        Args:
            told: what another form generated; None: there is nothing to agree with.
        """
        if told is None:
            return self._engine(self.runner, VirtualClock()).run(trace), Agreement()
        runner = ToldRunner(self.runner, told, TOLERANCE[self.setting.dtype])
        return self._engine(runner, VirtualClock()).run(trace), runner.agreement

    def _engine(self, run_step: RunStep, clock: Clock) -> Engine:
        setting = self.setting
        return Engine(
            *(setting.scheduler(), run_step),
            vocab_size=setting.shape.vocab_size,
            seed=setting.seed,
            clock=clock,
        )

    def serve(self, trace: Sequence[RequestSpec], clock: Clock) -> tuple[Result, int]:
        """Return what serving the trace gave, and the most bytes that were in use.

        On a CPU these are the bytes that the whole process ever had.
        """
        engine = self._engine(self.runner, clock)
        # A collection in the midst of a run would be one form's bad luck.
        gc.collect()
        gc.disable()
        try:
            return self._run(engine, trace)
        finally:
            gc.enable()

    def _run(self, engine: Engine, trace: Sequence[RequestSpec]) -> tuple[Result, int]:
        setting = self.setting
        if setting.device.type != "cuda":
            return engine.run(trace), 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        before = torch.cuda.memory_allocated(setting.device)
        torch.cuda.reset_peak_memory_stats(setting.device)
        result = engine.run(trace)
        passing = torch.cuda.max_memory_allocated(setting.device) - before
        return result, self.set_up.resident_bytes + passing


def _decoder(face: Face, setting: ServeSetting, weights: Decoder | None) -> Decoder:
    options = LayerOptions(
        kv_cache_dtype=setting.kv_cache_dtype,
        dtype=setting.dtype,
        device=setting.device,
        exposed=face.exposed,
    )
    decoder = Decoder(setting.shape, options, setting.seed)
    if weights is not None:
        decoder.share_weights(weights)
    decoder.allocate_cache(setting.num_blocks, BLOCK_SIZE)
    return decoder


def _weight_bytes(decoder: Decoder) -> int:
    return sum(weight.nbytes for weight in decoder.parameters())


def _held(device: torch.device) -> int:
    """Return how many bytes are taken, those included that CUDA graphs write while they run."""
    if device.type != "cuda":
        return 0
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(device)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
