"""Client side of the control protocol: find managers by name or location, query them, stop tasks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Self

import msgspec

from doorman.control import registry
from doorman.control.server import CHALLENGE, END, LOOK, STOP, ManagerView, sign_request
from doorman.errors import ControlError, ControlRefused, ManagerNotFound, ManagerSilent
from remit import Client, Location
from remit.config import resolve
from remit.errors import NoListener, PeerLost, RequestFailed, RequestTimeout
from remit.options import suggest

TIMEOUT_S: Final = 5.0  # of one request: a manager replies only while it is ticked
MAX_THREADS: Final = 8


class Remote:
    """Connection to a manager, whose registry entry has the ``key``. Raises LocationError, PluginError."""

    def __init__(self, location: Location, *, key: bytes = b"", name: str = "", timeout: float = TIMEOUT_S) -> None:
        self.name = name or str(location)
        self.id = f"{location.url} {key.hex()}"
        """Differs between managers that had the same name or location one after the other."""
        self._key, self._timeout = key, timeout
        # Without linger: each request waits for its reply, so nothing is left to flush.
        self._client = Client(location, linger=0.0)

    def look(self) -> ManagerView:
        """Return the manager's description of itself and its tasks. Raises ManagerSilent, ControlRefused."""
        return msgspec.convert(self._request(LOOK), ManagerView)

    def stop(self, task_id: str, attempt: str | None) -> str:
        """Stop a task if ``attempt`` is its current attempt; None: any attempt.

        Return ``stopping`` (its process is being stopped), ``cancelled`` (it was waiting), ``finished`` (it had ended)
        or ``replaced`` (another attempt runs, and was not stopped). Raises ManagerSilent, ControlRefused.
        """
        return str(self._request(STOP, task_id, attempt))

    def end(self) -> None:
        """Stop all tasks of the manager and end it. Raises ManagerSilent, ControlRefused."""
        self._request(END)

    def close(self) -> None:
        """Close the connection. May be called twice."""
        self._client.close(0.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request(self, verb: str, *arguments: Any) -> Any:
        try:
            challenge = self._client.request(CHALLENGE, timeout=self._timeout)
            signature = sign_request(self._key, challenge, verb, arguments)
            return self._client.request(verb, challenge, signature, *arguments, timeout=self._timeout)
        except NoListener as error:
            raise ManagerNotFound(
                f"the server {self.name} is not a manager with a control: open a doorman.control.Control for it"
            ) from error
        except (RequestTimeout, PeerLost) as error:
            why = self._client.stats()["why"] or "it has ended, or is not ticked"
            raise ManagerSilent(f"the manager {self.name} did not answer within {self._timeout} s: {why}") from error
        except RequestFailed as error:
            if error.type_name.endswith(".ControlRefused"):
                raise ControlRefused(error.message) from error
            raise


def find(name: str | None = None, location: str | None = None, *, timeout: float = TIMEOUT_S) -> list[Remote]:
    """Connect to the managers of this user, or to one by name or location. Raises ManagerNotFound, LocationError."""
    entries = registry.entries()
    if location is not None:
        where = resolve(location)
        entries = [entry for entry in entries if entry.location == where][:1]
        if not entries:  # The manager may run on another host, or belong to another user.
            return [Remote(where, timeout=timeout)]
    elif name is not None:
        names = [entry.name for entry in entries]
        if name not in names:
            raise ManagerNotFound(f"no manager named {name!r} runs here{suggest(name, names)}")
        entries = [entry for entry in entries if entry.name == name]
    return [Remote(entry.location, key=entry.key, name=entry.name, timeout=timeout) for entry in entries]


def look_at_all(remotes: list[Remote]) -> tuple[list[ManagerView], list[ControlError]]:
    """Query managers; return the views that arrive, and the errors of the other managers."""
    views: list[ManagerView] = []
    errors: list[ControlError] = []
    # In parallel, because each manager that does not answer costs the whole timeout.
    with ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="doorman-ask") as threads:
        for future in [threads.submit(remote.look) for remote in remotes]:
            try:
                views.append(future.result())
            except (ManagerSilent, ControlRefused) as error:
                errors.append(error)
    return views, errors
