"""A refusal says which nodes of the pattern agreed, and the step keeps that pattern once."""

from __future__ import annotations

import functools

import pytest
import torch
from torch._subclasses import FakeTensorMode

from mlalab.lab import record
from mlalab.passes.explain import attempt
from mlalab.passes.matching import blind_pattern
from mlalab.passes.mla_rope_kvcache_cat import MLARoPEKVCacheCatFusionPass
from mlalab.passes.pattern_records import Patterns, source_line
from mlalab.passes.tracing import to_pattern, trace
from mlalab.traces import Trace
from tests.passes import awkward
from tests.passes.models import FUSION, chain, one, shape_of, stand
from tests.passes.mutants import lowered, pattern_of, tensors_of

PASS = MLARoPEKVCacheCatFusionPass
VARIANTS = {variant.name: variant for variant in PASS.variants}
SOURCE = source_line(PASS.variants[0].pattern)


def broken(name, change):
    """The result of the pass on the graph of one of its own variants, with `change` made to it."""
    gm, _ = lowered(pattern_of(VARIANTS[name]), tensors_of(VARIANTS[name]))
    change(gm.graph)
    return PASS.apply(gm.graph)


def only(result):
    """The one refusal of a result, its pattern, and the pattern's nodes by name."""
    (refusal,) = result.refusals
    pattern = result.patterns[refusal.pattern]
    nodes = {node.name: node for node in pattern.nodes}
    assert pattern.name == refusal.variant
    assert {*refusal.agreed, *filter(None, [refusal.failed])} <= nodes.keys()
    assert refusal.failed not in refusal.agreed
    return refusal, pattern, nodes


def ops(nodes, names):
    return sorted(nodes[name].target for name in names if nodes[name].op == "call_function")


def test_without_rope_the_search_ends_at_the_key_of_every_layer():
    step = record(stand(chain, 2, shape=shape_of("none")), keep_graphs=False)[FUSION]
    assert len(step.patterns) == 1
    (pattern,) = step.patterns
    assert (pattern.name, pattern.source) == ("custom op/gptj", SOURCE)
    assert [node.name for node in pattern.nodes][:6] == list(PASS.tensors)
    for refusal, at in zip(step.refusals, ("unsqueeze", "unsqueeze_1"), strict=True):
        assert (refusal.pattern, refusal.failed, refusal.at) == (0, "getitem_2", at)
        assert refusal.agreed == ("kv_c", "unified_mla_kv_cache_update")


def test_an_op_in_the_middle():
    """A product of the key is a difference: what was compared before it agrees, the rest waits."""

    def change(graph):
        (anchor,) = graph.find_nodes(op="call_function", target=PASS.anchor)
        key = max(n for n in graph.nodes if n.target == torch.ops.aten.mul.Tensor and n < anchor)
        key.target = torch.ops.aten.sub.Tensor

    refusal, _, nodes = only(broken("plain/neox (fp32)", change))
    assert nodes[refusal.failed].target == refusal.expected == "aten.mul"
    assert refusal.found == "aten.sub"
    readers = [node.name for node in nodes.values() if refusal.failed in node.inputs]
    assert readers
    assert {*readers, "unified_mla_kv_cache_update"} <= {*refusal.agreed, "output"}


def test_a_dtype_that_differs():
    def change(graph):
        convert = torch.ops.prims.convert_element_type.default
        nodes = graph.find_nodes(op="call_function", target=convert)
        last = max(node for node in nodes if node.args[1] == torch.bfloat16)
        last.args = (last.args[0], torch.float16)
        last.meta["val"] = last.meta["val"].to(torch.float16)

    refusal, pattern, nodes = only(broken("deepseek_scaling/neox (half, fp32 table)", change))
    failed = nodes[refusal.failed]
    assert (failed.target, failed.dtype) == ("prims.convert_element_type", "bfloat16")
    assert refusal.found.endswith("float16")
    assert {node.dtype for node in pattern.nodes} >= {"bfloat16", "float32", "int64"}


def test_a_result_that_nothing_computes():
    step = record(stand(one(awkward.only_the_cache_is_rotated)), keep_graphs=False)[FUSION]
    refusal, _, nodes = only(step)
    assert (nodes[refusal.failed].target, refusal.at) == ("aten.add", None)
    assert {"mlalab.unified_mla_kv_cache_update", "aten.index"} <= {*ops(nodes, refusal.agreed)}


def test_of_a_string_that_differs_the_call_is_to_blame():
    update = torch.ops.mlalab.unified_mla_kv_cache_update
    tensors = [torch.empty(2, 8), torch.empty(2, 1, 4), torch.empty(())]

    def traced(first, second, wildcards):
        def function(kv_c, k_pe, scale, **names):
            return update(kv_c, k_pe, names.get("name", first), names.get("name", second), scale)

        with FakeTensorMode() as mode:
            return trace(function, [mode.from_tensor(x) for x in tensors], wildcards)

    names = ("kv_c", "k_pe", "scale")
    pattern = to_pattern(traced("", "", ("name",)), names, ("name",), blind=True)
    (anchor,) = [n for n in traced("a", "b", ()).graph.nodes if n.op == "call_function"]
    miss = attempt(pattern, anchor, "same string twice")
    assert (miss.failed, miss.agreed) == ("unified_mla_kv_cache_update", ("kv_c", "k_pe"))


def test_all_agrees_and_yet_it_must_not_be_fused():
    step = record(stand(one(awkward.latent_needs_query)), keep_graphs=False)[FUSION]
    refusal, _, nodes = only(step)
    assert (refusal.failed, refusal.at) == (None, None)
    assert {*refusal.agreed} == {name for name, node in nodes.items() if node.op != "output"}


def test_a_pattern_of_structure_has_no_sizes():
    patterns, variant = Patterns(PASS.variants), PASS.variants[0]
    blind = blind_pattern(PASS.tensors, PASS.wildcards, variant)
    assert patterns.number(variant.name, blind) == patterns.number(variant.name, blind) == 0
    (pattern,) = patterns.records
    assert {(n.shape, n.stride, n.dtype, n.bytes, n.layer) for n in pattern.nodes} == {(None,) * 5}
    texts = {node.name: node.text for node in pattern.nodes}
    assert texts["getitem_2"] == "getitem_2 = auto_functionalized[2]"
    assert not any("wildcard" in text for text in texts.values())


def test_a_match_says_where_its_pattern_is_written():
    (match,) = record(stand(chain, 1), keep_graphs=False)[FUSION].matches
    assert match.source == SOURCE
    assert SOURCE.startswith("mla_rope_kvcache_cat.py:")


class Pattern:
    def __call__(self):
        pass


def test_where_a_function_is_written():
    here = f"test_pattern_records.py:{only.__code__.co_firstlineno}"
    assert source_line(only) == source_line(functools.partial(functools.partial(only))) == here
    assert source_line(Pattern()).startswith("test_pattern_records.py:")


@pytest.mark.parametrize("file", ["/tmp/ipykernel_12/345.py", "<stdin>", "<ipython-input-3>"])
def test_a_cell_is_called_a_cell(file):
    space = {}
    exec(compile("\n\ndef pattern(): pass", file, "exec"), space)
    assert source_line(space["pattern"]) == "cell:3"


def test_patterns_survive_a_file(tmp_path):
    made = record(stand(chain, 2, shape=shape_of("none")), keep_graphs=False)
    made.save(tmp_path / "t.json")
    loaded = Trace.load(tmp_path / "t.json")
    assert loaded.steps == made.steps
    assert loaded.why_figure(FUSION) == made.why_figure(FUSION)
