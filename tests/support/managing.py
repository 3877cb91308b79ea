"""Managing: managers at work, and strangers that speak to them, for the tests of identity."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from chores import sign_in, stay
from impostors import Delayed, zygote
from internals import attempt_of
from waiting import DEADLINE

from doorman import ProcessManager, State, SynchronousManager, Task
from doorman.identity import Credential
from remit import Client

__all__ = ["Behind", "behind", "end", "managed", "overheard", "run", "say", "signed", "tick_until"]


class Behind(NamedTuple):
    """A task behind a wrapper."""

    name: str
    task: Task
    said: tuple[int, int]
    """Number and inode, as the task says."""
    wrapper: int
    """The number of what was launched."""


@contextmanager
def managed(place: str, kind: Callable[[str], Any], **settings: Any) -> Iterator[tuple[ProcessManager, Delayed]]:
    """A manager whose workers are of one of the kinds of `impostors`, and its launcher."""
    launcher = Delayed(zygote(kind))
    with ProcessManager(place, launcher=launcher, grace=1.0, **settings) as manager:
        yield manager, launcher


def tick_until(manager: ProcessManager, fact: Callable[[], object]) -> None:
    """Tick the manager until ``fact()`` holds."""
    deadline = time.monotonic() + DEADLINE
    while not fact():
        assert time.monotonic() < deadline, f"not within {DEADLINE} s: {manager.running} {manager.refused}"
        manager.tick()
        if not fact():
            manager.wait(0.02)


def run(manager: ProcessManager | SynchronousManager, *tasks: Task) -> Task:
    """Add the tasks and run them to their end."""
    for task in tasks:
        manager.add_task(task)
    manager.run(2 * DEADLINE)
    assert not manager.busy, f"not within {2 * DEADLINE} s: {tasks}"
    return tasks[0]


def sign_in_and_stay(path: Path) -> NoReturn:
    """Be a task: write down who this is, all at once, and run until it is stopped."""
    sign_in(path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)
    stay()


def behind(manager: ProcessManager, wrappers: Mapping[str, tuple[str, ...]], folder: Path) -> list[Behind]:
    """Start a task behind each wrapper and wait until all have said who they are."""
    tasks = {
        name: manager.add_task(Task(sign_in_and_stay, folder / name, wrapper=wrapper))
        for name, wrapper in wrappers.items()
    }
    tick_until(manager, lambda: all((folder / name).exists() for name in wrappers))
    found = []
    for name, task in tasks.items():
        pid, inode, _ = map(int, (folder / name).read_text().split())
        launched = attempt_of(manager, task).launched
        assert launched is not None
        found.append(Behind(name, task, (pid, inode), launched.pid))
    return found


def end(manager: ProcessManager, *tasks: Task) -> None:
    """Cancel the tasks and see that the processes themselves have ended, not only their wrappers."""
    with ExitStack() as stack:
        processes = [stack.enter_context(task.identity.open()) for task in tasks if task.identity is not None]
        assert len(processes) == len(tasks)
        for task in tasks:
            assert manager.cancel(task)
        manager.run(DEADLINE)
        assert all(process.wait(DEADLINE) for process in processes)
    assert [task.state for task in tasks] == [State.CANCELLED] * len(tasks)


def overheard(manager: ProcessManager) -> list[dict[str, Any]]:
    """Return a list into which every hello goes that the manager hears."""
    words: list[dict[str, Any]] = []
    manager.server.add_listener("doorman.hello", words.append)
    return words


def say(manager: ProcessManager, *words: Any, name: str = "doorman.hello") -> None:
    """Say something to a manager from this very process, which is none of its children, until it is heard."""
    with Client(manager.server.location) as stranger:
        for word in words:
            stranger.emit(name, *(word if isinstance(word, tuple) else (word,)))
        tick_until(manager, lambda: stranger.flush(0.01))


def signed(words: dict[str, Any], secret: bytes, **changes: Any) -> dict[str, Any]:
    """Return a hello with other claims, correctly signed."""
    claims = words | changes
    return claims | {"proof": Credential(claims["attempt"], secret, claims["task"]).proof(claims)}
