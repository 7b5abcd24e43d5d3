"""How a model is compiled: level, passes, and the limits of the batches it will see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import get_args

from mlalab.compile.capture import Mode
from mlalab.compile.config import Facts, PassConfig, resolve
from mlalab.compile.cudagraph_modes import CudaGraphMode
from mlalab.compile.cudagraph_sizes import capture_sizes
from mlalab.compile.ranges import CompileRange, decode_bound, ranges_up_to
from mlalab.errors import ConfigError
from mlalab.kernels import Provider
from mlalab.passes.fusion import Pass


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileConfig:
    """Settings of `CompiledModel`, under vLLM's names.

    Args:
        level: optimisation level O0 to O3, which decides what `pass_config` leaves open.
        pass_config: switches and numbers of the passes.
        provider: whose kernels are to serve the fused ops; "auto" takes the best there is.
        mode: "inductor" generates code, "display" interprets the final graph.
        max_num_batched_tokens: the largest batch; the end of the last compile range.
        max_num_seqs: the most requests of a batch.
        num_speculative_tokens: tokens that a decode request has beside its own.
        compile_sizes: token counts that get a graph of their own, with static shapes.
        compile_ranges_endpoints: where else to cut the ranges.
        verify: check each graph after every pass.
        cache: let torch's compile cache serve graphs compiled earlier, by this process or another.
        cudagraph_mode: which batches `CudaGraphs` captures, and how; see there.
        cudagraph_capture_sizes: token counts to capture; by default those of vLLM's rule.
        max_model_len: most tokens of a request, which the block tables of graphs are made for.
    """

    level: str = "O2"
    pass_config: PassConfig = field(default_factory=PassConfig)
    provider: Provider = "auto"
    mode: Mode = "inductor"
    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 256
    num_speculative_tokens: int = 0
    compile_sizes: tuple[int, ...] = ()
    compile_ranges_endpoints: tuple[int, ...] = ()
    verify: bool = False
    cache: bool = True
    cudagraph_mode: CudaGraphMode = "NONE"
    cudagraph_capture_sizes: tuple[int, ...] | None = None
    max_model_len: int = 8192

    def __post_init__(self) -> None:
        if self.cudagraph_mode not in get_args(CudaGraphMode):
            raise ConfigError(
                f"cudagraph_mode must be one of {', '.join(get_args(CudaGraphMode))}, "
                f"got {self.cudagraph_mode!r}."
            )
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ConfigError(f"{name} must be an integer of at least {least}, got {value!r}.")
        for name, least in _LEAST_OF_EACH.items():
            for value in getattr(self, name) or ():
                if type(value) is not int or not least <= value <= self.max_num_batched_tokens:
                    raise ConfigError(
                        f"{name} must hold integers from {least} to max_num_batched_tokens="
                        f"{self.max_num_batched_tokens}, got {value!r}."
                    )

    @property
    def capture_sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Token counts of captured uniform decode batches, and of all others, ascending."""
        decode, others = capture_sizes(
            self.max_num_seqs, self.num_speculative_tokens, self.max_num_batched_tokens
        )
        if self.cudagraph_capture_sizes is not None:
            others = tuple(sorted({*self.cudagraph_capture_sizes}))
            whole = (x for x in others if x % self.decode_query_len == 0)
            decode = tuple(size for size in whole if size <= self.decode_bound)
        return decode, others

    @property
    def decode_bound(self) -> int:
        """The most tokens that a uniform decode batch can have."""
        return decode_bound(self.max_num_seqs, self.num_speculative_tokens)

    @property
    def decode_query_len(self) -> int:
        """New tokens of each request of a uniform decode batch."""
        return 1 + self.num_speculative_tokens

    def passes_of(self, *, rope_custom_op: bool = False) -> PassConfig:
        """Return the pass configuration with everything decided, the decode bound included.

        It is derived afresh each time and never stored, so that it cannot go stale.
        """
        facts = Facts(provider=self.provider, rope_custom_op=rope_custom_op)
        decided = resolve(self.pass_config, self.level, facts)
        if decided.aiter_qk_rope_kvcache_fusion_max_token_num is not None:
            return decided
        return replace(decided, aiter_qk_rope_kvcache_fusion_max_token_num=self.decode_bound)

    def ranges(self, decided: PassConfig, passes: Iterable[Pass]) -> tuple[CompileRange, ...]:
        """Return the compile ranges, cut where one of `passes` that is on stops to apply."""
        limits = [decided.limit(p.max_tokens) for p in passes if decided.enabled(p.flags)]
        points = (*self.compile_ranges_endpoints, *(x for x in limits if x is not None))
        return ranges_up_to(self.max_num_batched_tokens, points)


_LEAST: Mapping[str, int] = {
    "max_num_batched_tokens": 1,
    "max_num_seqs": 1,
    "num_speculative_tokens": 0,
    "max_model_len": 1,
}
_LEAST_OF_EACH: Mapping[str, int] = {
    "compile_sizes": 0,
    "compile_ranges_endpoints": 1,
    "cudagraph_capture_sizes": 1,
}
