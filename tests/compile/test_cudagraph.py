"""CUDA graphs: which batch is served by which, with what padding, and what is refused and why."""

from __future__ import annotations

import functools

import pytest
import torch

from mlalab.compile.cudagraph import CudaGraphs
from mlalab.context import ForwardContext, forward_context, make_batch
from mlalab.errors import ConfigError, InputError
from tests.compile.batches import BLOCK, compiled, decode, flags, mixed, model, prefill, run
from tests.compile.replaying import with_graphs
from tests.layers.test_mla_paths import BATCHES, outcome
from tests.passes.models import assert_same

FP8 = {"kv_cache_dtype": "fp8", "dtype": torch.bfloat16}
MODES = ("PIECEWISE", "FULL", "FULL_AND_PIECEWISE")
SIZES = (1, 2, 4, 8)


def build(mode, *, exposed=True, aiter=False, options=FP8, names=("tiny", "tiny"), **settings):
    module = model(*names, exposed=exposed, **options)
    settings = {"max_model_len": 64, "cudagraph_capture_sizes": SIZES} | settings
    return compiled(module, cudagraph_mode=mode, pass_config=flags(module, aiter=aiter), **settings)


def served(graphs, batch, rows=None):
    return run(graphs, list(graphs.model.layers), batch, rows)


@pytest.mark.parametrize("exposed", [False, True], ids=["opaque", "exposed"])
@pytest.mark.parametrize("mode", MODES)
def test_every_batch_gets_what_eager_mode_gives(mode, exposed):
    eager = model("tiny", "tiny", **FP8)
    graphs, recorded = with_graphs(build(mode, exposed=exposed, aiter=mode == "FULL"))
    captured = recorded.captures
    for name, (batch, rows) in BATCHES.items():
        assert_same(outcome(eager, name), served(graphs, batch, rows))
    assert recorded.captures == captured and recorded.replays > 0


@functools.cache
def one_layer(mode, max_model_len=64):
    return with_graphs(build(mode, names=("tiny",), max_model_len=max_model_len))


def replays(mode, batch, rows=None, **options):
    graphs, recorded = one_layer(mode, **options)
    before = recorded.replays
    served(graphs, batch, rows)
    return recorded.replays - before


# One layer: a piece before attention and one behind it.
@pytest.mark.parametrize(
    ("mode", "batch", "expected"),
    [
        ("FULL", decode(3), 1),
        ("FULL", prefill(3), 0),
        ("FULL", mixed(1, 2), 0),
        ("FULL", decode(2, 2), 0),
        ("PIECEWISE", decode(3), 2),
        ("PIECEWISE", prefill(2, 1), 2),
        ("PIECEWISE", mixed(1, 2), 2),
        ("FULL_AND_PIECEWISE", decode(3), 1),
        ("FULL_AND_PIECEWISE", mixed(2, 5), 2),
        ("FULL_AND_PIECEWISE", mixed(2, 7), 0),
        ("FULL_AND_PIECEWISE", decode(0), 0),
    ],
)
def test_which_batches_are_replayed(mode, batch, expected):
    assert replays(mode, batch) == expected


def test_rows_that_are_padding_already_and_long_requests_run_without_graphs():
    assert replays("FULL_AND_PIECEWISE", decode(3), rows=4) == 0
    long = make_batch([1, 1], [70, 2], num_decodes=2, block_size=BLOCK)
    assert replays("FULL_AND_PIECEWISE", long) == 0
    assert replays("FULL_AND_PIECEWISE", long, max_model_len=80) == 1


@pytest.mark.parametrize(("new", "sizes"), [(2, (2, 4, 8)), (4, (4, 8))])
def test_speculative_tokens_are_captured_by_whole_requests(new, sizes):
    settings = {"num_speculative_tokens": new - 1, "max_num_seqs": 8 // new}
    graphs, recorded = with_graphs(build("FULL", names=("tiny",), **settings))
    eager = model("tiny", **FP8)
    for requests in (8 // new, 1):
        batch = decode(requests, new)
        assert_same(run(eager, list(eager.layers), batch), served(graphs, batch))
    assert recorded.replays == 2
    assert graphs.report()[1].sizes == sizes


def test_one_replay_after_another_of_other_requests():
    """Nothing of a batch may stay in what serves the next: lengths, blocks, slots, padding."""
    eager = model("tiny", **FP8)
    graphs, _ = one_layer("FULL")
    batches = [
        make_batch([1] * len(lengths), lengths, num_decodes=len(lengths), block_size=BLOCK)
        for lengths in ([40, 3, 17, 30], [1], [5, 31, 2], [0, 0, 47, 1, 16, 15, 4, 9])
    ]
    for batch in batches:
        assert_same(run(eager, list(eager.layers), batch), served(graphs, batch))


def test_a_split_frozen_at_the_capture_would_be_noticed():
    """What the graphs leave out of a mixed batch is what changes: batches of one size differ."""
    eager = model("tiny", **FP8)
    graphs, recorded = one_layer("PIECEWISE")
    before = recorded.replays
    for batch in (mixed(1, 6), mixed(3, 2, 2), mixed(6, 1), mixed(2, 4)):
        assert_same(run(eager, list(eager.layers), batch), served(graphs, batch))
    assert recorded.replays - before == 8


def test_the_report_counts_graphs_pieces_and_captures():
    general, decodes, prefills = with_graphs(build("FULL_AND_PIECEWISE"))[0].report()
    assert (decodes.style, decodes.sizes, decodes.captures) == ("FULL", SIZES, len(SIZES))
    # Two layers: attention twice, and what is before, between and behind.
    for kind in (general, prefills):
        assert (kind.style, kind.partitions, kind.captures) == ("PIECEWISE", 5, 3 * len(SIZES))


def test_prefilled_batches_of_an_opaque_model_are_served_by_the_general_graphs():
    graphs, _ = with_graphs(build("PIECEWISE", exposed=False, names=("tiny",)))
    general, _, prefills = graphs.report()
    assert (prefills.partitions, prefills.captures) == (general.partitions, 0) == (3, 0)
    assert prefills.reason == "those of general batches serve"


@pytest.mark.parametrize("mode", MODES)
def test_on_a_cpu_nothing_is_captured_and_the_reason_is_given(mode):
    graphs = CudaGraphs(build(mode, names=("tiny",)))
    graphs.capture_all()
    eager = model("tiny", **FP8)
    assert_same(run(eager, list(eager.layers), decode(3)), served(graphs, decode(3)))
    for kind in graphs.report():
        assert (kind.style, kind.captures) == ("NONE", 0)
        assert kind.reason == "the model is on cpu, and CUDA graphs need a CUDA device"


def test_full_graphs_of_other_batches_are_refused_with_the_reason():
    general, decodes, prefills = one_layer("FULL")[0].report()
    assert decodes.style == "FULL"
    for kind in (general, prefills):
        assert kind.style == "NONE" and "PIECEWISE graphs leave it out" in kind.reason


def test_attention_that_reads_lengths_on_the_host_is_left_out():
    graphs, recorded = with_graphs(build("FULL", names=("tiny", "tiny-gqa"), options={}))
    assert "attention of layers.1 reads its lengths on the host" in graphs.report()[1].reason
    assert recorded.captures == 0


def test_without_a_mode_there_is_nothing_to_capture():
    graphs, recorded = with_graphs(build("NONE", names=("tiny",)))
    served(graphs, decode(2))
    assert recorded.captures == recorded.replays == 0
    assert [kind.reason for kind in graphs.report()] == ["", "", ""]


@pytest.mark.parametrize("mode", ["FULL", "PIECEWISE"])
def test_a_model_that_was_reset_is_not_replayed_until_it_is_captured_again(mode):
    graphs, recorded = with_graphs(build(mode, names=("tiny",)))
    with pytest.raises(ConfigError, match="captured before"):
        CudaGraphs(graphs.model, capture=recorded).capture_all()
    projection = graphs.model.layers[0].o_proj
    projection.weight = torch.nn.Parameter(torch.zeros_like(projection.weight), False)
    graphs.model.reset()
    assert not served(graphs, decode(3))["output"].any() and recorded.replays == 0
    assert {kind.style for kind in graphs.report()} == {"NONE"}
    graphs.capture_all()
    recorded.replays = 0
    assert not served(graphs, decode(3))["output"].any() and recorded.replays > 0


@pytest.mark.parametrize("mode", MODES)
def test_a_replay_refuses_what_the_ops_refuse(mode):
    graphs, _ = one_layer(mode)
    layers, batch = list(graphs.model.layers), decode(3)
    hidden, positions = torch.zeros(3, 64, dtype=torch.bfloat16), batch.positions()
    for slots, place, checked, message in (
        ([1, 2, 3, 4], 0, False, "slot mapping names 4 tokens but the batch has 3"),
        ([1, 2, 10_000], 0, True, "Slot 10000 lies outside the cache"),
        ([1, 2, 3], 1_000_000, True, "do not fit the rope table"),
    ):
        context = ForwardContext(
            layers={layer.layer_name: layer for layer in layers},
            metadata=batch,
            slot_mapping=torch.tensor(slots),
            checked=checked,
        )
        with forward_context(context), pytest.raises(InputError, match=message):
            graphs(positions + place, hidden)


def test_before_capturing_batches_run_without_graphs():
    graphs = CudaGraphs(build("FULL", names=("tiny",)), capture=None)
    eager = model("tiny", **FP8)
    assert_same(run(eager, list(eager.layers), decode(3)), served(graphs, decode(3)))
