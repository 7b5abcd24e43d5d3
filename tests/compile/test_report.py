"""The report: every pass that was asked for, in every graph, and a warning when nothing matched."""

import warnings

import pytest
import torch

from mlalab.compile.config import PassConfig
from mlalab.compile.dispatch import CompiledModel
from mlalab.compile.settings import CompileConfig
from mlalab.errors import ConfigError, PassWarning
from mlalab.layers.options import LayerOptions
from mlalab.passes.pipeline import PIPELINE
from mlalab.workbench import build
from tests.compile.batches import compiled, decode, model, prefill, run
from tests.passes.models import shape_of

CAT, LIFT, AITER, GQA = (
    "MLARoPEKVCacheCatFusionPass",
    "MLADecodeQPrepLiftPass",
    "MLAAiterQkRopeKVCacheFusionPass",
    "RopeKVCacheFusionPass",
)


def rows(fused):
    return {(r.graph, r.name): (r.status, r.expected, r.matched) for r in fused.report()}


def test_every_requested_pass_is_listed_for_every_graph():
    module = model("tiny", "tiny-gqa", "tiny")
    fused = compiled(module)
    for batch in (decode(3), prefill(3), prefill(20)):
        run(fused, list(module.layers), batch)
    late = {LIFT: ("not decode only", 2, 0), AITER: ("not decode only", 2, 0)}
    always = {CAT: ("applied", 2, 2), GQA: ("applied", 1, 1)}
    done = {LIFT: ("applied", 2, 2), AITER: ("applied", 2, 2)}
    assert rows(fused) == {
        **{("general 1..8", name): row for name, row in {**always, **late}.items()},
        **{("general 9..64", name): row for name, row in {**always, **late}.items()},
        **{("decode 1..8", name): row for name, row in {**always, **done}.items()},
    }


def test_a_range_beyond_a_bound_is_listed_as_skipped():
    module = model("tiny-gqa")
    settings = PassConfig(fuse_rope_kvcache=True, rope_kvcache_fusion_max_token_num=16)
    fused = compiled(module, pass_config=settings)
    for tokens in (16, 17):
        run(fused, list(module.layers), prefill(tokens))
    found = {graph: row for (graph, name), row in rows(fused).items() if name == GQA}
    assert found == {"general 1..16": ("applied", 1, 1), "general 17..64": ("out of range", 1, 0)}


def nope_model():
    """One layer that rotates and one that does not."""
    module = model("tiny", "tiny")
    nope = build(shape_of("none"), tokens=1, options=LayerOptions()).layers[0]
    nope.layer_name = "layers.nope"
    nope.allocate_cache(40)
    module.layers[1] = nope
    return module


def test_what_did_not_match_is_warned_of_with_the_nearest_miss():
    module = nope_model()
    del module.layers[0]
    fused = compiled(module, pass_config=PassConfig())
    miss = r"matched 0 of 1 layers in the graph for general 1\.\.64: layers\.nope: expected .*found"
    with pytest.warns(PassWarning, match=rf"{CAT} {miss}"):
        run(fused, list(module.layers), prefill(2))
    (row,) = fused.report()
    assert (row.status, row.expected, row.matched) == ("refused", 1, 0)
    assert row.reasons[0] in str(fused.report())


def test_a_part_that_did_not_match_is_warned_of_too():
    module = nope_model()
    fused = compiled(module, pass_config=PassConfig())
    with pytest.warns(PassWarning, match=rf"{CAT} matched 1 of 2 layers"):
        run(fused, list(module.layers), prefill(2))


def test_a_warning_comes_once_for_each_graph():
    module = nope_model()
    fused = compiled(module, pass_config=PassConfig())
    with pytest.warns(PassWarning):
        run(fused, list(module.layers), prefill(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(fused, list(module.layers), prefill(3))


def test_a_flag_for_layers_that_are_not_there_is_warned_of():
    with pytest.warns(PassWarning, match=r"fuse_rope_kvcache is on and the model has no gqa"):
        compiled(model("tiny"), pass_config=PassConfig(fuse_rope_kvcache=True))


def test_what_is_not_compiled_yet_is_said():
    module = model("tiny")
    fused = compiled(module)
    assert str(fused.report()).endswith("not compiled yet: 1..8, 9..64")
    run(fused, list(module.layers), prefill(3))
    assert fused.report().not_compiled == ("9..64",)


def test_the_printed_report(golden):
    module = model("tiny", "tiny-gqa")
    fused = compiled(module)
    for batch in (decode(3), prefill(3)):
        run(fused, list(module.layers), batch)
    golden("report", str(fused.report()))


def test_a_wrong_order_is_refused_when_the_model_is_built():
    with pytest.raises(ConfigError, match="must come"):
        CompiledModel(model("tiny"), CompileConfig(), PIPELINE[::-1])


def test_a_tensor_of_unknown_origin_is_refused():
    module = model("tiny")
    free = torch.ones(64)
    plain = module.function
    module.function = lambda layers, p, h: plain(layers, p, h * free)
    with pytest.raises(ConfigError, match="neither an argument nor a parameter"):
        run(compiled(module), list(module.layers), decode(1))
