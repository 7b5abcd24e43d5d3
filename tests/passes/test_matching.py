"""A fusion fires where the graph means exactly what the pattern means, and nowhere else."""

from __future__ import annotations

import dataclasses
import functools
import logging

import pytest
import torch
from torch import fx

from mlalab.graphs import fake_mode_of, value_of
from mlalab.passes import matching, tracing
from mlalab.passes.driver import verify
from mlalab.passes.mla_rope_kvcache_cat import MLARoPEKVCacheCatFusionPass
from mlalab.passes.rope_forms import native_rope, ops
from mlalab.rope import RotaryEmbedding
from tests.passes.mutants import (
    LAYER,
    ROPE,
    copied,
    lowered,
    mutants,
    pattern_of,
    revalue,
    run,
    tensors_of,
)

FUSION = MLARoPEKVCacheCatFusionPass
VARIANTS = {variant.name: variant for variant in FUSION.variants}
CUSTOM, NATIVE = VARIANTS["custom op/gptj"], VARIANTS["plain/gptj (fp32)"]


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Torch reports at length why a graph that makes no sense has no values."""
    monkeypatch.setattr(logging.getLogger("torch._subclasses.fake_tensor"), "disabled", True)


def outcome(gm, inputs):
    """Return what a graph computes, or None where it cannot run."""
    try:
        return run(fx.Interpreter(gm).run, inputs)
    except (IndexError, RuntimeError):
        return None


def same(left, right):
    return right is not None and all(
        (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(left, right, strict=True)
    )


def text(gm):
    return [f"{node} {node.target} {node.args} {node.kwargs}" for node in gm.graph.nodes]


def survey(variant, *, dynamic=False, wanted=lambda index, what: True):
    """Return the mutants that fused and then compute the same, those that do not, and the rest."""
    gm, inputs = lowered(pattern_of(variant), tensors_of(variant), range(4) if dynamic else ())
    good, bad, refused = [], [], []
    for index, (what, make) in enumerate(mutants(gm)):
        if not wanted(index, what):
            continue
        mutant = make()
        try:
            revalue(mutant)
        except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError):
            continue
        original = copied(mutant)
        result = FUSION.apply(mutant.graph)
        if result.matches:
            verify(mutant.graph, what)
            expected = outcome(original, inputs)
            if expected is not None:
                (good if same(expected, outcome(mutant, inputs)) else bad).append(what)
        else:
            refused.append(what)
            assert text(mutant) == text(original)
            assert [bool(refusal.reason) for refusal in result.refusals] == [True]
    return good, bad, refused


@pytest.mark.parametrize(
    ("name", "dynamic", "every"),
    [
        ("custom op/gptj", False, 1),
        ("custom op/neox", True, 2),
        ("deepseek_scaling/gptj (half, fp32 table)", False, 4),
        ("deepseek_scaling/neox (rounding each step)", False, 5),
        ("plain/neox (fp32)", True, 8),
        ("plain/gptj (half, half table), 2-D key", False, 8),
    ],
)
def test_a_graph_changed_in_one_place_fuses_only_where_it_means_the_same(name, dynamic, every):
    wanted = lambda index, what: index % every == 0  # noqa: E731
    good, bad, refused = survey(VARIANTS[name], dynamic=dynamic, wanted=wanted)
    assert bad == []
    # Another input is no reason to refuse, nor is a scale or a norm before the pattern.
    assert good
    assert refused


def test_the_survey_finds_a_matcher_that_ignores_keywords(monkeypatch):
    monkeypatch.setattr(tracing.Call, "extra_keywords", lambda self, node: [])
    _, bad, _ = survey(NATIVE, wanted=lambda index, what: "alpha" in what)
    assert len(bad) == 4


def test_the_survey_finds_a_matcher_without_a_second_stage(monkeypatch):
    blind = functools.partial(tracing.to_pattern, blind=True)
    monkeypatch.setattr(tracing, "to_pattern", lambda *args, **_: blind(*args))
    _, bad, _ = survey(NATIVE, wanted=lambda index, what: what.startswith("slice"))
    assert len(bad) > 10


def apply(function, tensors, dynamic=()):
    """Return the fused graph of a function, the result, and the function's inputs."""
    gm, inputs = lowered(function, tensors, dynamic)
    expected = outcome(gm, inputs)
    result = FUSION.apply(gm.graph)
    verify(gm.graph, FUSION.name)
    assert same(expected, outcome(gm, inputs))
    return gm, result


def test_fusing_twice_changes_nothing_more():
    gm, result = apply(pattern_of(NATIVE), tensors_of(NATIVE))
    assert len(result.matches) == 1
    once = text(gm)
    again = FUSION.apply(gm.graph)
    assert (again.matches, again.refusals) == ((), ())
    assert text(gm) == once


def test_one_node_may_serve_as_two_inputs():
    def function(positions, q_pe, k_pe, kv_c, table, scale):
        return pattern_of(NATIVE)(positions, k_pe, k_pe, kv_c, table, scale)

    _, result = apply(function, tensors_of(NATIVE))
    assert len(result.matches) == 1


def test_a_result_that_is_also_an_input_closes_a_cycle():
    def function(positions, q_pe, k_pe, kv_c, table, scale):
        rope = native_rope(RotaryEmbedding, is_neox=False, in_fp32=True)
        q_rot, k_rot = rope(positions, q_pe, k_pe, table)
        kv_c = torch.cat((kv_c[:, :ROPE], k_rot.squeeze(1)), dim=1)
        dummy = ops.unified_mla_kv_cache_update(kv_c, k_rot, LAYER, "auto", scale)
        return dummy, q_rot, k_rot

    _, result = apply(function, tensors_of(NATIVE))
    assert "would close a cycle" in result.refusals[0].reason


BROADCAST = {
    "one position for all tokens": (0, lambda positions: positions[:1]),
    "two key heads": (2, lambda k_pe: k_pe.expand(-1, 2, -1).contiguous()),
    "a query without heads": (1, lambda q_pe: q_pe[:1, 0]),
    "a cache row for each of more tokens": (3, lambda kv_c: torch.cat((kv_c, kv_c))),
}


@pytest.mark.parametrize("case", BROADCAST)
def test_what_only_broadcasting_makes_right_is_refused(case):
    """A kernel would index out of bounds where plain torch broadcasts."""
    place, change = BROADCAST[case]
    tensors = tensors_of(NATIVE)
    tensors[place] = change(tensors[place])
    gm, _ = lowered(pattern_of(NATIVE), tensors)
    result = FUSION.apply(gm.graph)
    assert result.matches == ()
    assert "the fused op takes positions [T]" in result.refusals[0].reason


def test_a_broken_replacement_is_an_error_and_not_a_refusal():
    def replacement(*tensors, **strings):
        raise TypeError("no such kernel")

    variant = dataclasses.replace(NATIVE, replacement=replacement)
    fusion = dataclasses.replace(FUSION, variants=(variant,))
    gm, _ = lowered(pattern_of(NATIVE), tensors_of(NATIVE))
    with pytest.raises(TypeError, match="no such kernel"):
        fusion.apply(gm.graph)


def test_a_replacement_with_other_results_is_refused():
    def replacement(positions, q_pe, k_pe, kv_c, table, scale, **strings):
        return kv_c.new_empty(0), q_pe, k_pe.double()

    variant = dataclasses.replace(NATIVE, replacement=replacement)
    fusion = dataclasses.replace(FUSION, variants=(variant,))
    gm, _ = lowered(pattern_of(NATIVE), tensors_of(NATIVE))
    result = fusion.apply(gm.graph)
    assert "float64" in result.refusals[0].reason


def test_symbolic_sizes_gain_no_guard():
    gm, _ = lowered(pattern_of(NATIVE), tensors_of(NATIVE), range(4))
    values = [value_of(node) for node in gm.graph.nodes]
    guards = fake_mode_of(values).shape_env.guards
    before = len(guards)
    assert FUSION.apply(gm.graph).matches
    assert len(guards) == before


def test_layers_of_one_shape_share_a_trace(monkeypatch):
    def function(positions, q_pe, k_pe, kv_c, table, scale):
        tensors = (q_pe, k_pe, kv_c, table, scale)
        return [y for i in range(4) for y in pattern_of(NATIVE)((positions + i) % 7, *tensors)]

    gm, _ = lowered(function, tensors_of(NATIVE))
    matching._blind_pattern.cache_clear()
    trace, traced = tracing.trace, []
    monkeypatch.setattr(tracing, "trace", lambda f, *args: traced.append(f) or trace(f, *args))
    assert len(FUSION.apply(gm.graph).matches) == 4
    exact = [NATIVE.pattern, NATIVE.replacement]
    assert traced[-2:] == exact
    names = list(VARIANTS)
    assert len(traced) == names.index(NATIVE.name) + 1 + len(exact)


def test_a_pattern_is_traced_again_when_what_it_calls_is_redefined(monkeypatch):
    """As from a notebook, where a cell defines the helper and another one the pattern."""
    variant = dataclasses.replace(NATIVE, name="helped", pattern=_helped, examples=_two)
    blinds = []
    for helper in (lambda x, y: x * y, lambda x, y: x + y):
        monkeypatch.setitem(globals(), "_helper", helper)
        blinds.append(matching.blind_pattern(("x", "y"), (), variant))
    first, second = (pattern.outputs[0].fns[0] for pattern in blinds)
    assert (first, second) == (torch.ops.aten.mul.Tensor, torch.ops.aten.add.Tensor)
    assert matching.blind_pattern(("x", "y"), (), variant) is blinds[1]


def _helper(x, y):
    return x - y


def _helped(x, y):
    return (_helper(x, y),)


def _two():
    return torch.empty(3), torch.empty(3)
