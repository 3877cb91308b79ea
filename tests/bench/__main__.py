"""``make bench``: every figure beside what a user would use instead, measured in the same run.

Each repetition is a complete pass over all rows in random order; a cell is the median, with the range. What is
compared does equal work: distinct arguments are encoded, sent, decoded and given to a Python listener, and each one is
checked; the clock stops when the last listener has returned and the last acknowledgement is in. ``--write`` puts the
tables into docs/performance.md.
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
from collections.abc import Collection, Iterator
from pathlib import Path

from redis_server import RedisServer

from bench import brokers, callers, costs, emit, peers, processes, queues, requests, reuse, scaling
from bench.cases import Case

REPETITIONS = 3
PAGE = Path(__file__).parents[2] / "docs/performance.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
Figures = dict[Case, list[float]]


def main() -> int:
    """Run the cases that were asked for, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("only", nargs="*", help="parts of the names of rows or tables to run; default: all")
    parser.add_argument("--repeat", type=int, default=REPETITIONS, metavar="N")
    parser.add_argument("--write", action="store_true", help=f"write whole tables into {PAGE.name}")
    options = parser.parse_args()
    everything = [
        case for part in (emit, requests, brokers, scaling, queues, processes, costs, reuse) for case in part.cases()
    ]
    everything += [*peers.emitting(emit.TABLE), *callers.asking(requests.ROUND_TRIP)]
    cases = chosen(everything, options.only)
    with contextlib.ExitStack() as stack:
        if "REMIT_REDIS_URL" not in os.environ:
            os.environ["REMIT_REDIS_URL"] = stack.enter_context(RedisServer()).url
        figures = measure(cases, options.repeat)
    told = [f"{where()}, {options.repeat} interleaved repetitions", *tables(cases, figures)]
    print("\n".join(told))
    if options.write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        there, _, after = rest.partition(END)
        whole = {case.table.title for case in everything} - {
            case.table.title for case in everything if case not in cases
        }
        PAGE.write_text("\n".join([before + BEGIN, "", renewed(there, "\n".join(told), whole), "", END + after]))
    return 0


def renewed(there: str, told: str, whole: Collection[str]) -> str:
    """Return the page's tables with those in place that were measured whole; those of a part of its rows are not."""
    first, *measured = told.split("\n\n")
    _, *blocks = there.strip().split("\n\n") if there.strip() else [""]
    found = {title(block): block for block in blocks}
    found.update((title(block), block) for block in measured if title(block) in whole)
    return "\n\n".join([first, *found.values()])


def title(block: str) -> str:
    """Return what a table's first line calls it."""
    return block.partition("|")[2].partition("|")[0].strip()


def chosen(cases: list[Case], only: list[str]) -> list[Case]:
    """Return the cases that were asked for, those that they are compared with, and so on."""
    found = [case for case in cases if not only or any(part in case.name or part in case.table.title for part in only)]
    while True:
        named = {other for case in found for other, _ in case.targets}
        more = [case for case in cases if case in found or case.name in named]
        if len(more) == len(found):
            return found
        found = more


def measure(cases: list[Case], repeat: int) -> Figures:
    """Return the figures of each case, one for each repetition."""
    figures: Figures = defaultdict(list)
    for number in range(repeat):
        for case in random.sample(cases, len(cases)):
            started = time.perf_counter()
            figures[case].append(case.run())
            if sys.stderr.isatty():
                spent = time.perf_counter() - started
                print(f"\r{number + 1}/{repeat} {case.name:<50} {spent:5.1f} s", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r" + " " * 70 + "\r", end="", file=sys.stderr)
    return figures


def tables(cases: list[Case], figures: Figures) -> Iterator[str]:
    """Yield the tables, as Markdown, line by line."""
    for table in dict.fromkeys(case.table for case in cases):
        yield ""
        yield f"| {table.title} | {table.unit} | range | measured against | target |"
        yield "|---|---:|---:|---|---|"
        for case in cases:
            if case.table is table:
                yield row(case, figures)


def row(case: Case, figures: Figures) -> str:
    """Return one line: the figure, its range, and the ratio to what it is compared with beside what it should be."""
    mine = figures[case]
    digits = 1 if case.table.less_is_better and statistics.median(mine) < 100 else 0
    compared, targets = [], []
    for name, target in case.targets:
        theirs = next(figures[other] for other in figures if other.name == name)
        ratio = statistics.median(one / other for one, other in zip(mine, theirs, strict=True))
        compared.append(f"{ratio:.2f} x {name}")
        if target is not None:
            met = ratio <= target if case.table.less_is_better else ratio >= target
            targets.append(f"{'<=' if case.table.less_is_better else '>='} {target:g} x: {'yes' if met else 'no'}")
    if case.bound is not None:
        met = statistics.median(mine) <= case.bound
        targets.append(f"<= {case.bound:g} {case.table.unit}: {'yes' if met else 'no'}")
    shown = [f"{figure:,.{digits}f}" for figure in (statistics.median(mine), min(mine), max(mine))]
    cells = (case.name.strip(), shown[0], f"{shown[1]} - {shown[2]}", "; ".join(compared), "; ".join(targets))
    return f"| {' | '.join(cells)} |"


def where() -> str:
    """Say on what the figures were measured."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{python}, {os.cpu_count()} cores, {platform.system()} {platform.release().split('-')[0]}"


if __name__ == "__main__":
    sys.exit(main())
