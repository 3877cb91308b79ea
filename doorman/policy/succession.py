"""Succession: may a task come after the others that it names? Told when it is added, before anything waits."""

from __future__ import annotations

from typing import Protocol, Self

from doorman.keeper import Keeper

__all__ = ["Successor", "check_succession"]


class Successor(Protocol):
    """A task, as far as its place behind others goes."""

    @property
    def after(self) -> tuple[Self, ...]:
        """The tasks that have to be done before it."""

    @property
    def owner(self) -> Keeper | None:
        """The manager that it was added to."""


def check_succession(task: Successor, owner: Keeper) -> None:
    """Raise ValueError if the task comes after itself, or after one that is not the same manager's."""
    for first in task.after:
        theirs = first.owner
        if theirs is None:
            if _reaches(first, task):
                raise ValueError(f"{task!r} and {first!r} come after each other: neither could ever start")
            raise ValueError(f"{task!r} comes after {first!r}, which no manager has: add that one first")
        if theirs.realm is not owner.realm:
            raise ValueError(
                f"{task!r} comes after {first!r}, which is another manager's: add both to one, "
                "or wait for the other's result first"
            )


def _reaches(start: Successor, goal: Successor) -> bool:
    seen, ahead = {start}, [start]
    while ahead:
        task = ahead.pop()
        if task is goal:
            return True
        new = set(task.after) - seen
        seen |= new
        ahead += new
    return False
