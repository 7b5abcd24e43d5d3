"""Whether a contender does what the staged reference does, value by value."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from mlalab.bench.cells import CellSpec, Parity
from mlalab.bench.contenders import Layer, Run, staged_reference

_POISON = 0x7F
_BITS = {1: torch.int8, 2: torch.int16}


def steps_apart(a: Tensor, b: Tensor) -> Tensor:
    """Return how many representable values lie between those of `a` and `b`, as int32.

    Args:
        a, b: the same shape and dtype, FP8 or 16 bits wide.
    """
    return (_order(a) - _order(b)).abs()


def _order(x: Tensor) -> Tensor:
    """Number the values of a float format in their order; both zeros are 0."""
    bits = x.contiguous().view(_BITS[x.element_size()]).to(torch.int32)
    magnitude = bits & ((1 << (8 * x.element_size() - 1)) - 1)
    return torch.where(bits < 0, -magnitude, magnitude)


def _differing(a: Tensor, b: Tensor) -> int:
    dtype = _BITS[a.element_size()]
    return int((a.contiguous().view(dtype) != b.contiguous().view(dtype)).sum())


def _copy_of(layer: Layer) -> Layer:
    """Return the layer with outputs of its own, poisoned, and some tokens padded."""
    slots_T, query = layer.slots.clone(), torch.empty_like(layer.q_out)
    slots_T[3::4] = -1
    query.view(torch.uint8).fill_(_POISON)
    return dataclasses.replace(layer, cache=layer.cache.clone(), q_out=query, slots=slots_T)


def compare(run: Run, layers: Sequence[Layer], spec: CellSpec) -> Parity:
    """Run every layer and the reference on copies of its outputs; see `Parity` for what is told."""
    reference = staged_reference()
    rotated = cache = absorbed = absorbed_of = steps = 0
    for layer in layers:
        found, wanted = _copy_of(layer), _copy_of(layer)
        run(found)
        reference(wanted)
        ours, theirs = found.q_out, wanted.q_out
        nope = slice(spec.latent)
        rotated += _differing(ours[..., spec.latent :], theirs[..., spec.latent :])
        cache += _differing(found.cache, wanted.cache)
        absorbed += _differing(ours[..., nope], theirs[..., nope])
        absorbed_of += ours[..., nope].numel()
        steps = max(steps, int(steps_apart(ours[..., nope], theirs[..., nope]).max()))
    return Parity(rotated, cache, absorbed, absorbed_of, steps)
