"""The smallest kernel runs interpreted and compiles for a GPU that is not here."""

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from mlalab.bench.empty_kernel import _touch, touch


def test_it_writes_one_element():
    out = torch.zeros(3, dtype=torch.int32)
    touch(out)
    assert out.tolist() == [1, 0, 0]


def test_it_compiles_for_hopper(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    source = ASTSource(fn=_touch, signature={"out_ptr": "*i32"}, constexprs={})
    assert "st.global" in compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
