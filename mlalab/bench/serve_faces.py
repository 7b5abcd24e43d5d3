"""What the serving benchmark compares: one decoder in several forms, its weights shared.

Each form is built, compiled and captured before anything is timed; what that took is kept apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from mlalab.cache import KVCacheDtype
from mlalab.compile.capture import Mode
from mlalab.compile.config import MLA_FUSED, UNFUSED, PassConfig
from mlalab.compile.cudagraph_modes import CudaGraphMode
from mlalab.context import BatchKind
from mlalab.serving.blocks import BlockPool
from mlalab.serving.model import DecoderShape
from mlalab.serving.scheduler import Scheduler
from mlalab.workbench import BLOCK_SIZE


@dataclass(frozen=True, slots=True)
class Face:
    """A form of the model.

    Args:
        exposed: whether attention's split of decode and prefill rows stands in the graph.
        passes: what is fused, where it is not left to the level; None: nothing is compiled.
    """

    exposed: bool
    passes: PassConfig | None


FACES: Mapping[str, Face] = {
    "eager": Face(False, None),
    "opaque": Face(False, UNFUSED),
    "opaque+passes": Face(False, MLA_FUSED),
    "exposed": Face(True, UNFUSED),
    "exposed+passes": Face(True, MLA_FUSED),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSetting:
    """What all forms have in common; the limits are those of scheduler and compiled model alike.

    Args:
        seed: of weights and prompts.
        num_blocks: cache blocks of `BLOCK_SIZE` tokens.
    """

    shape: DecoderShape
    device: torch.device
    dtype: torch.dtype
    mode: Mode
    max_num_batched_tokens: int
    max_num_seqs: int
    max_model_len: int
    num_blocks: int
    kv_cache_dtype: KVCacheDtype = "auto"
    cuda_graphs: CudaGraphMode = "NONE"
    seed: int = 0

    def scheduler(self) -> Scheduler:
        """Return a scheduler within these limits, its cache empty.

        Raises:
            ConfigError: limits that cannot be used.
        """
        return Scheduler(
            BlockPool(self.num_blocks, BLOCK_SIZE),
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_num_seqs=self.max_num_seqs,
            max_model_len=self.max_model_len,
        )


@dataclass(frozen=True, slots=True)
class SetUp:
    """What came before the first request.

    Args:
        compile_s, capture_s: seconds for compiling, and for capturing CUDA graphs.
        graphs: that were compiled, `cached` of them by an earlier process.
        partitions: kind of batch → pieces that its graphs are cut into for CUDA graphs.
        captured: kind of batch → CUDA graphs of it.
        resident_bytes: weights, cache and what else the form holds; 0 on a CPU.
        warnings: what the compiler had to say.
    """

    compile_s: float = 0.0
    capture_s: float = 0.0
    graphs: int = 0
    cached: int = 0
    partitions: Mapping[BatchKind, int] = field(default_factory=dict)
    captured: Mapping[BatchKind, int] = field(default_factory=dict)
    resident_bytes: int = 0
    warnings: tuple[str, ...] = ()
