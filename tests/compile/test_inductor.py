"""What mlalab uses of torch's private parts, so that a new torch says what it changed."""

import inspect

import pytest
import torch
from torch import fx
from torch._inductor import compile_fx, config, ir, lowering, metrics
from torch._inductor import pattern_matcher as pm
from torch._inductor.fx_passes import post_grad
from torch.fx.passes.graph_transform_observer import GraphTransformObserver

import mlalab
from mlalab.compile import inductor
from mlalab.compile.config import UNFUSED
from mlalab.passes.driver import PassDriver


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (GraphTransformObserver.apply_graph_pass, ["self", "pass_fn"]),
        (GraphTransformObserver.apply_gm_pass, ["self", "pass_fn"]),
        (post_grad.view_to_reshape, ["gm"]),
        (post_grad.post_grad_passes, ["gm", "is_inference"]),
        (compile_fx.fake_tensor_prop, ["gm", "example_inputs"]),
        (compile_fx.compile_fx, ["model_", "example_inputs_", "inner_compile"]),
        (lowering.fallback_handler, ["kernel", "add_to_fallback_set"]),
        (ir.View.create, ["x", "new_size"]),
        (ir.View.dynamic_reshape_indexer, ["old_size", "new_size"]),
        (pm.fwd_only, ["fn", "args"]),
        (pm.Match.replace_with_graph, ["self", "replacement_graph", "args"]),
    ],
)
def test_signatures(function, parameters):
    assert list(inspect.signature(function).parameters)[: len(parameters)] == parameters


def test_options_and_hooks_exist():
    for option in ("enable_auto_functionalized_v2", "fx_graph_cache", "post_grad_custom_post_pass"):
        assert hasattr(config, option)
    for hook in ("create", "erase"):
        assert hasattr(fx.GraphModule, f"_register_{hook}_node_hook")


def test_wrong_code_is_noticed(monkeypatch):
    def wrong(gm, inputs, **options):
        run = inductor.run_post_grad(gm, inputs)
        code = lambda flat: [y + 1 for y in run(flat)]  # noqa: E731
        code._boxed_call = True
        return code

    monkeypatch.setattr(inductor, "generate_code", wrong)
    trace = mlalab.trace("tiny", tokens=3, mode="inductor").check()
    assert not trace.ok
    assert all(step.verdict == "ok" for step in trace)


def test_right_code_is_close():
    trace = mlalab.trace("tiny", tokens=3, mode="inductor").check()
    assert trace.ok
    assert "generated code against the last graph" in repr(trace)


def norm_and_turn(x):
    y = x.view(x.size(0), 4, 8) * torch.rsqrt(x.pow(2).mean(-1))[:, None, None]
    a, b = y.mul(2).unflatten(-1, (4, 2)).unbind(-1)
    return torch.stack((b, -a), -1).flatten(-2) + y


def test_what_is_of_any_size_is_fused_as_well():
    """Torch 2.11, left alone, makes seven kernels of it."""
    x = torch.randn(5, 32)
    marked = x.view_as(x)
    torch._dynamo.decorators.mark_unbacked(marked, 0, hint_override=64)

    def backend(gm, inputs):
        with inductor.configured(PassDriver([], UNFUSED)):
            return inductor.compile_with(gm, inputs)

    torch._dynamo.reset()
    metrics.reset()
    with torch.no_grad():
        found = torch.compile(norm_and_turn, backend=backend, fullgraph=True)(marked)
    torch.testing.assert_close(found, norm_and_turn(x))
    assert metrics.generated_kernel_count == 4
