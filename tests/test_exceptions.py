"""Every exception of the project can be pickled and copied, with equal attributes and text."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import pkgutil
import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest
from labour import emit_to_no_server
from ticking import ticked
from waiting import DEADLINE

import doorman
import remit
from doorman.errors import IdentityRefused, ProgramNotRun, Refusal, WorkerDied
from remit import Client, Event, Server
from remit._io.send_queue import WouldBlock
from remit.errors import DeadLetter, ProtocolError, RequestFailed, SessionRefused, Undelivered

EVENT = Event("e", (1, {"a": b"x"}), {"k": [1]}, {"trace": "7"})
# By the constructors that differ from that of Exception; a class below one of these is made like it.
MADE: dict[type, Any] = {
    ProgramNotRun: lambda kind: [kind("prog", "not found", 127)],
    WorkerDied: lambda kind: [kind(5, None, signal.SIGKILL, "detail"), kind(None, None, None), kind(5, None, 37)],
    IdentityRefused: lambda kind: [kind(each, "detail") for each in Refusal],
    Undelivered: lambda kind: [kind([EVENT], [EVENT, EVENT], (), why="because"), kind()],
    SessionRefused: lambda kind: [kind("key", "it has no key"), kind("key")],
    ProtocolError: lambda kind: [kind("stale", "detail"), kind("stale")],
    RequestFailed: lambda kind: [kind("builtins.ValueError", "no", "Traceback ..."), kind("a", "b")],
    WouldBlock: lambda kind: [kind("name")],
    Exception: lambda kind: [kind("text"), kind()],
}


def exceptions() -> list[type[Exception]]:
    found = set()
    for package in (remit, doorman):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                values = vars(importlib.import_module(module.name)).values()
                found.update(each for each in values if inspect.isclass(each) and issubclass(each, Exception))
    ours = {kind for kind in found if kind.__module__.partition(".")[0] in ("remit", "doorman")}
    return sorted(ours, key=lambda kind: (kind.__module__, kind.__qualname__))


def state(error: BaseException) -> Any:
    return type(error), str(error), repr(error), error.args, vars(error)


@pytest.mark.parametrize("kind", exceptions(), ids=lambda kind: kind.__qualname__)
def test_an_exception_survives_pickle_and_copy(kind: type[Exception]) -> None:
    make = next(MADE[base] for base in kind.__mro__ if base in MADE)
    for error in make(kind):
        error.add_note("a note")
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            assert state(pickle.loads(pickle.dumps(error, protocol))) == state(error)
        for copied in (copy.copy(error), copy.deepcopy(error), copy.copy(copy.deepcopy(error))):
            assert state(copied) == state(error)


def test_every_constructor_of_an_exception_is_known_here() -> None:
    own = {kind for kind in exceptions() if "__init__" in vars(kind)}
    assert own <= set(MADE)
    assert issubclass(DeadLetter, RequestFailed)


def test_an_event_travels_without_its_sender_and_is_copied_with_it() -> None:
    events: list[Event] = []
    with Server("memory://events") as server, ticked(server), Client(server.location) as client:
        server.add_listener("e", events.append, pass_event=True)
        client.emit(EVENT)
        assert client.flush(DEADLINE)
        (event,) = events
        assert event.sender is not None
        travelled = pickle.loads(pickle.dumps(event))
        assert (travelled, travelled.sender) == (EVENT, None)
        for copied in (copy.copy(event), copy.deepcopy(event)):
            assert copied.sender is event.sender


def test_a_process_pool_survives_undelivered_events() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        with pytest.raises(Undelivered) as raised:
            pool.submit(emit_to_no_server).result(DEADLINE)
        assert raised.value.events == (Event("x", (1,)),)
        assert pool.submit(len, "abc").result(DEADLINE) == 3
