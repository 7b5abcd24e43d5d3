"""One process of the cache test: compile, run, and say what the passes did and what came out.

Arguments are done in order: `fused` and `plain` compile; `forget` removes mlalab's own records from
the cache; from `blind` on all passes seem the same to the cache.
"""

from __future__ import annotations

import json
import shutil
import sys
from typing import Any
from unittest import mock

import torch

import mlalab
from mlalab.checking import compare
from mlalab.compile.inductor import cache_folder
from mlalab.ops import mla
from mlalab.passes.driver import PassDriver


def compiled(*, fused: bool) -> dict[str, Any]:
    """Return whether the code came from the cache, matches, and agreement."""
    torch._dynamo.reset()
    options = mlalab.LayerOptions(dtype=torch.bfloat16, kv_cache_dtype="fp8")
    bench = mlalab.build("tiny", tokens=3, options=options)
    flags = mlalab.PassConfig(fuse_rope_kvcache_cat_mla=fused)
    model = mlalab.CompiledModel(bench.module, mlalab.CompileConfig(pass_config=flags))
    expected = bench.run(bench.module, bench.positions, bench.hidden_TD)
    cache = bench.layers[0].kv_cache.storage.clone()
    calls, pick = [], mla.pick

    def watched(op: str, device: Any) -> Any:
        calls.append(op)
        return pick(op, device)

    with mock.patch.object(mla, "pick", watched):
        found = bench.run(model, bench.positions, bench.hidden_TD)
    (entry,) = model.entries.values()
    return {
        "cached": entry.cached,
        "matched": sum(row.matched for row in model.report()),
        "fused calls": calls.count("fused_rope_unified_mla_kv_cache_update"),
        "close": compare("output", expected, found).close,
        "same cache": torch.equal(cache, bench.layers[0].kv_cache.storage),
    }


def main(actions: list[str]) -> None:
    """Print one line of JSON: the facts of every compilation."""
    results = []
    for action in actions:
        if action == "blind":
            # As if a pass hashed nothing that tells one configuration from another.
            PassDriver.uuid = lambda self: "same"  # type: ignore[method-assign]
        elif action == "forget":
            shutil.rmtree(cache_folder() / "mlalab")
        else:
            results.append(compiled(fused=action == "fused"))
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1:])
