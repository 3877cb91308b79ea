"""The launcher contract: how an admitted attempt of a task becomes a process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from doorman.launcher.main_module import Script
    from doorman.process import Process

__all__ = ["DescendantsLeft", "Event", "Exited", "LaunchFailed", "Launched", "Launcher", "Order", "Reach"]


@dataclass(frozen=True, slots=True)
class Order:
    """A request to launch the process of one attempt. A launcher does not read the payload."""

    attempt: str
    """Id of the attempt; unique among the attempts whose end the launcher has not reported yet."""
    secret: bytes = field(repr=False)
    """The one-time secret of the attempt. It travels by descriptor, never in argv or the environment."""
    payload: bytes = field(default=b"", repr=False)
    command: tuple[str, ...] = ()
    """Program that replaces the worker after its proof; empty if the worker runs the payload."""
    env: Mapping[str, str] | None = field(default=None, repr=False)
    """The whole environment of the process; None to inherit."""
    cwd: str | None = None
    """The working directory of the process; None to inherit."""
    stdout: int | None = None
    """Descriptor for the standard output; None to inherit. The caller may close its copy after `launch`."""
    stderr: int | None = None
    """Descriptor for the standard error; None to inherit."""
    detach: bool = False
    """True if the process may outlive its manager."""
    grace: float = 5.0
    """Seconds for which the descendants may outlive the process, unless the manager has them killed earlier."""
    script: Script | None = None
    """The user's script that the call needs. A zygote imports it once; other launchers leave it to the call."""
    open_files: int | None = None
    """Soft limit of open descriptors of the process; None to inherit."""
    record: str | None = None
    """Path, without suffix, of the files that a detached process leaves for the next manager: outcome and exit."""


class Reach(Enum):
    """Where the process of a task may be, relative to the launched process."""

    BELOW = auto()
    """The launched process or a descendant of it."""
    HOST = auto()
    """Anywhere on this host: a daemon starts it on request, as with ``docker exec``."""
    ANYWHERE = auto()
    """Also on another host, as with ``ssh``: only the secret proves its identity."""


class Launched(NamedTuple):
    """A process exists. It may be a wrapper; the worker's own process is known from its hello."""

    attempt: str
    process: Process
    """The receiver owns the handle and closes it, best after `Exited`."""
    reach: Reach = Reach.BELOW


class Exited(NamedTuple):
    """A launched process has exited. The last event of its attempt."""

    attempt: str
    exit_code: int | None
    """None if a signal ended the process, or if the exit status is unknown."""
    signal: int | None
    """The signal that ended the process; None if no signal did, or if the exit status is unknown."""
    max_rss: int | None = None
    """Peak memory in bytes, including pages that the process shared with its zygote."""
    cpu: float | None = None
    """Seconds of processor time, including those of reaped children."""


class LaunchFailed(NamedTuple):
    """No process could be started. The last event of its attempt."""

    attempt: str
    why: str
    back_pressure: bool = False
    """True if the system was out of processes, memory or descriptors: a later attempt may succeed."""


class DescendantsLeft(NamedTuple):
    """A launched process has exited before its descendants. `Exited` follows after theirs, or after `Launcher.kill`."""

    attempt: str


Event: TypeAlias = Launched | DescendantsLeft | Exited | LaunchFailed


class Launcher(Protocol):
    """Starts processes. Owned by one thread in one process; no method but `close` waits."""

    def launch(self, order: Order) -> None:
        """Request a process; `poll` reports its fate. Raises LaunchRefused if none can be requested now."""

    def kill(self, attempt: str) -> None:
        """Kill the process of an attempt and all its descendants, also those left by an exited one."""

    def poll(self) -> list[Event]:
        """Return the events since the last call; for one attempt `Launched` always precedes `Exited`."""

    def fileno(self) -> int:
        """Return a descriptor that is readable whenever `poll` has something to return."""

    def close(self, grace: float) -> None:
        """Stop the launched processes that are not detached, within about ``grace`` seconds. Closing twice is fine."""
