"""What a random model is made of: the parts of attention layers, and what may stand between them.

A step takes the layers, the tensors known so far by number, and its own arguments; it returns the
new tensors. Steps run alike in eager mode, under Dynamo and under `fx`'s symbolic tracing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mlalab.errors import MlalabError
from tests.passes.models import project, write

ops = torch.ops.mlalab
Choose = Callable[[int], int]
Layers = Sequence[Any]
Step = tuple[str, tuple[Any, ...]]
POSITIONS, HIDDEN = 0, 1
"""Numbers of the graph's inputs."""


def _project(layers: Layers, known: list[Any], n: int, hidden: int) -> list[Any]:
    """MLA: query as heads, latent, key. Ordinary: query, key and value, flat, and all of them."""
    layer = layers[n]
    hidden_TD = known[hidden].to(layer.options.dtype)
    if layer.kind == "mla":
        return list(project(layer, hidden_TD))
    shape = layer.shape
    qkv = layer.qkv_proj(hidden_TD)
    q, k, v = qkv.split([shape.q_size, shape.kv_size, shape.kv_size], dim=-1)
    return [q, k, v, qkv]


def _rope(
    layers: Layers, known: list[Any], n: int, positions: int, q: int, k: int, flat: bool
) -> list[Any]:
    """Return rotated query and key; the custom op writes them in place."""
    rope = layers[n].rotary_emb
    given, width = (known[positions], known[q], known[k]), rotary_dim(layers[n])
    if rope.custom_op:
        ops.rotary_embedding(*given, width, rope.cos_sin_cache, rope.spec.is_neox)
        return [known[q], known[k]]
    heads = [x.unflatten(-1, (-1, width)) for x in given[1:]] if flat else given[1:]
    turned = rope.forward_static(
        *(given[0], *heads, rope.cos_sin_cache, rope.spec.is_neox, rope.in_fp32)
    )
    return [x.flatten(1) if flat else x for x in (turned[0], turned[1])]


def rotary_dim(layer: Any) -> int:
    return layer.shape.qk_rope_head_dim if layer.kind == "mla" else layer.shape.head_dim


def _update(layers: Layers, known: list[Any], n: int, a: int, b: int, scale: int) -> list[Any]:
    """Write the cache; MLA may be given another layer's scale."""
    layer = layers[n]
    if layer.kind == "gqa":
        return [ops.unified_kv_cache_update(known[a], known[b], layer.layer_name)]
    if scale == n:
        return [write(layer, known[a], known[b])]
    dtype, scaled = layer.options.kv_cache_dtype, layers[scale].k_scale
    return [ops.unified_mla_kv_cache_update(known[a], known[b], layer.layer_name, dtype, scaled)]


def _prepare(layers: Layers, known: list[Any], n: int, q: int) -> list[Any]:
    return [ops.mla_decode_q_prep(known[q], layers[n].layer_name)]


def _attend(
    layers: Layers,
    known: list[Any],
    n: int,
    inputs: Sequence[int],
    dummy: int | None,
    prepared: int | None,
) -> list[Any]:
    """Attend and project; returns the hidden states."""
    layer = layers[n]
    q, a, b = (known[i] for i in inputs)
    width = layer.shape.num_heads * (
        layer.shape.v_head_dim if layer.kind == "mla" else layer.shape.head_dim
    )
    output = a.new_empty((a.size(0), width))
    dep = None if dummy is None else known[dummy]
    if layer.kind == "gqa":
        ops.unified_attention_with_output(q, a, b, output, layer.layer_name, dep)
    else:
        ready = None if prepared is None else known[prepared]
        ops.unified_mla_attention_with_output(q, a, b, output, layer.layer_name, dep, ready)
    return [layer.o_proj(output)]


def _table(layers: Layers, known: list[Any], n: int) -> list[Any]:
    return [layers[n].rotary_emb.cos_sin_cache[known[POSITIONS]]]


def _method(layers: Layers, known: list[Any], i: int, name: str, *args: Any) -> list[Any]:
    return [getattr(known[i], name)(*args)]


def _with(layers: Layers, known: list[Any], i: int, name: str, j: int) -> list[Any]:
    return [getattr(known[i], name)(known[j])]


def _cut(layers: Layers, known: list[Any], i: int, start: int, stop: int) -> list[Any]:
    return [known[i][..., start:stop]]


def _split(layers: Layers, known: list[Any], i: int, first: int, rest: int) -> list[Any]:
    parts = known[i].split([first, rest], dim=-1)
    return [parts[0], parts[1]]


def _cat(layers: Layers, known: list[Any], i: int, j: int) -> list[Any]:
    return [torch.cat((known[i], known[j]), -1)]


def _put(
    layers: Layers, known: list[Any], i: int, start: int, stop: int, j: int, first: int
) -> list[Any]:
    """Write columns of `j`, from `first`, over columns `start..stop` of `i`."""
    known[i][..., start:stop].copy_(known[j][..., first : first + stop - start])
    return []


def _scale(layers: Layers, known: list[Any], i: int, start: int, stop: int, by: float) -> list[Any]:
    """Scale some columns in place."""
    known[i][..., start:stop].mul_(by)
    return []


STEPS: dict[str, Callable[..., list[Any]]] = {
    **{"project": _project, "rope": _rope, "update": _update, "prepare": _prepare},
    **{"attend": _attend, "table": _table, "method": _method, "with": _with},
    **{"cut": _cut, "split": _split, "cat": _cat, "put": _put, "scale": _scale},
}


class RandomModel(nn.Module):
    """Layers and the steps that use them; returns the tensors numbered `outputs`."""

    def __init__(
        self, layers: Sequence[nn.Module], steps: Sequence[Step], outputs: Sequence[int]
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.steps, self.outputs = tuple(steps), tuple(outputs)

    def forward(self, positions: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
        layers, known = list(self.layers), [positions, hidden]
        for name, args in self.steps:
            known += STEPS[name](layers, known, *args)
        return tuple(known[i] for i in self.outputs)

    def __str__(self) -> str:
        lines = [f"{layer.kind} {layer.shape} {layer.options}" for layer in self.layers]
        number = 2
        for name, args in self.steps:
            lines.append(f"{number}: {name}{args}")
            number += {"project": 3, "rope": 2, "split": 2, "put": 0, "scale": 0}.get(name, 1)
            if name == "project" and self.layers[args[0]].kind == "gqa":
                number += 1
        return "\n".join([*lines, f"outputs {self.outputs}"])


@dataclass
class Writer:
    """A model while it is written: the steps so far and the tensors that they made."""

    choose: Choose
    layers: Sequence[Any]
    known: list[Any]
    steps: list[Step] = field(default_factory=list)
    roles: list[dict[str, int]] = field(default_factory=list)
    shown: set[int] = field(default_factory=set)
    in_order: bool = True
    """Every cache write is tied to the attention that reads it."""

    def odd(self, one_in: int = 8) -> bool:
        """Return True now and then."""
        return self.choose(one_in) == 0

    def do(self, name: str, *args: Any) -> list[int]:
        """Run a step and keep it; returns its results' numbers, none if eager mode refuses it."""
        first = len(self.known)
        try:
            new = STEPS[name](self.layers, self.known, *args)
        except (RuntimeError, ValueError, IndexError, MlalabError):
            return []
        self.known += new
        self.steps.append((name, args))
        return list(range(first, len(self.known)))

    def made(self, fallback: int, name: str, *args: Any) -> int:
        """Run a step with one result; returns its number, or `fallback` if it is refused."""
        return (self.do(name, *args) or [fallback])[0]

    def method(self, i: int, name: str, *args: Any) -> int:
        return self.made(i, "method", i, name, *args)

    def pick(self, n: int, role: str) -> int:
        """Return what has a role in a layer; now and then what has it in another layer like it."""
        own = self.roles[n][role]
        others = [r[role] for r in self.roles if role in r and self._alike(own, r[role])]
        return others[self.choose(len(others))] if self.odd(14) else own

    def _alike(self, i: int, j: int) -> bool:
        a, b = self.known[i], self.known[j]
        return (a.shape, a.dtype) == (b.shape, b.dtype)

    def some(self) -> int:
        """Return any tensor of numbers that is not a position; rather a late one."""
        i = max(self.choose(len(self.known)), self.choose(len(self.known)))
        x = self.known[i]
        # Eight bits take no arithmetic.
        usable = x.dtype.is_floating_point and x.element_size() > 1 and x.dim() and x.size(-1)
        return i if usable else HIDDEN


def is_mla(w: Writer, n: int) -> bool:
    return w.layers[n].kind == "mla"
