"""Which passes run: flags under vLLM's names, the defaults of each level, and the rules.

A flag that is None leaves the choice to the level. `resolve` makes every choice, in this order:
level, provider, prerequisites. What it takes back, or adds, of what was asked for, it says.
"""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from mlalab.errors import ConfigError, PassWarning
from mlalab.kernels import Provider, availability

log = logging.getLogger(__name__)

Level = Literal["O0", "O1", "O2", "O3"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassConfig:
    """Switches and numbers of the passes; a switch that is None is set by the level.

    Args:
        eliminate_noops: drop reshapes, slices and scatters that change nothing.
        fuse_rope_kvcache: RoPE + KV-cache update of ordinary attention → one op.
        fuse_rope_kvcache_cat_mla: RoPE + latent cache write → one op (vLLM #40392).
        fuse_aiter_qk_rope_kvcache_mla: that op + the decode query's preparation → one op, in
            graphs of uniform decode batches (vLLM #41839).
        rope_kvcache_fusion_max_token_num: largest range that `fuse_rope_kvcache` applies to.
        aiter_qk_rope_kvcache_fusion_max_token_num: the same for
            `fuse_aiter_qk_rope_kvcache_mla`; None means the decode bound.
    """

    eliminate_noops: bool | None = None
    fuse_rope_kvcache: bool | None = None
    fuse_rope_kvcache_cat_mla: bool | None = None
    fuse_aiter_qk_rope_kvcache_mla: bool | None = None
    rope_kvcache_fusion_max_token_num: int = 256
    aiter_qk_rope_kvcache_fusion_max_token_num: int | None = None

    def __post_init__(self) -> None:
        for name in FLAGS:
            value = getattr(self, name)
            if value is not None and not isinstance(value, bool):
                raise ConfigError(f"{name} must be True, False or None, got {value!r}.")
        for name in NUMBERS:
            value = getattr(self, name)
            unset = value is None and name in _MAY_BE_UNSET
            if not unset and (type(value) is not int or value < 1):
                wanted = "a positive integer" + (" or None" if name in _MAY_BE_UNSET else "")
                raise ConfigError(f"{name} must be {wanted}, got {value!r}.")

    def enabled(self, flags: tuple[str, ...]) -> bool:
        """Return whether a pass with these flags runs; one without flags always does."""
        return not flags or any(getattr(self, flag) for flag in flags)

    def limit(self, max_tokens: int | str | None) -> int | None:
        """Return a pass's bound, which may be given as the name of a number here."""
        return getattr(self, max_tokens) if isinstance(max_tokens, str) else max_tokens


_MAY_BE_UNSET = ("aiter_qk_rope_kvcache_fusion_max_token_num",)
NUMBERS = ("rope_kvcache_fusion_max_token_num", *_MAY_BE_UNSET)
FUSION_FLAGS = (
    "fuse_rope_kvcache",
    "fuse_rope_kvcache_cat_mla",
    "fuse_aiter_qk_rope_kvcache_mla",
)
FLAGS = ("eliminate_noops", *FUSION_FLAGS)
UNFUSED = PassConfig(**dict.fromkeys(FUSION_FLAGS, False))
MLA_FUSED = PassConfig(fuse_rope_kvcache_cat_mla=True, fuse_aiter_qk_rope_kvcache_mla=True)
"""Every fusion that MLA layers have, in the graphs that each applies to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the rules look at beside the flags.

    Args:
        provider: whose kernels are to serve the fused ops; "auto" takes the best there is.
        rope_custom_op: the model rotates with the custom op.
    """

    provider: Provider = "auto"
    rope_custom_op: bool = False


def _aiter_and_custom_rope(facts: Facts) -> bool:
    chosen = facts.provider in ("auto", "aiter") and availability("aiter").usable
    return chosen and facts.rope_custom_op


_OFF: Mapping[str, bool] = dict.fromkeys(FLAGS, False)
_ON: Mapping[str, bool | Callable[[Facts], bool]] = {
    "eliminate_noops": True,
    "fuse_rope_kvcache": _aiter_and_custom_rope,
    # vLLM: unless the cache update is a splitting op, which it never is here.
    "fuse_rope_kvcache_cat_mla": True,
    "fuse_aiter_qk_rope_kvcache_mla": False,
}
_LEVELS: Mapping[str, Mapping[str, bool | Callable[[Facts], bool]]] = {
    "O0": _OFF,
    "O1": {**_OFF, "eliminate_noops": True},
    "O2": _ON,
    "O3": _ON,
}

_OPS = {
    "fuse_rope_kvcache": "fused_rope_and_unified_kv_cache_update",
    "fuse_rope_kvcache_cat_mla": "fused_rope_unified_mla_kv_cache_update",
    "fuse_aiter_qk_rope_kvcache_mla": "fused_absorb_qk_rope_concat_and_cache_mla",
}
"""Flag → the kernel that its fused op needs."""

_PREREQUISITES = {"fuse_aiter_qk_rope_kvcache_mla": "fuse_rope_kvcache_cat_mla"}
"""Flag → the flag whose result it builds on."""


def resolve(config: PassConfig, level: str = "O2", facts: Facts = Facts()) -> PassConfig:
    """Return `config` with every flag decided; resolving twice changes nothing.

    Raises:
        ConfigError: unknown level or provider.
    """
    if level not in _LEVELS:
        raise ConfigError(f"Unknown level {level!r}; levels are {', '.join(get_args(Level))}.")
    flags = {}
    for name, default in _LEVELS[level].items():
        given = getattr(config, name)
        chosen = default(facts) if callable(default) else default
        flags[name] = chosen if given is None else given
    for name, op in _OPS.items():
        served = availability(facts.provider, op)
        if flags[name] and not served.usable:
            flags[name] = False
            _warn(f"{name} is switched off: {facts.provider} cannot serve {op} ({served.detail}).")
    for name, needed in _PREREQUISITES.items():
        if flags[name] and not flags[needed]:
            flags.update(_settle(config, name, needed))
    if not flags["eliminate_noops"] and any(flags[name] for name in FUSION_FLAGS):
        log.info("eliminate_noops is off: patterns may miss what no-ops stand in the way of.")
    return dataclasses.replace(config, **flags)


def _settle(config: PassConfig, name: str, needed: str) -> dict[str, bool]:
    """Return the flags to change so that `name` is not on without `needed`."""
    if getattr(config, needed) is False:
        _warn(f"{name} is switched off: it builds on {needed}, which is set to False.")
        return {name: False}
    log.info("%s switches %s on, which it builds on.", name, needed)
    return {needed: True}


def _warn(message: str) -> None:
    warnings.warn(message, PassWarning, stacklevel=4)


def flags_from(pairs: Iterable[tuple[str, bool]]) -> PassConfig:
    """Return the configuration with these flags set, the last one of a name counting.

    Raises:
        ConfigError: no flag is called so.
    """
    given = dict(pairs)
    for name in given:
        if name not in FLAGS:
            raise ConfigError(f"No flag is called {name!r}; flags are {', '.join(FLAGS)}.")
    return PassConfig(**given)


def config_of(level: str) -> PassConfig:
    """Return the defaults of an optimisation level, as vLLM's pull requests set them.

    Raises:
        ConfigError: unknown level.
    """
    return resolve(PassConfig(), level)
