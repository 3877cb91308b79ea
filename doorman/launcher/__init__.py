"""Launcher: the step between an admitted task and a process; the contract that every launcher keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from doorman.process import Process

__all__ = ["Event", "Exited", "LaunchFailed", "Launched", "Launcher", "Order", "Reach"]


@dataclass(frozen=True, slots=True)
class Order:
    """What one attempt of a task needs to become a process. A launcher never looks into the payload."""

    attempt: str
    """Names this attempt; unique among those that a launcher has not yet reported as ended."""
    secret: bytes = field(repr=False)
    """The attempt's one-time secret; travels by descriptor, never by argv or environment."""
    payload: bytes = field(default=b"", repr=False)
    command: tuple[str, ...] = ()
    """The program that the worker becomes once it is proven; empty if it runs the payload."""
    env: Mapping[str, str] | None = field(default=None, repr=False)
    """The child's whole environment; None to inherit."""
    cwd: str | None = None
    """The child's working directory; None to inherit."""
    stdout: int | None = None
    """A descriptor to be the child's standard output; None to inherit. The caller may close its own after `launch`."""
    stderr: int | None = None
    """A descriptor to be the child's standard error; None to inherit."""
    detach: bool = False
    """True if the process is to outlive its manager."""
    record: str | None = None
    """Where the end of a detached process is written down for the next manager: see `doorman.journal.outcome_files`."""


class Reach(Enum):
    """Where the process of a task may be, seen from what was launched for it."""

    BELOW = auto()
    """It is what was launched, or descends from it."""
    HOST = auto()
    """Anywhere on this host: others start it when they are asked to, as with ``docker exec``."""
    ANYWHERE = auto()
    """Also on another host, as with ``ssh``: there is nothing but its word and the secret."""


class Launched(NamedTuple):
    """A process exists. For a wrapped command it is the wrapper's; the worker's own comes with its hello."""

    attempt: str
    process: Process
    """Yours to close, best after `Exited`."""
    reach: Reach = Reach.BELOW


class Exited(NamedTuple):
    """A launched process has ended. The last word on its attempt."""

    attempt: str
    exit_code: int | None
    """Its exit code; None if a signal ended it or if nobody can know any more."""
    signal: int | None
    """The signal that ended it; None if it exited or if nobody can know any more."""
    max_rss: int | None = None
    """The most memory it had at once in bytes, including what it shared with its zygote."""
    cpu: float | None = None
    """Seconds of processor time used by it and by the children that it waited for."""


class LaunchFailed(NamedTuple):
    """No process could be made. The last word on its attempt."""

    attempt: str
    why: str
    back_pressure: bool = False
    """True if the system was out of processes, memory or descriptors: worth another try later."""


Event: TypeAlias = Launched | Exited | LaunchFailed


class Launcher(Protocol):
    """Makes processes. Owned by one thread in one process; no method but `close` waits."""

    def launch(self, order: Order) -> None:
        """Ask for a process. Its fate comes from `poll`. Raises LaunchRefused if none can be asked for now."""

    def poll(self) -> list[Event]:
        """Return what has happened since the last call; for one attempt `Launched` always precedes `Exited`."""

    def fileno(self) -> int:
        """Return a descriptor that is readable whenever `poll` has something to return."""

    def close(self, grace: float) -> None:
        """End what was launched and not detached, within about ``grace`` seconds. Closing twice is fine."""
