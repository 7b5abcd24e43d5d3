"""In-place ops as models have them, half precision: functionalised calls stay exactly without it.

An activation with an output argument, a norm that writes two, RoPE on whole tensors and on slices,
and an op that writes arguments and returns something as well.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.passes.toy_harness import FIX, compile_and_run, differences, wrong_graph
from tests.passes.toy_ops import LIBRARY, ops

TOKENS, HEADS, ROPE = 5, 4, 8
WIDTH = HEADS * ROPE


def silu_and_mul(result: Tensor, x: Tensor) -> None:
    gate, up = x.chunk(2, -1)
    result.copy_(torch.nn.functional.silu(gate) * up)


def fused_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor) -> None:
    residual.add_(x)
    x.copy_(torch.nn.functional.rms_norm(residual, weight.shape, weight))


def norm_with_scale(x: Tensor, residual: Tensor) -> Tensor:
    residual.add_(x)
    scale = residual.abs().amax(-1)
    x.copy_(residual / scale[:, None])
    return scale


def declare(schema, real, fake=lambda *_: None):
    name = LIBRARY.define(schema)
    LIBRARY.impl(name, real, "CompositeExplicitAutograd")
    torch.library.register_fake(f"mlalab_test::{name}", fake, lib=LIBRARY)


declare("silu_and_mul(Tensor(a!) result, Tensor x) -> ()", silu_and_mul)
declare(
    "fused_add_rms_norm(Tensor(a!) x, Tensor(b!) residual, Tensor weight) -> ()",
    fused_add_rms_norm,
)
declare(
    "norm_with_scale(Tensor(a!) x, Tensor(b!) residual) -> Tensor",
    norm_with_scale,
    lambda x, residual: x.new_empty(x.size(0)),
)


def activation(x, y, table, positions):
    result = torch.empty_like(x)
    ops.silu_and_mul(result, torch.cat((x, y), -1))
    return (result * 2,)


def norm(x, y, table, positions):
    hidden, residual = x * 2, y * 3
    ops.fused_add_rms_norm(hidden, residual, table[:4].flatten())
    ops.fused_add_rms_norm(hidden, residual, table[:4].flatten())
    return hidden + 1, residual + 1


def rotary(x, y, table, positions):
    q, k = x * 2, y * 3
    torch.ops.mlalab.rotary_embedding(positions, q, k, ROPE, table, True)
    return q + 1, k + 1


def rotary_on_slices(x, y, table, positions):
    q, k = (x * 2).view(TOKENS, HEADS, ROPE), y * 3
    torch.ops.mlalab.rotary_embedding(positions, q[:, 1:], k, ROPE, table, False)
    return q + 1, q[:, 1:] + 2, k


def writes_and_returns(x, y, table, positions):
    hidden, residual = x * 2, y * 3
    scale = ops.norm_with_scale(hidden, residual)
    return hidden * scale[:, None], residual + 1, scale + 2


PROGRAMS = {activation: 1, norm: 2, rotary: 1, rotary_on_slices: 1, writes_and_returns: 1}
"""Program → its calls of in-place ops."""


def inputs(dtype):
    torch.manual_seed(1)
    sizes = ((TOKENS, WIDTH), (TOKENS, WIDTH), (9, ROPE))
    return [*(torch.randn(size).to(dtype) for size in sizes), torch.arange(TOKENS)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("fixing", [True, False])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_calls_stay_functional_exactly_without_the_pass(program, fixing, dtype):
    run = compile_and_run(program, inputs(dtype), FIX if fixing else ())
    assert differences(run, program, inputs(dtype)) == []
    assert wrong_graph(run) == []
    assert run.reasons == []
    functional, scatters = (len(run.calls(x)) for x in ("auto_functionalized", "slice_scatter"))
    assert functional == (0 if fixing else PROGRAMS[program])
    assert bool(scatters) == (program is rotary_on_slices and not fixing)
    assert not fixing or run.calls("clone") == []


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_in_generated_code_too(program):
    given = inputs(torch.bfloat16)
    run = compile_and_run(program, given, mode="inductor")
    for found, expected in zip(run.outputs, program(*given), strict=True):
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
