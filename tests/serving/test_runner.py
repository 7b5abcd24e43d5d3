"""What a step becomes on the device: the same as the forward context's own, slower, helpers say."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from mlalab.context import ForwardContext, forward_context, make_batch
from mlalab.serving.runner import ModelRunner
from mlalab.serving.steps import Step
from mlalab_kernels.mla_decode_attention.lengths import DeviceLengths
from tests.serving.decoders import BLOCK, LONGEST, decoder, scheduler


def steps_of(queue):
    """Yield steps until nothing is left; the n-th token of a request is 100 n + its id."""
    while queue.busy:
        step = queue.schedule()
        yield step
        sampled = [step.requests[at] for at in step.sampled]
        queue.complete(step, [100 * (1 + len(r.outputs)) + r.id for r in sampled])


def runner():
    return ModelRunner(decoder(), max_model_len=LONGEST, block_size=BLOCK)


def test_inputs_are_those_of_the_batch_s_own_helpers():
    queue, ready, kinds = scheduler(), runner(), set()
    for prompt, output in ((3, 4), (1, 1), (13, 3), (8, 2), (2, 5)):
        queue.submit([*range(prompt)], output)
    for step in steps_of(queue):
        kinds.add(step.kind)
        inputs = ready.prepare(step)
        metadata = inputs.metadata
        assert inputs.positions.tolist() == metadata.positions().tolist()
        assert inputs.slots.tolist() == metadata.slot_mapping(BLOCK).tolist()
        assert inputs.positions.dtype == inputs.slots.dtype == torch.int64
        assert metadata.num_tokens == step.num_tokens == inputs.token_ids.numel()
        assert metadata.num_decodes == step.num_decodes
        assert (metadata.uniform_query_len is not None) == (step.kind == "decode")
        lengths, of = metadata.decode_lengths, DeviceLengths.of
        decodes, cpu = slice(step.num_decodes), torch.device("cpu")
        wanted = of(metadata.query_lens[decodes], metadata.seq_lens[decodes], cpu)
        for found, expected in zip(lengths[:2], wanted[:2], strict=True):
            assert found.dtype == torch.int32 and found.tolist() == expected.tolist()
        on_device = (inputs.token_ids, inputs.positions, inputs.slots, *lengths[:2])
        places = [x.storage_offset() * x.element_size() % 16 for x in on_device]
        assert places == [0] * len(places)
        table = metadata.block_table
        assert (table.dtype, table.size(1)) == (torch.int32, LONGEST // BLOCK)
        for row, request in zip(table.tolist(), step.requests, strict=True):
            assert row[: request.blocks.size] == request.blocks.tolist()
    assert kinds == {"decode", "mixed", "prefill"}


def test_tokens_are_the_prompt_s_and_then_what_was_generated():
    queue, ready = scheduler(max_num_batched_tokens=4), runner()
    queue.submit([11, 12, 13, 14, 15], 3)
    told = [ready.prepare(step).token_ids.tolist() for step in steps_of(queue)]
    assert told == [[11, 12, 13, 14], [15], [100], [200]]


def test_rows_are_sampled_where_a_prompt_ends_or_a_request_decodes():
    queue, ready = scheduler(), runner()
    queue.submit([1] * 3, 3), queue.submit([1] * 12, 2)
    told = [ready.prepare(step).sampled for step in steps_of(queue)]
    assert [None if rows is None else rows.tolist() for rows in told] == [[2], [0, 7], None]


def test_the_block_table_is_copied_only_when_the_requests_change():
    queue, ready = scheduler(), runner()
    queue.submit([1, 2], 4), queue.submit([1, 2], 3)
    tables = [ready.prepare(step).metadata.block_table for step in steps_of(queue)]
    same = [a is b for a, b in pairwise(tables)]
    assert same == [True, True, False]


def test_a_new_queue_is_not_taken_for_the_old_one():
    """Ids start at 0 again, blocks need not."""
    ready = runner()
    for first_len in (2, 30):
        queue = scheduler()
        queue.submit([1] * first_len, 1)
        request = queue.submit([5], 2)
        for _ in steps_of(queue):
            if request.decodes:
                break
        step = queue.schedule()
        table = ready.prepare(step).metadata.block_table
        assert table[0, 0] == request.blocks[0]


def test_a_step_of_nothing():
    inputs = runner().prepare(Step((), (), (), 0))
    assert inputs.token_ids.numel() == inputs.positions.numel() == inputs.slots.numel() == 0
    assert inputs.metadata.block_table.shape == (0, LONGEST // BLOCK)
    assert runner()(Step((), (), (), 0)) == []


@pytest.mark.parametrize("prompt_len", [1, 4, 5])
def test_tokens_are_those_of_the_plain_decoder(prompt_len):
    """The last row of a whole prompt, run outside any scheduler, names the first token."""
    queue, ready = scheduler(), runner()
    prompt = [*range(9, 9 + prompt_len)]
    queue.submit(prompt, 1)
    model = decoder()
    metadata = make_batch([prompt_len], [0], num_decodes=0, block_size=BLOCK)
    context = ForwardContext(
        layers=model.attention_layers,
        metadata=metadata,
        slot_mapping=metadata.slot_mapping(BLOCK),
    )
    with torch.no_grad(), forward_context(context):
        hidden = model.stack(metadata.positions(), model.embed_tokens(torch.tensor(prompt)))
        expected = model.logits(hidden[-1:]).argmax(-1).tolist()
    assert ready(queue.schedule()) == expected
