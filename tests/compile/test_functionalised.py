"""Both wrappings of an op that writes its arguments."""

from __future__ import annotations

import pytest
import torch

from mlalab.compile.functionalised import functionalised


def rotate(positions, q_TNH, k_T1R, table):
    q, k = q_TNH * 2, k_T1R * 2
    torch.ops.mlalab.rotary_embedding(positions, q[..., 4:], k, 4, table, False)
    return q, k


@pytest.fixture(scope="module")
def graphs():
    tensors = (torch.arange(3), torch.ones(3, 2, 8), torch.ones(3, 1, 4), torch.ones(9, 4))
    return functionalised(rotate, *tensors)


def targets(step):
    return [node.target for node in step.nodes if node.op == "call_function"]


def test_v1_takes_the_view_and_scatters_the_result(graphs):
    names = targets(graphs["v1"])
    assert names.count("auto_functionalized(mlalab.rotary_embedding)") == 1
    assert names.count("aten.slice_scatter") == 1
    assert not any("_v2" in name for name in names)


def test_v2_takes_the_base_and_describes_the_view(graphs):
    names = targets(graphs["v2"])
    assert names.count("auto_functionalized_v2") == 1
    assert "aten.slice_scatter" not in names
    (text,) = (n.text for n in graphs["v2"].nodes if n.target == "auto_functionalized_v2")
    assert "_query_slice_start=4" in text
    assert "_all_bases=[mul, mul_1]" in text


def test_nobody_writes_in_place(graphs):
    assert not any(node.mutates for step in graphs.values() for node in step.nodes)
    assert [step.name for step in graphs.values()] == ["v1", "v2"]


def test_an_op_that_writes_nothing_is_not_wrapped():
    for step in functionalised(lambda x: x + 1, torch.ones(0, 3)).values():
        assert targets(step) == ["aten.add"]


def test_inputs_are_left_as_they_were():
    x = torch.ones(3)
    functionalised(lambda x: x.add_(1), x)
    assert torch.equal(x, torch.ones(3))
