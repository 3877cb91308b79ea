"""Orders: what the process of an attempt is told before it can say anything: written by the manager alone."""

from __future__ import annotations

import pickle

import msgspec

from doorman.attempts.attempt import Attempt
from doorman.launcher import Order
from doorman.output.logs import Outputs
from doorman.worker import Work
from remit import Location

__all__ = ["Orders"]


class Orders:
    """Writes the orders of one manager. ``initializer`` is pickled, or empty."""

    def __init__(self, location: Location, initializer: bytes) -> None:
        self._location = pickle.dumps(location)
        self._initializer = initializer

    def written(self, attempt: Attempt, outputs: Outputs, *, record: str | None) -> Order:
        """Return what a launcher needs to know."""
        task = attempt.task
        work = Work(
            self._location,
            task.id,
            task.name.encode(errors="backslashreplace").decode(),  # A file's name need not be text.
            attempt.number,
            attempt.call,
            task.wrapper,
            self._initializer,
            task.limits,
        )
        return Order(
            attempt.id,
            attempt.credential.secret,
            payload=msgspec.msgpack.encode(work),
            command=task.argv,
            env=task.env,
            cwd=task.cwd,
            stdout=outputs.stdout,
            stderr=outputs.stderr,
            detach=task.detach,
            record=record,
        )
