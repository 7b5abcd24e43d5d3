"""Random programs, real code, and proof that each safety check is needed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlalab.passes import fix_functionalization as fix
from mlalab.passes import values
from mlalab.passes.aliasing import AliasIndex, Region
from mlalab.passes.scatter_split import ScatterSplitReplacementPass
from tests.passes.test_fix_functionalization import CASES
from tests.passes.toy_harness import FIX, compile_and_run, differences, wrong_graph
from tests.passes.toy_ops import ops
from tests.passes.toy_programs import write

BOTH = (ScatterSplitReplacementPass, *FIX)


@pytest.mark.parametrize("passes", [FIX, BOTH], ids=["alone", "after scatter_split"])
@settings(max_examples=40)
@given(source=st.randoms(use_true_random=False))
def test_random_programs_keep_their_meaning(passes, source):
    program = write(source.randrange)
    run = compile_and_run(program.function, program.make_inputs(), passes)
    assert differences(run, program.function, program.make_inputs()) == []
    assert wrong_graph(run) == []


@pytest.mark.parametrize(
    "name", ["through_views_of_views", "two_arguments_that_overlap", "twice_on_one_buffer"]
)
def test_in_real_code(name):
    program, inputs = CASES[name].program, [torch.randint(-99, 99, (4, 6))]
    run = compile_and_run(program, inputs, BOTH, mode="inductor")
    assert differences(run, program, inputs) == []


def always(value):
    return lambda *_: value


REMOVED = {
    "later readers": (AliasIndex, "readers_after", always(()), "old_value_read_later"),
    "overlap": (Region, "overlaps", always(False), "old_value_read_later"),
    "overlapping arguments": (fix, "_overlap", always(False), "two_arguments_that_overlap"),
    "same argument": (fix, "_nodes_in", always([]), "same_tensor_twice"),
    "graph inputs": (AliasIndex, "aliases", always([]), "input_that_must_not_change"),
    "region of a chain": (Region, "same_as", always(True), "put_back_elsewhere"),
    "bytes, not elements": (torch.Tensor, "element_size", always(1), "overlap_as_another_dtype"),
    "stale values": (values, "_is_stale", always(False), "view_of_a_dropped_clone"),
    "stale eager inputs": (
        *(values, "_drop_stale_eager_inputs", always(None)),
        "results_kept_apart_at_an_offset",
    ),
    "results apart": (
        fix,
        "gives_new_sharing",
        always(False),
        "results_that_eager_mode_keeps_apart",
    ),
    "results left functional": (fix, "_stays_functional", always(False), "item_of_a_left_call"),
    "layout of results": (fix, "layout_readers", always(()), "input_returned_with_gaps"),
}
"""Check → what to replace, by what, and a program that is wrong without it."""


def put_back_elsewhere(a):
    b = a + 1
    s = b[:, :2]
    ops.scale(s, 3)
    return b * 2, s * 2
