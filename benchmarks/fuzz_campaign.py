"""Many random models through every pass, on many cores: statistics, and every seed that fails.

Run as `python benchmarks/fuzz_campaign.py --start 0 --count 20000 --jobs 16 --seconds 500`. A seed
that fails is looked at with `--start SEED --count 1 --show`.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
PROGRESS = 20.0
"""Seconds between two lines of progress."""


def prepare() -> None:
    """Let a process use one core and say nothing."""
    import torch

    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)


def run(seed: int) -> tuple[int, Any]:
    """Run one seed; what the generator itself raises is a problem too."""
    from tests.passes.fuzz_harness import Outcome, run_seed

    try:
        return seed, run_seed(seed)
    except Exception as error:
        return seed, Outcome(problems=[f"generator: {type(error).__name__}: {error}"])


class Tally:
    """What all outcomes come to."""

    def __init__(self) -> None:
        self.graphs, self.seconds = 0, 0.0
        self.matches: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.example: dict[str, int] = {}
        self.failed: list[int] = []

    def add(self, seed: int, outcome: Any, show: bool) -> None:
        """Count one outcome; print it if it failed."""
        self.graphs += 1
        self.seconds += outcome.seconds
        self.matches += outcome.matches
        self.refusals += outcome.refusals
        for name in (*outcome.matches, *outcome.refusals):
            self.example.setdefault(name, seed)
        if outcome.problems:
            self.failed.append(seed)
            print(f"seed {seed}: {' '.join(outcome.problems[0].split())[:300]}", flush=True)
        if show:
            print(outcome.text, *outcome.problems, sep="\n")

    def table(self, rare: int) -> str:
        """Return matches and refusals, each with a seed that has it."""
        lines = [f"{self.graphs} models, {self.seconds / max(self.graphs, 1):.3f} s each"]
        for title, counts in (("matches", self.matches), ("refusals", self.refusals)):
            lines.append(f"\n{title:>8}  {'seed':>8}")
            lines += [
                f"{count:>8}  {self.example[name]:>8}  {name}"
                for name, count in counts.most_common()
                if count >= rare
            ]
        lines.append(f"\n{len(self.failed)} failed: {' '.join(map(str, self.failed))}")
        return "\n".join(lines)


def campaign(seeds: Sequence[int], jobs: int, seconds: float, show: bool) -> Tally:
    """Run the seeds in `jobs` processes until they are done or the time is up."""
    tally, start, told = Tally(), time.monotonic(), time.monotonic()
    if jobs == 1:
        prepare()
        results: Any = map(run, seeds)
        return _gather(results, tally, start, told, seconds, show)
    # A forked process would inherit torch's threads, not their work.
    with multiprocessing.get_context("spawn").Pool(jobs, prepare) as pool:
        results = pool.imap_unordered(run, seeds, chunksize=4)
        return _gather(results, tally, start, told, seconds, show)


def _gather(
    results: Any, tally: Tally, start: float, told: float, seconds: float, show: bool
) -> Tally:
    for seed, outcome in results:
        tally.add(seed, outcome, show)
        now = time.monotonic()
        if now - told > PROGRESS:
            told = now
            print(f"{now - start:.0f} s: {tally.graphs} models", flush=True)
        if now - start > seconds:
            break
    return tally


def main() -> int:
    """Print the statistics; return 1 when a seed failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start", type=int, default=0, help="first seed")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=600.0, help="stop after so long")
    parser.add_argument("--rare", type=int, default=1, help="leave out what is rarer")
    parser.add_argument("--show", action="store_true", help="print each model")
    options = parser.parse_args()
    seeds = range(options.start, options.start + options.count)
    tally = campaign(seeds, options.jobs, options.seconds, options.show)
    print(tally.table(options.rare))
    return 1 if tally.failed else 0


if __name__ == "__main__":
    sys.exit(main())
