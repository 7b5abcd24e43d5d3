"""Which implementation serves an op.

The table maps op → provider → function; implementations live in `mlalab_kernels.<op>`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from mlalab.env import Availability, probe_aiter
from mlalab.errors import ConfigError
from mlalab_kernels.fused_absorb_qk_rope_concat_and_cache_mla.reference import (
    fused_absorb_qk_rope_concat_and_cache_mla,
)
from mlalab_kernels.fused_qk_rope_concat_and_cache_mla.reference import (
    fused_qk_rope_concat_and_cache_mla,
)
from mlalab_kernels.fused_rope_and_unified_kv_cache_update.reference import (
    fused_rope_and_unified_kv_cache_update,
)
from mlalab_kernels.fused_rope_unified_mla_kv_cache_update.reference import (
    fused_rope_unified_mla_kv_cache_update,
)
from mlalab_kernels.mla_decode_attention.reference import mla_decode_attention
from mlalab_kernels.mla_decode_q_prep.reference import mla_decode_q_prep
from mlalab_kernels.mla_prefill_attention.reference import mla_prefill_attention
from mlalab_kernels.paged_attention.reference import paged_attention
from mlalab_kernels.rotary_embedding.reference import rotary_embedding
from mlalab_kernels.unified_kv_cache_update.reference import unified_kv_cache_update
from mlalab_kernels.unified_mla_kv_cache_update.reference import unified_mla_kv_cache_update

Provider = Literal["auto", "aiter", "triton", "reference"]

_TABLE: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    function.__name__: {"reference": function}
    for function in (
        fused_absorb_qk_rope_concat_and_cache_mla,
        fused_qk_rope_concat_and_cache_mla,
        fused_rope_and_unified_kv_cache_update,
        fused_rope_unified_mla_kv_cache_update,
        mla_decode_attention,
        mla_decode_q_prep,
        mla_prefill_attention,
        paged_attention,
        rotary_embedding,
        unified_kv_cache_update,
        unified_mla_kv_cache_update,
    )
}


def availability(provider: str, op: str | None = None) -> Availability:
    """Return whether `provider` runs on this machine and, with `op`, serves that kernel.

    Raises:
        ConfigError: no provider is called so.
    """
    if provider not in get_args(Provider):
        raise ConfigError(
            f"provider must be one of {', '.join(get_args(Provider))}, got {provider!r}."
        )
    if provider == "aiter" and not (probe := probe_aiter()).usable:
        return probe
    if provider == "auto" or op is None or provider in _TABLE.get(op, {}):
        return Availability(True, "ready")
    return Availability(False, f"mlalab has no {provider} kernel for it")


def pick(op: str) -> Callable[..., Any]:
    """Return the implementation of `op` for this machine."""
    if op not in _TABLE:
        raise ConfigError(f"No kernel is called {op!r}; known: {', '.join(sorted(_TABLE))}.")
    return _TABLE[op]["reference"]
