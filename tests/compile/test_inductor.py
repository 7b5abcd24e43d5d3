"""What mlalab uses of torch's private parts, so that a new torch says what it changed."""

import inspect

import pytest
from torch import fx
from torch._inductor import compile_fx, config, lowering
from torch._inductor import pattern_matcher as pm
from torch._inductor.fx_passes import post_grad
from torch.fx.passes.graph_transform_observer import GraphTransformObserver

import mlalab
from mlalab.compile import inductor


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
