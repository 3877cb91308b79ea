"""``make bench``: every figure beside what a user would use instead, measured in the same run.

Each repetition is a complete pass over all rows in random order; a cell is the median, with the range. What is
compared does equal work: distinct arguments are encoded, sent, decoded and given to a Python listener, and each one is
checked; the clock stops when the last listener has returned and the last acknowledgement is in.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import random
import statistics
import sys
import time
from collections import defaultdict

from redis_server import RedisServer

from bench import emit, processes
from bench.cases import Case

REPETITIONS = 3


def main() -> int:
    """Run the cases that were asked for, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("only", nargs="*", help="parts of the names of the rows to run; default: all")
    parser.add_argument("--repeat", type=int, default=REPETITIONS, metavar="N")
    options = parser.parse_args()
    cases = [
        case
        for case in (*emit.cases(), *processes.cases())
        if not options.only or any(part in case.name or part in case.table for part in options.only)
    ]
    with contextlib.ExitStack() as stack:
        if "REMIT_REDIS_URL" not in os.environ:
            os.environ["REMIT_REDIS_URL"] = stack.enter_context(RedisServer()).url
        figures = measure(cases, options.repeat)
    print(
        f"{platform.python_implementation()} {platform.python_version()}, {os.cpu_count()} cores, "
        f"{platform.system()} {platform.release()}, {options.repeat} interleaved repetitions"
    )
    for table in dict.fromkeys(case.table for case in cases):
        show(table, [case for case in cases if case.table == table], figures)
    return 0


def measure(cases: list[Case], repeat: int) -> dict[str, list[float]]:
    """Return the rates of each case, one for each repetition that it finished."""
    figures: dict[str, list[float]] = defaultdict(list)
    for number in range(repeat):
        for case in random.sample(cases, len(cases)):
            started = time.perf_counter()
            figures[case.name].append(case.run())
            if sys.stderr.isatty():
                print(
                    f"\r{number + 1}/{repeat} {case.name:<50} {time.perf_counter() - started:5.1f} s",
                    end="",
                    file=sys.stderr,
                    flush=True,
                )
    if sys.stderr.isatty():
        print("\r" + " " * 70 + "\r", end="", file=sys.stderr)
    return figures


def show(table: str, cases: list[Case], figures: dict[str, list[float]]) -> None:
    """Print one table: rates, ranges, and each row's ratio to what it is compared with."""
    print(f"\n{table}\n{'':<44}{'per second':>12}{'range':>22}   ratio")
    for case in cases:
        rates = figures[case.name]
        spread = f"{min(rates):,.0f} - {max(rates):,.0f}"
        ratios = []
        for other in case.against:
            if figures.get(other):
                pairs = [mine / theirs for mine, theirs in zip(rates, figures[other], strict=False)]
                ratios.append(f"{statistics.median(pairs):.2f} x {other}")
        print(f"{case.name:<44}{statistics.median(rates):>12,.0f}{spread:>22}   {'; '.join(ratios)}")


if __name__ == "__main__":
    sys.exit(main())
