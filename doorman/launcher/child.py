"""Child: the first steps of a forked worker, from the zygote's copy to a process of its own that runs its order."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from typing import NoReturn

from doorman import prctl
from doorman.launcher import Order, wire
from doorman.launcher.leaving import ExitHooks, Leaving

__all__ = ["become"]


def become(
    entry: Callable[[Order], int | None],
    request: wire.Fork,
    descriptors: list[int],
    *,
    parent: int,
    inherited: Iterable[int],
    hooks: ExitHooks,
) -> NoReturn:
    """Turn this fork into the worker of ``request``, run ``entry`` with its order, and end the process."""
    with Leaving() as leaving:
        _separate(parent, detach=request.detach)
        wire.close_all(inherited)
        order = _take_order(request, descriptors)
        _take_place(order)
        hooks.start_afresh()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        leaving.code = entry(order)
    raise AssertionError("a process that has left")


def _separate(parent: int, *, detach: bool) -> None:
    """Lead a group, end with the zygote, and keep the orphans of this task apart from those of others."""
    if not detach and not prctl.die_with_parent(parent):
        os._exit(1)
    os.setpgid(0, 0)
    prctl.adopt_orphans()


def _take_order(request: wire.Fork, descriptors: list[int]) -> Order:
    """Read the order and put standard output and error in place."""
    carried = iter(descriptors)
    data = wire.read_all(next(carried)) if request.order is None else request.order
    for wanted, standard in ((request.stdout, 1), (request.stderr, 2)):
        if wanted:
            os.dup2(next(carried), standard)
    wire.close_all(descriptors)
    return wire.decode_order(data)


def _take_place(order: Order) -> None:
    if order.env is not None:
        os.environ.clear()
        os.environ.update(order.env)
    if order.cwd is not None:
        os.chdir(order.cwd)
