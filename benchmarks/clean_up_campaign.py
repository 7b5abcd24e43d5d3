"""Many random programs through the clean-ups, each compared with eager mode.

Run as `python benchmarks/clean_up_campaign.py --count 20000 --jobs 16`. Seed n is always the same
program (`tests/passes/toy_programs.py`), so a line that is printed can be repeated with
`--start n --count 1`. Exits with 1 when any program differs because of a pass. Where the
graph behind the passes computes what the one before them does, and the compiled program still
differs from eager mode, torch went wrong later on, writing in place (two arguments that are one
memory, lists of arguments): such programs are counted apart.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import multiprocessing
import random
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mlalab.passes.noop_elimination import NoOpEliminationPass
from mlalab.passes.scatter_split import ScatterSplitReplacementPass
from mlalab.passes.split_coalescing import SplitCoalescingPass
from tests.passes.toy_harness import FIX, compile_and_run, differences, wrong_graph
from tests.passes.toy_programs import write

PASSES = {
    "fix": FIX,
    "all": (NoOpEliminationPass, SplitCoalescingPass, ScatterSplitReplacementPass, *FIX),
}


TORCH = "the graph is right, torch runs it otherwise"


def problems_of(seed: int) -> tuple[int, list[str]]:
    """Return the seed, and what is wrong with its program under each set of passes."""
    torch.set_num_threads(1)
    found = []
    for name, passes in PASSES.items():
        program = write(random.Random(seed).randrange)
        try:
            run = compile_and_run(program.function, program.make_inputs(), passes)
            wrong = wrong_graph(run)
            if not wrong and differences(run, program, program.make_inputs()):
                wrong = [TORCH]
        except Exception as error:
            wrong = [TORCH if _fails_alone(seed) else f"{type(error).__name__}: {str(error)[:200]}"]
        found += [f"{name}: {problem}" for problem in wrong]
    return seed, found


def _fails_alone(seed: int) -> bool:
    program = write(random.Random(seed).randrange)
    try:
        compile_and_run(program.function, program.make_inputs(), ())
    except Exception:
        return True
    return False


def main() -> int:
    """Print the failing seeds, then how many there were."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so long")
    options = parser.parse_args()

    seeds = range(options.start, options.start + options.count)
    end, counts = time.monotonic() + options.seconds, collections.Counter[str]()
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        results = pool.imap_unordered(problems_of, seeds, chunksize=20)
        for seed, found in itertools.takewhile(lambda _: time.monotonic() < end, results):
            by_torch = all(problem.endswith(TORCH) for problem in found)
            counts["fine" if not found else "torch" if by_torch else "failed"] += 1
            if found:
                print(seed, *found, sep="  ", flush=True)
        pool.terminate()
        pool.join()
    print(
        f"{counts.total()} programs from seed {options.start}: {counts['failed']} failed, "
        f"{counts['torch']} where torch itself went wrong"
    )
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
