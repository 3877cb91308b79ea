"""Cgroups: the control groups that managers made, looked at from outside; and whether there can be any here."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import pytest

from doorman.launcher import cgroup

__all__ = ["folder", "groups_of", "members", "needs_cgroups", "removed"]


def needs_cgroups() -> None:
    """Skip, saying why, where this process's control group may not be divided; in CI, by root, that is a failure."""
    made = cgroup.ControlGroup.create()
    if not made:
        none = cgroup.own_group() is None
        what = "no control groups of version 2 are mounted" if none else "its control group may not be divided"
        (pytest.fail if os.environ.get("CI") and os.geteuid() == 0 and not none else pytest.skip)(what)
    made.remove()
    made.close()


def folder() -> Path:
    """Return the folder of the group that this process is in."""
    own = cgroup.own_group()
    assert own is not None
    return own


def groups_of(pid: int) -> list[Path]:
    """Return the groups that a process made below ours, and that are there still."""
    return sorted(folder().glob(f"doorman-{pid}-*"))


def members(group: Path) -> set[int]:
    """Return the numbers of the processes in a group; none if it was removed."""
    try:
        return {int(pid) for pid in (group / "cgroup.procs").read_text().split()}
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise
        return set()


def removed(group: Path) -> bool:
    """Remove a group once nothing in it lives; tell whether it is gone."""
    with contextlib.suppress(OSError):
        group.rmdir()
    return not group.exists()
