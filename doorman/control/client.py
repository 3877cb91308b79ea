"""Remote: a manager in another process, as those see it who ask it: found by name or location, and asked over Remit."""

from __future__ import annotations

import difflib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Self

from doorman.control import registry
from doorman.control.server import CHALLENGE, END, LOOK, STOP, proof
from doorman.control.views import ManagerView
from doorman.errors import ControlRefused, ManagerNotFound, ManagerSilent
from remit import Client, Location
from remit.config import resolve
from remit.errors import NoListener, PeerLost, RequestFailed, RequestTimeout

if TYPE_CHECKING:
    pass

__all__ = ["Remote", "find", "look_at_all"]


TIMEOUT: Final = 5.0
"""Seconds within which a manager has to answer; one answers only while it is ticked."""
AT_ONCE: Final = 8
"""Managers that are asked at the same time."""


class Remote:
    """One manager, to be asked. For use as a context manager. Raises LocationError, PluginError.

    ``key`` proves who asks where the transport does not attest it; by default it is read from the manager's entry.
    """

    def __init__(self, location: Location, *, key: bytes = b"", name: str = "", timeout: float = TIMEOUT) -> None:
        self.name = name or str(location)
        self.id = f"{location.url} {key.hex()}"
        """Differs for another manager of the same name or at the same place."""
        self._key, self._timeout = key, timeout
        self._client = Client(location, linger=0.0)

    def look(self) -> ManagerView:
        """Return what the manager tells of itself. Raises ManagerSilent, ControlRefused."""
        return ManagerView.read(self._ask(LOOK))

    def stop(self, task_id: str, attempt: str | None) -> str:
        """Have one task stopped if it still is this attempt; None: whatever it is.

        Return ``told`` (its process was told to end), ``dropped`` (it waited), ``ended`` (it had ended) or ``changed``
        (it is another attempt by now). Raises ManagerSilent, ControlRefused.
        """
        return str(self._ask(STOP, task_id, attempt))

    def end(self) -> None:
        """Have the whole manager stop what it runs, and end. Raises ManagerSilent, ControlRefused."""
        self._ask(END)

    def close(self) -> None:
        """Let go of it. May be called twice."""
        self._client.close(0.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, verb: str, *arguments: Any) -> Any:
        try:
            challenge = self._client.request(CHALLENGE, timeout=self._timeout)
            given = proof(self._key, challenge, verb, arguments)
            return self._client.request(verb, challenge, given, *arguments, timeout=self._timeout)
        except NoListener as error:
            raise ManagerNotFound(
                f"{self.name} is a server, but no manager that can be asked: give it a doorman.control.Control"
            ) from error
        except (RequestTimeout, PeerLost) as error:
            raise ManagerSilent(
                f"the manager {self.name} does not answer within {self._timeout} s: it has ended, or is not ticked"
            ) from error
        except RequestFailed as error:
            if error.type_name.endswith(".ControlRefused"):
                raise ControlRefused(error.message) from error
            raise


def find(name: str | None = None, location: str | None = None, *, timeout: float = TIMEOUT) -> list[Remote]:
    """Return the managers of that name or at that location, or all of this user's.

    Raises ManagerNotFound if the one that is named is not there, LocationError.
    """
    entries = registry.entries()
    if location is not None:
        where = resolve(location)
        known = next((entry for entry in entries if entry.location == where), None)
        return [Remote(where, key=known.key if known else b"", name=known.name if known else "", timeout=timeout)]
    if name is not None and name not in {entry.name for entry in entries}:
        raise ManagerNotFound(_missing(name, [entry.name for entry in entries]))
    wanted = [entry for entry in entries if name in (None, entry.name)]
    return [Remote(entry.location, key=entry.key, name=entry.name, timeout=timeout) for entry in wanted]


def look_at_all(remotes: list[Remote]) -> list[ManagerView | ManagerSilent | ControlRefused]:
    """Ask all of them at once; where one does not answer, its place holds the error."""

    def look(remote: Remote) -> ManagerView | ManagerSilent | ControlRefused:
        try:
            return remote.look()
        except (ManagerSilent, ControlRefused) as error:
            return error

    if not remotes:
        return []
    with ThreadPoolExecutor(min(AT_ONCE, len(remotes)), thread_name_prefix="doorman-ask") as threads:
        return list(threads.map(look, remotes))


def _missing(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    meant = f"; did you mean {close[0]!r}?" if close else ""
    return f"no manager named {name!r} runs here (running: {', '.join(known) or 'none'}){meant}"
