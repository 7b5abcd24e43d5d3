"""A result is what the library itself would do: its ranges, gates, graphs and configuration."""

from __future__ import annotations

import pytest
import torch

from mlalab.bench.records import load
from mlalab.compile.config import PassConfig
from mlalab.compile.dispatch import CompiledModel
from mlalab.compile.entries import Entry
from mlalab.compile.settings import CompileConfig
from mlalab.context import ForwardContext, forward_context
from mlalab.errors import ConfigError
from mlalab.sweeps.engine import crossover_of, points_of, q_prepped_bytes, run, served_ranges
from mlalab.sweeps.spec import FUSED, SweepSpec
from tests.compile.batches import decode, mixed, model, prefill
from tests.sweeps.played import FASTER, SLOWER, SLOWER_LATE, record


def settings_of(result):
    """Take the printed configuration at its word."""
    config = eval(result.config, {"CompileConfig": CompileConfig, "PassConfig": PassConfig})
    assert isinstance(config, CompileConfig)
    return config


def rows(result):
    return [(r.batch, r.start, r.end, r.graph, r.one_launch) for r in result.ranges]


def test_ranges_graphs_and_gates_of_a_server():
    result = run(SweepSpec(max_num_seqs=64), FASTER)
    assert (result.decode_bound, result.threshold) == (64, 64)
    assert rows(result) == [
        ("uniform decode", 1, 64, "decode 1..64", True),
        ("uniform decode", 65, 8192, "general 65..8192", False),
        ("any other", 1, 64, "general 1..64", False),
        ("any other", 65, 8192, "general 65..8192", False),
    ]
    assert [r.passes[FUSED] for r in result.ranges] == [
        *("applied", "out of range", "not decode only", "not decode only")
    ]
    assert {r.passes["MLARoPEKVCacheCatFusionPass"] for r in result.ranges} == {"applied"}
    assert "RopeKVCacheFusionPass" not in result.ranges[0].passes


@pytest.mark.parametrize(
    ("spec", "bound", "ends"),
    [
        (SweepSpec(max_num_seqs=1, max_num_batched_tokens=1), 1, [1]),
        (SweepSpec(max_num_seqs=8, num_speculative_tokens=2), 24, [24, 8192]),
        # One range, all of it within the bound.
        (SweepSpec(max_num_seqs=99, max_num_batched_tokens=50), 99, [50]),
    ],
)
def test_bounds_at_the_edges(spec, bound, ends):
    result = run(spec, FASTER)
    assert result.decode_bound == result.threshold == bound
    decode_rows = [r for r in result.ranges if r.batch == "uniform decode"]
    assert [r.end for r in decode_rows] == ends
    assert [r.one_launch for r in decode_rows] == [end <= bound for end in ends]


def test_the_rows_are_what_a_model_does_with_such_batches(monkeypatch):
    """The graph that a row names is the one that a real batch of its kind asks for."""
    monkeypatch.setattr(CompiledModel, "_compile", lambda *_: Entry(id, ()))
    result = run(SweepSpec(max_num_seqs=8, max_num_batched_tokens=64), FASTER)
    named = {(r.batch, r.end): r.graph for r in result.ranges}
    cases = (
        *((decode(8), "uniform decode", 8), (decode(9), "uniform decode", 64)),
        *((prefill(5), "any other", 8), (mixed(2, 20), "any other", 64)),
    )
    for batch, kind, end in cases:
        compiled = CompiledModel(model("tiny"), settings_of(result))
        hidden = torch.empty(batch.num_tokens, 64)
        with forward_context(ForwardContext(layers={}, metadata=batch)):
            compiled.graph_for(compiled.kind_of(batch), batch.positions(), hidden)
        assert [str(key) for key in compiled.entries] == [named[kind, end]]


@pytest.mark.parametrize("source", [FASTER, SLOWER_LATE, SLOWER])
def test_the_configuration_makes_the_ranges_that_it_is_printed_with(source):
    result = run(SweepSpec(max_num_seqs=32, num_speculative_tokens=1), source)
    config = settings_of(result)
    assert served_ranges(config) == result.ranges
    assert (config.max_num_seqs, config.num_speculative_tokens) == (32, 1)
    assert config.max_num_batched_tokens == 8192


def test_the_bound_is_left_to_the_library_as_long_as_one_launch_pays():
    result = run(SweepSpec(max_num_seqs=32), FASTER)
    assert "aiter_qk_rope_kvcache_fusion_max_token_num" not in result.config
    assert settings_of(result).pass_config.fuse_aiter_qk_rope_kvcache_mla is True


def test_where_one_launch_stops_paying_the_fusion_stops_too():
    result = run(SweepSpec(max_num_seqs=32), SLOWER_LATE)
    # 3 against 4 at 9 tokens, 6 against 4 at 17: a third of the way, so from 12 tokens on.
    assert (result.crossover, result.threshold, result.decode_bound) == (12, 11, 32)
    assert [r.end for r in result.ranges if r.one_launch] == [11]
    assert "aiter_qk_rope_kvcache_fusion_max_token_num=11," in result.config
    # A smaller server never gets there.
    assert run(SweepSpec(max_num_seqs=11), SLOWER_LATE).threshold == 11
    assert "max_token_num" not in run(SweepSpec(max_num_seqs=11), SLOWER_LATE).config


def test_where_it_never_pays_the_fusion_is_off():
    result = run(SweepSpec(max_num_seqs=32), SLOWER)
    assert (result.crossover, result.threshold, result.bytes_right) == (1, 0, 0)
    assert not any(r.one_launch for r in result.ranges)
    assert settings_of(result).pass_config.fuse_aiter_qk_rope_kvcache_mla is False


def test_crossover_is_looked_for_among_measured_sizes_only():
    assert crossover_of(()) is None
    assert crossover_of(points_of(FASTER, 16, "fp8/fp8")) is None
    assert crossover_of(points_of(record((8, 3.0, 3.0)), 16, "fp8/fp8")) == 8
    # Exactly as fast as two at 9 tokens.
    assert crossover_of(points_of(record((1, 4, 2), (9, 4, 4)), 16, "fp8/fp8")) == 9


def test_without_times_for_the_model_everything_else_is_there():
    result = run(SweepSpec(heads=7), load("h200"))
    assert result.points == ()
    assert result.crossover is None
    assert result.threshold == 256


@pytest.mark.parametrize(("format", "dtype"), [("fp8/fp8", torch.uint8), ("bf16/fp8", torch.half)])
@pytest.mark.parametrize("tokens", [0, 1, 129])
def test_memory_is_that_of_the_tensor(format, dtype, tokens):
    spec = SweepSpec(heads=3, format=format)
    q_prepped_TNC = torch.empty(tokens, 3, 512 + 64, dtype=dtype, device="meta")
    assert q_prepped_bytes(spec, tokens) == q_prepped_TNC.numel() * q_prepped_TNC.element_size()


def test_memory_of_a_gate_that_is_wrong():
    result = run(SweepSpec(max_num_seqs=64, heads=128), FASTER)
    assert result.bytes_wrong == 128 * result.bytes_right == 8192 * 128 * 576
    capped = run(SweepSpec(max_num_seqs=64, max_num_batched_tokens=10), FASTER)
    assert capped.bytes_right == capped.bytes_wrong


@pytest.mark.parametrize("name", ["max_num_seqs", "max_num_batched_tokens"])
@pytest.mark.parametrize("value", [0, None, "8", 2.5])
@pytest.mark.parametrize("source", [FASTER, SLOWER_LATE])
def test_limits_are_refused_by_the_library_itself(name, value, source):
    with pytest.raises(ConfigError, match=f"{name} must be an integer of at least 1"):
        run(SweepSpec(**{name: value}), source)
