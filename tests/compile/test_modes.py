"""Both modes record the same steps, Inductor's code computes the same, and diffs are exact."""

from __future__ import annotations

import itertools

import pytest
import torch

from mlalab.compile.capture import LabBackend
from mlalab.compile.config import config_of
from mlalab.lab import record
from mlalab.passes.fusion import CleanUp, PassResult
from mlalab.passes.pipeline import PIPELINE
from tests.passes.models import FUSED, UPDATE, assert_same, chain, outcome, stand, steps_of

MODES = {
    "static, native": ((5,), {"rope_custom_op": False, "kv_cache_dtype": "auto"}),
    "any count, native": ((5, 3), {"rope_custom_op": False, "kv_cache_dtype": "fp8"}),
    "static, custom op": ((3,), {"rope_custom_op": True, "kv_cache_dtype": "fp8"}),
}


def outcomes(bench, counts, mode, level):
    """Return the steps that one compilation recorded, and what its code computes."""
    backend = LabBackend(config_of(level), mode=mode, keep_graphs=False)
    torch._dynamo.reset()
    function = torch.compile(bench.module, backend=backend, fullgraph=True)

    def call(*inputs):
        for x in inputs if len(counts) > 1 else ():
            torch._dynamo.mark_dynamic(x, 0)
        return function(*inputs)

    torch.manual_seed(0)
    steps = [step for count in counts for step in steps_of(bench, count)]
    results = [outcome(bench, call, step) for step in steps]
    (recorder,) = backend.recorders
    return recorder.steps, results


def facts(step):
    """Return all that a step records apart from the time it took."""
    return {name: getattr(step, name) for name in step.__slots__ if name != "seconds"}


@pytest.mark.parametrize("case", MODES)
def test_both_modes_record_the_same_and_the_code_computes_the_same(case):
    counts, options = MODES[case]
    bench = stand(chain, 2, tokens=64, dtype=torch.bfloat16, **options)
    display, _ = outcomes(bench, counts, "display", "O2")
    inductor, fused = outcomes(bench, counts, "inductor", "O2")
    assert [step.name for step in display] == [step.name for step in inductor]
    for a, b in zip(display, inductor, strict=True):
        assert facts(a) == facts(b)
    targets = [node.target for node in inductor[-1].nodes]
    assert (targets.count(FUSED), targets.count(UPDATE)) == (2, 0)

    steps, unfused = outcomes(bench, counts, "inductor", "O0")
    assert [node.target for node in steps[-1].nodes].count(UPDATE) == 2
    for expected, found in zip(unfused, fused, strict=True):
        assert_same(expected, found)


def compare(before, after):
    """Return the names that came, went and changed, from the printed graphs alone."""
    old, new = ({node.name: node.text for node in step.nodes} for step in (before, after))
    assert len(old) == len(before.nodes)
    assert len(new) == len(after.nodes)
    changed = {name for name in old.keys() & new.keys() if old[name] != new[name]}
    return new.keys() - old.keys(), old.keys() - new.keys(), changed


@pytest.mark.parametrize("custom_op", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_recorded_diff_is_the_difference_of_the_graphs(custom_op, dynamic):
    bench = stand(chain, 2, dtype=torch.bfloat16, rope_custom_op=custom_op)
    steps = record(bench, dynamic=dynamic, keep_graphs=False).steps
    seen = 0
    for before, after in itertools.pairwise(steps):
        if after.retraced:
            continue
        came, went, changed = compare(before, after)
        assert len(set(after.created)) == len(after.created)
        assert (set(after.created), set(after.erased)) == (came, went)
        assert set(after.rewired) == changed
        seen += 1
    assert seen >= 2


def test_a_name_is_not_used_again_for_another_node():
    def renew(graph):
        """Put an equal node in the place of each sum."""
        for node in graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor):
            with graph.inserting_before(node):
                new = graph.call_function(node.target, node.args, node.kwargs, name=node.name)
            new.meta = dict(node.meta)
            node.replace_all_uses_with(new)
            graph.erase_node(node)
        return PassResult()

    passes = [CleanUp(name=name, note="", run=renew) for name in ("once", "twice")]
    trace = record(stand(chain), passes=[*passes, *PIPELINE])
    for name in ("once", "twice"):
        step = trace[name]
        came, went, changed = compare(trace.before(name), step)
        assert (set(step.created), set(step.erased), set(step.rewired)) == (came, went, changed)
        assert len(step.created) == len(step.erased) > 1
    assert not set(trace["twice"].created) & set(trace["once"].erased)
    assert trace.check().ok
