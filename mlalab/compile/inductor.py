"""The private parts of Inductor that a recording backend needs, each touched here only.

`tests/compile/test_inductor.py` says which of them a new torch changed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import fx
from torch._functorch.aot_autograd import make_boxed_func
from torch._inductor import compile_fx as inductor
from torch._inductor.dependencies import MemoryDep, StarDep
from torch._inductor.fx_passes import post_grad
from torch._inductor.ir import View, is_storage_and_layout
from torch._inductor.lowering import fallback_handler, lowerings
from torch._inductor.runtime.runtime_utils import cache_dir
from torch._inductor.virtualized import V
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.fx.passes.graph_transform_observer import GraphTransformObserver

from mlalab.passes.driver import PassDriver
from mlalab.recorder import Recorder

CUSTOM_PASS_STAGE = "post_grad_custom_post_pass"


@contextlib.contextmanager
def configured(driver: PassDriver, *, cache: bool = False) -> Iterator[None]:
    """Set what compiling under `driver` needs: its hook and v1 functionalisation.

    With `cache` torch may take the whole result from its compile cache, which is keyed by the
    driver's uuid; then no pass runs, and nothing can be recorded.
    """
    with (
        _bmm_of_any_size(),
        _views_of_any_size(),
        _hints_count(),
        torch._inductor.config.patch(
            enable_auto_functionalized_v2=False,
            fx_graph_cache=cache,
            post_grad_custom_post_pass=driver,
        ),
        torch._functorch.config.patch(enable_autograd_cache=cache),
    ):
        yield


@contextlib.contextmanager
def _bmm_of_any_size() -> Iterator[None]:
    """On a CPU, have torch's own kernel called for a `bmm` of which a size depends on data.

    Inductor's lowering asks there whether that size is one, and fails as nobody can tell.
    """
    bmm = torch.ops.aten.bmm.default
    own, plain = lowerings[bmm], fallback_handler(bmm, add_to_fallback_set=False)

    def lower(*arguments: Any, **options: Any) -> Any:
        values = [node.meta["val"] for node in V.graph.current_node.all_input_nodes]
        on_cpu = all(x.device.type == "cpu" for x in values)
        chosen = plain if on_cpu and free_unbacked_symbols(values) else own
        return chosen(*arguments, **options)

    with mock.patch.dict(lowerings, {bmm: lower}):
        yield


@contextlib.contextmanager
def _views_of_any_size() -> Iterator[None]:
    """Have a reshape of what is computed on the way be an index, as torch 2.13 does itself.

    Torch 2.11 writes it to memory first where a size depends on data, and fuses nothing around it:
    sixteen kernels for a layer's RoPE and norms in place of six.
    """
    own = View.create.__func__

    def create(cls: type[View], x: Any, new_size: Sequence[Any]) -> Any:
        old, new = cls.resolve_negative_size(x.get_size(), new_size)
        pairs = zip(old, new, strict=False)
        kept = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        inner = (*old[kept:], *new[kept:])
        if is_storage_and_layout(x) or not inner or 0 in new or free_unbacked_symbols(inner):
            return own(cls, x, new_size)
        reindex = cls.dynamic_reshape_indexer(old[kept:], new[kept:])
        return cls(data=x, size=new, reindex=lambda at: [*at[:kept], *reindex(at[kept:])])

    with mock.patch.object(View, "create", classmethod(create)):
        yield


@contextlib.contextmanager
def _hints_count() -> Iterator[None]:
    """Have fusing weigh what has a hint of its size, as torch 2.13 does itself.

    To torch 2.11 nothing is saved where a size depends on data, and a norm takes two kernels.
    """

    def has_no_hint(dep: Any) -> bool:
        hints = V.graph.sizevars.shape_env.var_to_hint_override
        return any(symbol not in hints for symbol in free_unbacked_symbols(dep.get_numel()))

    with (
        mock.patch.object(MemoryDep, "has_unbacked_symbols", has_no_hint),
        mock.patch.object(StarDep, "has_unbacked_symbols", has_no_hint),
    ):
        yield


def cache_folder() -> Path:
    """Return the folder of Inductor's compile cache."""
    return Path(cache_dir())


@contextlib.contextmanager
def recording_inductor_passes(recorder: Recorder) -> Iterator[None]:
    """Record each of Inductor's own post-grad passes that changes the graph."""
    observer = GraphTransformObserver

    def recorded(original: Callable[..., Any]) -> Callable[..., Any]:
        def apply(self: Any, pass_fn: Callable[..., Any]) -> Any:
            if self.passname == CUSTOM_PASS_STAGE:
                return original(self, pass_fn)
            with recorder.step(self.passname, "inductor", self.gm) as draft:
                draft.keep_unchanged = False
                draft.note = "One of Inductor's own passes."
                return original(self, pass_fn)

        return apply

    with (
        mock.patch.object(observer, "apply_graph_pass", recorded(observer.apply_graph_pass)),
        mock.patch.object(observer, "apply_gm_pass", recorded(observer.apply_gm_pass)),
    ):
        yield


def normalise_views(gm: fx.GraphModule) -> None:
    """Turn views into reshapes, as Inductor does before its post-grad passes; idempotent."""
    post_grad.view_to_reshape(gm)


def run_post_grad(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """Run Inductor's post-grad passes on `gm` and return a function that interprets the result.

    This is what Inductor does up to the point where it would write code.
    """
    normalise_views(gm)
    with torch.no_grad():
        fake_mode = inductor.fake_tensor_prop(gm, example_inputs)
    with V.set_fake_mode(fake_mode):
        post_grad.post_grad_passes(gm, True)
    gm.recompile()
    return make_boxed_func(gm.forward)


def compile_with(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    inner: Callable[..., Any] = inductor.compile_fx_inner,
) -> Callable[..., Any]:
    """Lower a Dynamo graph through AOTAutograd; `inner(gm, inputs, ...)` compiles the result."""
    return inductor.compile_fx(gm, example_inputs, inner_compile=inner)


def interpret(gm: fx.GraphModule, example_inputs: Sequence[Any], **_: Any) -> Callable[..., Any]:
    """Stand in for Inductor's inner compiler: run the passes and interpret the result."""
    return run_post_grad(gm, example_inputs)


def generate_code(gm: fx.GraphModule, inputs: Sequence[Any], **options: Any) -> Callable[..., Any]:
    """Compile a post-AOTAutograd graph to code: Inductor's own inner compiler."""
    return inductor.compile_fx_inner(gm, inputs, **options)
