"""The verifier: each kind of fault that a pass can leave is found, and pinned on the pass."""

import operator

import pytest
import torch
from torch._higher_order_ops.auto_functionalize import auto_functionalized

from mlalab.errors import VerifyError
from mlalab.passes import mutations
from mlalab.passes.driver import PassDriver, check_order
from mlalab.passes.fix_functionalization import FixFunctionalizationPass
from mlalab.passes.verifier import Snapshot, verify
from tests.passes.toy_harness import Sketch
from tests.passes.toy_ops import LIBRARY, ops

aten = torch.ops.aten


@pytest.fixture
def draw():
    """x → 2x → slice of it → sum, and a product."""
    sketch = Sketch(torch.randn(4, 6))
    sketch.doubled = sketch(aten.mul.Tensor, sketch.inputs[0], 2.0)
    sketch.part = sketch(aten.slice.Tensor, sketch.doubled, 1, 0, 3)
    sketch.total = sketch(aten.sum.default, sketch.part)
    sketch.other = sketch(aten.neg.default, sketch.doubled)
    sketch.graph.output((sketch.total, sketch.other))
    return sketch


def out_of_order(draw):
    draw.other.append(draw.doubled)


def cycle(draw):
    draw.doubled.update_arg(0, draw.other)


def without_value(draw):
    del draw.part.meta["val"]


def of_another_dtype(draw):
    draw.part.meta["val"] = draw.part.meta["val"].half()


def of_another_shape(draw):
    draw.part.update_arg(3, 4)


def strides_swapped(draw):
    draw.other.meta["val"] = draw.other.meta["val"].mT.contiguous().mT


def view_in_other_memory(draw):
    draw.part.meta["val"] = draw.part.meta["val"].clone(memory_format=torch.preserve_format)


def copy_passed_for_a_view(draw):
    draw.other.meta["val"] = draw.doubled.meta["val"].view(4, 6)


def overwritten_before_a_read(draw):
    with draw.graph.inserting_before(draw.other):
        draw.graph.call_function(ops.scale.default, (draw.part, 3)).meta["val"] = None


FAULTS = {
    out_of_order: "malformed",
    cycle: "malformed",
    without_value: "without a recorded value",
    of_another_dtype: "recorded as float16",
    of_another_shape: "recorded as",
    strides_swapped: "recorded as",
    view_in_other_memory: "other memory|recorded as",
    copy_passed_for_a_view: "other memory",
    overwritten_before_a_read: r"neg\w* reads mul\w*, which scale\w* overwrites",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found_and_pinned_on_the_pass(draw, fault):
    before = Snapshot.of(draw.graph)
    verify(draw.graph, "Culprit", before)
    fault(draw)
    with pytest.raises(VerifyError, match=f"Culprit left .*({FAULTS[fault]})"):
        verify(draw.graph, "Culprit", before)


def test_what_was_wrong_before_is_not_held_against_a_pass(draw):
    without_value(draw)
    verify(draw.graph, "Innocent", Snapshot.of(draw.graph))
    with pytest.raises(VerifyError):
        verify(draw.graph, "anyone")


def _declare(schema, real):
    LIBRARY.define(schema)
    name = schema.split("(")[0]
    LIBRARY.impl(name, real, "CompositeExplicitAutograd")
    torch.library.register_fake(f"mlalab_test::{name}", lambda *_: None, lib=LIBRARY)
    return getattr(ops, name).default


def _write_second(x, y):
    y.add_(1)


@pytest.fixture(scope="module")
def liar():
    """Declares that it writes x, as the fused op of vLLM #41839 does of q_pe, and writes y."""
    return _declare("liar(Tensor(a!) x, Tensor y) -> ()", _write_second)


@pytest.fixture(scope="module")
def idler():
    """Declares that it writes x and does nothing."""
    return _declare("idler(Tensor(a!) x, Tensor y) -> ()", lambda x, y: None)


@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("liar", "writes y, which it does not declare|declares that it writes x, and does not"),
        ("idler", "declares that it writes x, and does not"),
    ],
)
def test_declared_mutations_are_real(name, found, functional, draw, request):
    op = request.getfixturevalue(name)
    before = Snapshot.of(draw.graph)
    with draw.graph.inserting_before(draw.graph.output_node()):
        x, y = (draw(aten.relu.default, n) for n in (draw.other, draw.total))
        if functional:
            call = draw(auto_functionalized, op, x=x, y=y)
            draw(operator.getitem, call, 1)
        else:
            draw(op, x, y)
    with pytest.raises(VerifyError, match=found):
        verify(draw.graph, "Culprit", before)


def test_an_op_is_run_once_and_touches_no_cache(monkeypatch):
    import mlalab

    runs = []
    judge = mutations._judge
    monkeypatch.setattr(mutations, "_judged", {})
    monkeypatch.setattr(mutations, "_judge", lambda op, x: runs.append(op._opname) or judge(op, x))
    trace = mlalab.trace("tiny", tokens=3, num_layers=2).check()
    assert trace.ok
    assert sorted(runs) == [
        "fused_rope_unified_mla_kv_cache_update",
        "unified_mla_attention_with_output",
    ]


def test_an_op_that_is_given_no_rows_is_judged_with_some(monkeypatch):
    import mlalab

    monkeypatch.setattr(mutations, "_judged", {})
    assert mlalab.trace("tiny", tokens=0).check().ok


def test_order_is_checked_before_anything_runs():
    fix = FixFunctionalizationPass
    from mlalab.passes.mla_rope_kvcache_cat import MLARoPEKVCacheCatFusionPass as Cat

    check_order([Cat, fix])
    with pytest.raises(Exception, match="MLARoPEKVCacheCatFusionPass must come before Fix"):
        PassDriver([fix, Cat], None)
