"""What a decode step starts, counted in graphs and in the code that Inductor writes."""

from __future__ import annotations

import pytest
import torch

from mlalab.compile.config import UNFUSED
from mlalab.errors import ConfigError
from mlalab.ladder import calls_in, ladder, written_code
from mlalab.layers.options import LayerOptions
from mlalab.viz.ladder import Calls
from mlalab.workbench import build

CODE = """
def cpp_fused_add_0(in_ptr0):
    extern_kernels.mm(before, the, call)

def call(self, args):
    buf0 = empty_strided_cpu((5, 48), (48, 1), torch.bfloat16)
    extern_kernels.mm(arg1_1, arg0_1, out=buf0)
    cpp_fused_add_0(buf0)
        triton_poi_fused_add_1.run(buf0, 240, stream=stream0)
    buf1 = extern_kernels.bmm(buf0, arg2_1)
    buf2 = torch.ops.mlalab.mla_attention_decode.default(buf1, 'layer')
    buf3 = buf2
    buf4 = torch.ops.aten.cumsum.default(buf3, 0)
    assert_size_stride(buf4, (5, 48), (48, 1))
    return (buf4, )
"""


def test_calls_in_code_are_told_apart():
    assert calls_in(CODE) == Calls(plain=1, generated=2, library=2, ours=1)


def test_each_rung_starts_less():
    found = ladder(tokens=3)
    totals = [calls.total for calls in found.rungs.values()]
    assert list(found.rungs) == ["eager", "opaque", "exposed", "exposed + passes"]
    assert totals == sorted(set(totals), reverse=True)
    # Nothing is left alone once it is seen, and every product stays one until a pass takes it.
    assert found["opaque"].plain and not found["exposed"].plain
    products = [calls.library for calls in found.rungs.values()]
    assert products[0] == products[1] == products[2] == products[3] + 1
    assert {calls.ours for calls in found.rungs.values()} == {2}


def test_code_is_written_and_not_run():
    options = LayerOptions(dtype=torch.bfloat16, exposed=True)
    bench = build("tiny", tokens=2, options=options)
    cache = bench.layers[0].kv_cache.storage.clone()
    code = written_code(bench, UNFUSED)
    assert "mla_attention_decode" in code and "def call(" in code
    assert torch.equal(cache, bench.layers[0].kv_cache.storage)


def test_a_model_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="neither a preset"):
        ladder("no such model")
