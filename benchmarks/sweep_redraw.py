"""How long a slider of the sweep takes to a new result and a new picture.

Run as `python benchmarks/sweep_redraw.py`. The bar is 200 ms for both together.
"""

from __future__ import annotations

import argparse
import statistics
import time

import mlalab


def main() -> None:
    """Print medians and worst cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moves", type=int, default=30)
    moves = parser.parse_args().moves
    sweep = mlalab.sweep()
    sweep.figure()
    taken: dict[str, list[float]] = {"result": [], "picture": []}
    for move in range(moves):
        start = time.perf_counter()
        sweep.set(max_num_seqs=1 + 8 * move)
        between = time.perf_counter()
        sweep.figure()
        taken["result"].append(1e3 * (between - start))
        taken["picture"].append(1e3 * (time.perf_counter() - between))
    for name, times in taken.items():
        print(f"{name}: median {statistics.median(times):.1f} ms, worst {max(times):.1f} ms")


if __name__ == "__main__":
    main()
