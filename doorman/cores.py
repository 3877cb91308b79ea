"""The processors that this process may use: its CPU affinity, within the quota of its control groups."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Final

from doorman.launcher.cgroup import own_groups

__all__ = ["available_cores", "processor_share"]

_PROC: Final = Path("/proc/self")


def available_cores(proc: Path = _PROC) -> int:
    """Return the number of processors that this process can keep busy: the default number of processes everywhere."""
    return max(1, math.ceil(processor_share(proc)))


def processor_share(proc: Path = _PROC) -> float:
    """Return the processors that this process may use, not rounded. ``proc`` -- its folder in /proc."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min([float(cores or 1), *_quotas(proc)])


def _quotas(proc: Path) -> list[float]:
    """Return the quota of each control group around this process, in processors: version 2, then version 1."""
    second = [_words(folder / "cpu.max") for folder in own_groups(proc)]
    first = [
        [*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")]
        for folder in own_groups(proc, "cpu")
    ]
    return [quota for words in (*second, *first) if (quota := _ratio(words)) is not None]


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:  # The root group has no such file.
        return []


def _ratio(words: list[str]) -> float | None:
    """Return quota through period, in microseconds; None without a quota, which is ``max`` or -1."""
    if len(words) != 2 or not all(map(str.isdecimal, words)) or not int(words[1]):
        return None
    return int(words[0]) / int(words[1]) or None
