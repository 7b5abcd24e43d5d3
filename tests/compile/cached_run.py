"""One process of the cache test: compile, run, and say what the passes did and what came out."""

from __future__ import annotations

import json
import sys

import torch

import mlalab
from mlalab.checking import compare
from mlalab.passes.driver import PassDriver


def main(fused: bool) -> None:
    """Print one line of JSON: whether the code came from the cache, matches, and agreement."""
    options = mlalab.LayerOptions(dtype=torch.bfloat16, kv_cache_dtype="fp8")
    bench = mlalab.build("tiny", tokens=3, options=options)
    flags = mlalab.PassConfig(fuse_rope_kvcache_cat_mla=fused)
    model = mlalab.CompiledModel(bench.module, mlalab.CompileConfig(pass_config=flags))
    expected = bench.run(bench.module, bench.positions, bench.hidden_TD)
    cache = bench.layers[0].kv_cache.storage.clone()
    calls = []

    def watched(op, device):
        calls.append(op)
        return pick(op, device)

    from mlalab.ops import mla

    pick, mla.pick = mla.pick, watched
    found = bench.run(model, bench.positions, bench.hidden_TD)
    (entry,) = model.entries.values()
    facts = {
        "cached": entry.cached,
        "matched": sum(row.matched for row in model.report()),
        "fused calls": calls.count("fused_rope_unified_mla_kv_cache_update"),
        "close": compare("output", expected, found).close,
        "same cache": torch.equal(cache, bench.layers[0].kv_cache.storage),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    if "blind" in sys.argv:
        # As if a pass hashed nothing that tells one configuration from another.
        PassDriver.uuid = lambda self: "same"  # type: ignore[method-assign]
    main(fused="fused" in sys.argv)
