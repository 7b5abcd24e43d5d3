"""Both faces of a layer run the same methods: bit for bit the same, eagerly, whatever the batch."""

from __future__ import annotations

import pytest
import torch

from mlalab.context import ForwardContext, forward_context, make_batch
from mlalab.errors import InputError
from mlalab.layers.mla_paths import MLAPaths
from mlalab.ops.exposed import wrap_if_exposed
from tests.compile.batches import BLOCK, decode, mixed, model, prefill, run
from tests.passes.models import assert_same

BATCHES = {
    **{"all decode": (decode(3), None), "one decode": (decode(1), None)},
    **{"all prefill": (prefill(4, 3), None), "one prefilled token": (prefill(1), None)},
    **{f"split at {n}": (mixed(n, 4, 1), None) for n in (1, 2, 3)},
    # A prompt in two chunks: the second finds the first in the cache.
    "chunked prefill": (make_batch([1, 6], [4, 9], num_decodes=1, block_size=BLOCK), None),
    **{f"{n} speculative tokens": (decode(3, n), None) for n in (2, 4)},
    "speculative and prefill": (
        make_batch([2, 4, 1, 5], [3, 2, 6, 0], num_decodes=3, block_size=BLOCK),
        None,
    ),
    "a request without new tokens": (
        make_batch([1, 0, 3], [4, 2, 2], num_decodes=1, block_size=BLOCK),
        None,
    ),
    **{"padded": (mixed(2, 3), 9), "padded decode": (decode(3), 8)},
    **{"empty": (prefill(), None), "only padding": (prefill(), 3), "profile run": (None, 4)},
}
CACHES = {
    "fp8": {"kv_cache_dtype": "fp8", "dtype": torch.bfloat16},
    "bf16": {"dtype": torch.bfloat16},
    "custom op": {"rope_custom_op": True},
    "fused layer": {"fusion": "layer", "kv_cache_dtype": "fp8"},
}


def outcome(module, name):
    batch, rows = BATCHES[name]
    return run(module, list(module.layers), batch, rows)


@pytest.mark.parametrize("options", CACHES)
def test_exposed_is_opaque_eagerly(options):
    opaque, exposed = (model("tiny", exposed=x, **CACHES[options]) for x in (False, True))
    for name in BATCHES:
        assert_same(outcome(opaque, name), outcome(exposed, name))


@pytest.mark.parametrize("off", [-1, 1])
@pytest.mark.parametrize("name", ["split at 2", "chunked prefill"])
def test_a_split_that_is_off_by_one_is_noticed(name, off, monkeypatch):
    layers = {exposed: model("tiny", exposed=exposed) for exposed in (False, True)}
    right = MLAPaths.split_batch.__wrapped__

    @wrap_if_exposed("mla_split_batch")
    def wrong(layer, kv_c):
        return right(layer, kv_c) + off

    monkeypatch.setattr(MLAPaths, "split_batch", wrong)
    for module in layers.values():
        with pytest.raises(InputError, match="split the batch by what mla_split_batch returned"):
            outcome(module, name)


def test_a_profile_run_needs_no_cache():
    exposed = model("tiny", exposed=True)
    exposed.layers[0]._kv_cache = None
    with forward_context(ForwardContext(layers={x.layer_name: x for x in exposed.layers})):
        assert not exposed(torch.arange(4), torch.randn(4, 64)).any()
