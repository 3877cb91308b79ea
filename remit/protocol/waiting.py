"""Waiting: the jobs that nobody has in hand: clients have their turns, however many jobs one of them brings."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable

from remit.protocol.job import Job

__all__ = ["Waiting"]


class Waiting:
    """For each name the clients whose jobs wait, in the order of their turns, and the jobs of each in their own."""

    def __init__(self) -> None:
        self._names: dict[str, dict[Hashable, deque[Job]]] = {}

    def __contains__(self, name: str) -> bool:
        """Whether a job of this name waits."""
        return name in self._names

    @property
    def names(self) -> tuple[str, ...]:
        """What is waited for."""
        return tuple(self._names)

    def askers(self, name: str) -> Collection[Hashable]:
        """Return the clients whose jobs of this name wait, in the order of their turns."""
        return self._names.get(name, {}).keys()

    def add(self, job: Job) -> None:
        """Let a job wait, behind all others of its client."""
        self._line(job).append(job)

    def put_back(self, job: Job) -> None:
        """Let a job wait again, before all others of its client."""
        self._line(job).appendleft(job)

    def pick(self, name: str) -> Job:
        """Take the next job of the client whose turn it is; that client comes last now."""
        clients = self._names[name]
        client = next(iter(clients))
        jobs = clients.pop(client)
        job = jobs.popleft()
        if jobs:
            clients[client] = jobs
        elif not clients:
            del self._names[name]
        return job

    def drop(self, job: Job) -> None:
        """Let a job wait no longer."""
        clients = self._names.get(job.name, {})
        jobs = clients.get(job.client)
        if jobs is None:
            return
        jobs.remove(job)
        if not jobs:
            del clients[job.client]
        if not clients:
            del self._names[job.name]

    def _line(self, job: Job) -> deque[Job]:
        return self._names.setdefault(job.name, {}).setdefault(job.client, deque())
