"""One artifact, compiled ahead of time with a mixed batch, serves every kind of batch elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mlalab.compile import inductor
from mlalab.compile.ranges import CompileRange
from mlalab.compile.settings import CompileConfig
from mlalab.context import ForwardContext, forward_context
from mlalab.passes.driver import PassDriver
from mlalab.passes.pipeline import PIPELINE
from tests.compile.aot_run import OPTIONS, lowered
from tests.compile.batches import BLOCK, flags, mixed, model
from tests.layers.test_mla_paths import BATCHES

ROOT = Path(__file__).resolve().parents[2]
# Where no row attends to more than itself, or none at all, no scale matters.
ANY_SCALE = {"empty", "only padding", "profile run"}


def compile_and_save(module, path):
    """Compile for any token count, with mlalab's passes, and return what these did."""
    config = CompileConfig(pass_config=flags(module, aiter=False)).passes_of()
    driver = PassDriver(PIPELINE, config, compile_range=CompileRange(1, 64))
    batch = mixed(2, 3)
    context = ForwardContext(
        layers={layer.layer_name: layer for layer in module.layers},
        metadata=batch,
        slot_mapping=batch.slot_mapping(BLOCK),
    )
    arguments = (batch.positions(), torch.randn(5, 64, dtype=OPTIONS["dtype"]))
    for argument in arguments:
        torch._dynamo.decorators.mark_unbacked(argument, 0)
    with (
        torch.no_grad(),
        forward_context(context),
        # torch saves only what its own cache could hold.
        inductor.configured(driver, cache=True),
        # Off by default in torch 2.11.
        torch._dynamo.config.patch(enable_aot_compile=True),
    ):
        function = torch.compile(module.forward, fullgraph=True)
        function.aot_compile((arguments, {})).save_compiled_function(str(path))
    return driver.outcomes


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """What a process found that was given nothing but the artifact and torch's cache folder."""
    folder = tmp_path_factory.mktemp("artifact")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
        torch._dynamo.reset()
        with lowered() as graphs:
            outcomes = compile_and_save(model("tiny", exposed=True, **OPTIONS), folder / "layer")
        assert len(graphs) == 1
        assert "MLARoPEKVCacheCatFusionPass" in {x.name for x in outcomes if x.matches}
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "kernels")]))
        process = subprocess.run(
            [sys.executable, "-m", "tests.compile.aot_run", str(folder / "layer")],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=300,
            check=False,
        )
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", BATCHES)
def test_same_as_the_opaque_layer_in_eager_mode(elsewhere, name):
    assert elsewhere["equal"][name]


def test_no_graph_is_lowered_after_loading(elsewhere):
    assert elsewhere["graphs"] == 0


def test_another_attention_would_be_noticed(elsewhere):
    assert {name for name, same in elsewhere["equal when harmed"].items() if same} == ANY_SCALE
