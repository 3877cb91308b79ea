"""Child: the first steps of a forked worker, from the zygote's copy to a process of its own that runs its order.

Each line costs more here than elsewhere: what a child touches for the first time, the kernel has to copy.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal's own builds enums of the old mask: ten times the time.
import os
from typing import NamedTuple, NoReturn

from doorman import prctl
from doorman.launcher import Order, wire
from doorman.launcher.cgroup import ControlGroup
from doorman.launcher.leaving import ExitHooks, Leaving
from doorman.launcher.warmup import Entry

__all__ = ["Parent", "become"]


class Parent(NamedTuple):
    """The zygote, as its child finds it: what the child came with and must not keep."""

    pid: int
    descriptors: list[int]
    group: ControlGroup
    hooks: ExitHooks


def become(entry: Entry, order: Order, standard: list[int | None], parent: Parent) -> NoReturn:
    """Turn this fork of a zygote into a worker, run ``entry`` with its order, and end the process.

    ``standard`` is what becomes standard output and error.
    """
    with Leaving() as leaving:
        _separate(parent, detach=order.detach)
        _take_place(order, standard)
        wire.close_all(parent.descriptors)
        parent.hooks.start_afresh()
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
        leaving.code = entry(order)
    raise AssertionError("a process that has left")


def _separate(parent: Parent, *, detach: bool) -> None:
    """Lead a group, end with the zygote, and keep the orphans of this task apart from those of others."""
    if detach:
        parent.group.leave()
    elif not prctl.die_with_parent(parent.pid):
        os._exit(1)
    os.setpgid(0, 0)
    prctl.adopt_orphans()


def _take_place(order: Order, standard: list[int | None]) -> None:
    for number, descriptor in enumerate(standard, 1):
        if descriptor is not None:
            os.dup2(descriptor, number)
    if order.env is not None:
        os.environ.clear()
        os.environ.update(order.env)
    if order.cwd is not None:
        os.chdir(order.cwd)
