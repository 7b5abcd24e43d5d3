"""Which implementation serves an op, and why.

An op's implementations live in `mlalab_kernels.<op>`, one module per provider, each with a function
of the op's name and of the reference's signature; they are imported when first used. What is chosen
follows the device that the tensors lie on: a CPU tensor on a GPU machine gets the reference.
AITER and FlashInfer serve where they are installed; a call they refuse goes to the next in line.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

import torch

from mlalab.env import Availability, probe_aiter, probe_flashinfer, probe_triton
from mlalab.errors import ConfigError
from mlalab_kernels.refusal import RefusedError

Provider = Literal["auto", "aiter", "flashinfer", "triton", "reference"]

_MODULES = {
    "aiter": "aiter_call",
    "flashinfer": "flashinfer_call",
    "triton": "triton_kernel",
    "reference": "reference",
}
_LIBRARIES = ("aiter", "flashinfer")
"""Providers that may refuse a call."""

_OPS = (
    "fused_absorb_qk_rope_concat_and_cache_mla",
    "fused_qk_rope_concat_and_cache_mla",
    "fused_rope_and_unified_kv_cache_update",
    "fused_rope_unified_mla_kv_cache_update",
    "mla_decode_attention",
    "mla_decode_q_prep",
    "mla_prefill_attention",
    "paged_attention",
    "rotary_embedding",
    "unified_kv_cache_update",
    "unified_mla_kv_cache_update",
)
_TABLE: Mapping[str, Mapping[str, str]] = {
    op: {
        provider: f"mlalab_kernels.{op}.{module}"
        for provider, module in _MODULES.items()
        if find_spec(f"mlalab_kernels.{op}.{module}")
    }
    for op in _OPS
}
"""Op → provider → the module that holds its function."""

_PREFERRED: Mapping[str, tuple[str, ...]] = {
    "CPU": (),
    "CUDA": ("flashinfer", "triton"),
    "ROCm": ("aiter", "triton"),
}
"""Where tensors lie → who is asked before the reference."""

_READY = Availability(True, "ready")
# Called through their names, so that a test can put another machine in their place.
_PROBES: Mapping[str, Callable[[], Availability]] = {
    "aiter": lambda: probe_aiter(),
    "flashinfer": lambda: probe_flashinfer(),
    "triton": lambda: probe_triton(),
}
_EVERY_OP = "*"
_forced: ContextVar[Mapping[str, str]] = ContextVar(
    "mlalab_forced_providers", default=MappingProxyType({})
)


class Choice(NamedTuple):
    """Who serves an op, and the reason in a few words."""

    provider: str
    reason: str


def availability(provider: str, op: str | None = None) -> Availability:
    """Return whether `provider` runs on this machine and, with `op`, serves that kernel.

    Triton runs on any machine that has it: on a CPU its kernels are interpreted, slowly.

    Raises:
        ConfigError: no provider is called so.
    """
    if provider not in get_args(Provider):
        raise ConfigError(
            f"provider must be one of {', '.join(get_args(Provider))}, got {provider!r}."
        )
    if provider in _PROBES and not (probe := _PROBES[provider]()).usable:
        return probe
    if provider == "auto" or op is None or provider in _TABLE.get(op, {}):
        return _READY
    return Availability(False, f"mlalab has no {provider} kernel for it")


def pick(op: str, device: torch.device | str) -> Callable[..., Any]:
    """Return the implementation of `op` for tensors on `device`.

    What a library refuses is handed on, call by call, unless the library was forced.

    Raises:
        ConfigError: no kernel is called so.
    """
    chosen = choice(op, device)
    if chosen.provider not in _LIBRARIES or _forced_for(op) != "auto":
        return _load(op, chosen.provider)
    return functools.partial(_serve_in_turn, op, _in_line(op, torch.device(device).type))


def choice(op: str, device: torch.device | str) -> Choice:
    """Return who serves `op` for tensors on `device`, and why.

    Raises:
        ConfigError: no kernel is called so.
    """
    return _choose(op, torch.device(device).type, _forced_for(op))


def load(op: str, provider: str) -> Callable[..., Any]:
    """Return the implementation of `op` by `provider`, whatever the device.

    Raises:
        ConfigError: no such kernel or provider, or it cannot be used here.
    """
    _require(provider, op)
    return _load(op, provider)


@contextmanager
def force(provider: Provider | None = None, /, **ops: Provider) -> Iterator[None]:
    """Have `provider` serve every op inside the block, or each op that is named: `op=provider`.

    An op that `provider` has no kernel for keeps to the reference, unless it is named. Forcing
    "triton" on CPU tensors interprets the kernels; "auto" undoes an outer block. For this thread.

    Raises:
        ConfigError: no such op or provider, or it cannot be used here.
    """
    if provider is not None:
        _require(provider)
    for op, named in ops.items():
        _require(named, op)
    outer = _forced.get() if provider is None else {_EVERY_OP: provider}
    token = _forced.set({**outer, **ops})
    try:
        yield
    finally:
        _forced.reset(token)


def choices(device: torch.device) -> dict[str, Choice]:
    """Return who serves each op for tensors on `device`, and why."""
    return {op: choice(op, device) for op in _OPS}


def summary(device: torch.device) -> str:
    """Return who serves the ops in one line; ops are named unless all are served alike."""
    served: dict[Choice, list[str]] = {}
    for op, chosen in choices(device).items():
        served.setdefault(chosen, []).append(op)
    names = {c: f": {', '.join(ops)}" if len(served) > 1 else "" for c, ops in served.items()}
    return "; ".join(f"{c.provider} ({c.reason}){of}" for c, of in names.items())


@functools.cache
def _choose(op: str, device_type: str, forced: str) -> Choice:
    _known(op)
    place = _place(device_type)
    asked, reason = (_PREFERRED[place], f"{place} tensors")
    if forced != "auto":
        asked, reason = (forced,), "forced"
    refusals: dict[str, str] = {}
    for provider in asked:
        refusal = _refusal(provider, op)
        if not refusal:
            return Choice(provider, "; ".join(_told(op, refusals)) or reason)
        refusals[provider] = refusal
    return Choice("reference", "; ".join(_told(op, refusals) or refusals.values()) or reason)


def _told(op: str, refusals: Mapping[str, str]) -> list[str]:
    """Return the refusals worth telling: that mlalab calls no library for an op is no news."""
    return [why for provider, why in refusals.items() if provider in _TABLE[op]]


@functools.cache
def _in_line(op: str, device_type: str) -> tuple[str, ...]:
    """Return who can serve an op, best first, up to the first that refuses nothing."""
    asked = _PREFERRED[_place(device_type)]
    usable = [provider for provider in asked if not _refusal(provider, op)] + ["reference"]
    own = next(i for i, provider in enumerate(usable) if provider not in _LIBRARIES)
    return tuple(usable[: own + 1])


def _serve_in_turn(op: str, providers: tuple[str, ...], *args: Any, **kwargs: Any) -> Any:
    for provider in providers[:-1]:
        try:
            return _load(op, provider)(*args, **kwargs)
        except RefusedError:
            continue
    return _load(op, providers[-1])(*args, **kwargs)


def _place(device_type: str) -> str:
    if device_type != "cuda":
        return "CPU"
    return "ROCm" if torch.version.hip else "CUDA"


def _forced_for(op: str) -> str:
    forced = _forced.get()
    return forced.get(op) or forced.get(_EVERY_OP, "auto")


def _refusal(provider: str, op: str) -> str:
    if provider not in _TABLE[op]:
        return f"no {provider} kernel"
    served = availability(provider, op)
    return "" if served.usable else f"{provider}: {served.detail}"


@functools.cache
def _load(op: str, provider: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(import_module(_TABLE[op][provider]), op)
    return function


def _require(provider: str, op: str | None = None) -> None:
    if op is not None:
        _known(op)
    served = availability(provider, op)
    if not served.usable:
        subject = provider if op is None else f"{provider} for {op}"
        raise ConfigError(f"Cannot use {subject}: {served.detail}.")


def _known(op: str) -> None:
    if op not in _TABLE:
        raise ConfigError(f"No kernel is called {op!r}; known: {', '.join(sorted(_TABLE))}.")
