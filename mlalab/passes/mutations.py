"""Whether an op writes what its schema says it writes: found out by running it.

A declared write that does not happen leaves readers with a value that never changed; one that
happens undeclared is worse. Neither shows on fake values, so the op runs once on small random
tensors, as in a profile run: with no slot mapping and no batch, no cache is touched.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import statically_known_true as known
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from mlalab.context import forward_context, optional_context
from mlalab.graphs import bound_arguments, mutated_arguments, overload_of, value_of, wrapped_op

_SIZE = 3
"""What stands for a symbolic size."""
_IDLE = ", and does not"

_judged: dict[Any, str | None] = {}


def misdeclared(node: fx.Node) -> str | None:
    """Return what the op that `node` calls writes otherwise than it declares, or None.

    Only custom ops are run, each once per process and set of arguments given; one that needs a
    forward context, only inside one. Nothing is said of a write to no elements, and of an op that
    does not take random arguments.
    """
    op = wrapped_op(node) or overload_of(node)
    if not isinstance(op, torch._ops.OpOverload) or op.namespace in ("aten", "prims"):
        return None
    arguments = bound_arguments(node)
    key = (op, tuple(name for name, value in arguments.items() if value is not None))
    if key not in _judged:
        fakes = fx.node.map_arg(arguments, value_of)
        written = pytree.tree_leaves([fakes.get(name) for name in mutated_arguments(op)])
        if any(isinstance(x, Tensor) and any(known(n == 0) for n in x.shape) for x in written):
            return None
        try:
            _judged[key] = _judge(op, fakes)
        except Exception:  # it takes no random arguments, whatever it calls that
            return None
    return _judged[key]


def _judge(op: torch._ops.OpOverload, fakes: dict[str, Any]) -> str | None:
    said = None
    # Inductor runs its passes under a fake mode.
    with _disable_current_modes(), torch.no_grad(), _profile_run():
        # What writes back the very values that it found may write others when given others.
        for largest in (1, 2):
            # Fixed, and without effect on the caller's random numbers.
            generator = torch.Generator().manual_seed(0)
            given = {n: _sample(value, generator, largest) for n, value in fakes.items()}
            before = pytree.tree_map_only(Tensor, torch.clone, given)
            op(**given)
            said = _difference(op, before, given)
            if said is None or not said.endswith(_IDLE):
                break
    return said


def _difference(
    op: torch._ops.OpOverload, before: dict[str, Any], given: dict[str, Any]
) -> str | None:
    declared = mutated_arguments(op)
    for name, value in given.items():
        tensors = zip(pytree.tree_leaves(value), pytree.tree_leaves(before[name]), strict=True)
        changed = any(isinstance(a, Tensor) and not _same_bits(a, b) for a, b in tensors)
        if changed and name not in declared:
            return f"{op._opname} writes {name}, which it does not declare"
        if name in declared and value is not None and not changed:
            return f"{op._opname} declares that it writes {name}{_IDLE}"
    return None


def _same_bits(a: Tensor, b: Tensor) -> bool:
    left, right = (x.reshape(-1).view(torch.uint8) for x in (a, b))
    return torch.equal(left, right)


def _profile_run() -> contextlib.AbstractContextManager[Any]:
    context = optional_context()
    if context is None:
        return contextlib.nullcontext()
    return forward_context(
        dataclasses.replace(context, metadata=None, slot_mapping=None, checked=False)
    )


def _sample(fake: Any, generator: torch.Generator, largest: int) -> Any:
    """Return a real argument like `fake`: random, and where it counts something, 1 to `largest`."""
    return pytree.tree_map_only(
        (Tensor, torch.SymInt, torch.SymFloat),
        lambda x: _tensor(x, generator, largest) if isinstance(x, Tensor) else _size(x),
        fake,
    )


def _tensor(fake: Tensor, generator: torch.Generator, largest: int) -> Tensor:
    shape = [_size(n) for n in fake.shape]
    if not fake.dtype.is_floating_point:
        counts = torch.randint(1, largest + 1, shape, generator=generator)
        return counts.to(fake.device, fake.dtype)
    return torch.randn(shape, generator=generator).to(fake.device, fake.dtype)


def _size(size: Any) -> int:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, _SIZE)))
