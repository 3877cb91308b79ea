"""Who serves a client's link: its thread, and callers that wait for answers; nobody wakes without need."""

from __future__ import annotations

import asyncio
import itertools
import os
import select
import threading
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from injection import call_with
from internals import client_io
from ticking import ticked
from waiting import DEADLINE, wait_until

from remit import AsyncServer, Client, Server
from remit._io.drivers import LinkLock
from remit._io.pump import ClientPump
from remit.transport import DaemonThread, Waker


def test_who_waits_for_confirmations_sleeps(location, monkeypatch):
    """It burns no processor while the server, which may have to share that very one, gets on."""
    sleeps: list[ClientPump] = []
    sleep = ClientPump.wait
    monkeypatch.setattr(
        ClientPump, "wait", lambda self, timeout, waker=None: (sleeps.append(self), sleep(self, timeout, waker))
    )
    with Server(location) as server, Client(server.location) as client:
        client.emit("unheard")
        assert not client.flush(0.6)
        # Of this client alone: one of another test may sleep at the same time.
        assert sleeps.count(client_io(client).link_pump) < 50
        with ticked(server):
            assert client.flush(DEADLINE)


@pytest.fixture
def gate_keeper(location):
    """A server that gives one answer for each event that has come."""
    started, leaving = threading.Event(), threading.Event()
    where = []

    async def serve() -> None:
        async with AsyncServer(location) as server:
            gate = asyncio.Semaphore(0)

            @server.on("ask")
            async def ask() -> bool:
                return await gate.acquire()

            server.add_listener("open", gate.release)
            where.append(server.location)
            started.set()
            while not leaving.is_set():
                await asyncio.sleep(0.01)

    with ThreadPoolExecutor() as pool:
        served = pool.submit(asyncio.run, serve())
        assert started.wait(DEADLINE)
        yield where[0]
        leaving.set()
        served.result(DEADLINE)


def test_an_event_leaves_while_another_thread_serves_the_link(gate_keeper):
    with Client(gate_keeper) as client, ThreadPoolExecutor() as pool:
        for _ in range(50):
            asked = pool.submit(client.request, "ask", timeout=DEADLINE)
            wait_until(lambda: client.stats()["requests"] == 1)
            client.emit("open")
            assert asked.result(DEADLINE)


def test_two_threads_ask_through_one_client(gate_keeper):
    with Client(gate_keeper) as client, ThreadPoolExecutor() as pool:
        for _ in range(50):
            first, second = (pool.submit(client.request, "ask", timeout=DEADLINE) for _ in range(2))
            wait_until(lambda: client.stats()["requests"] == 2)
            client.emit("open")
            wait([first, second], DEADLINE, FIRST_COMPLETED)
            client.emit("open")
            assert first.result(DEADLINE)
            assert second.result(DEADLINE)


def test_closing_ends_a_wait_in_another_thread(location):
    with Server(location) as server, ThreadPoolExecutor() as pool:
        client = Client(server.location)
        client.emit("unheard")
        flushed = pool.submit(client.flush, DEADLINE)
        wait_until(lambda: client.stats()["queued"] == 0)
        with pytest.raises(Exception, match="unheard"):
            client.close(0.0)
        assert flushed.result(DEADLINE) is False


def test_the_thread_comes_back_from_a_caller_that_took_just_about_long(monkeypatch):
    """Between the two of them looking at the clock the moment passes from which it is long."""
    looked = threading.Event()
    taken: list[bool] = []

    def long(_: LinkLock) -> bool:
        if threading.current_thread() is thread:
            looked.set()
            return True
        return False

    monkeypatch.setattr(LinkLock, "is_lent_for_long", long)
    lock = LinkLock()
    assert lock.try_borrow()
    thread = threading.Thread(target=lambda: taken.append(lock.acquire()))
    thread.start()
    assert looked.wait(DEADLINE)
    lock.give_back()
    thread.join(10)
    in_time = list(taken)
    lock.stop()
    thread.join(DEADLINE)
    lock.waker.close()
    assert in_time == [True]


def test_a_waker_is_cleared_by_whoever_it_has_woken_however_soon(monkeypatch):
    waker = Waker()
    write = os.write

    def cleared_at_once(descriptor: int, data: bytes) -> int:
        written = write(descriptor, data)
        waker.clear()
        return written

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", cleared_at_once)
        waker.wake()
    assert select.select([waker], [], [], 0)[0] == []
    waker.close()


def test_of_two_starters_of_a_thread_one_is_elected():
    """A signal handler calls start() within start(). The second starter gets the ident of the first, which ended."""
    tasks = Path("/proc/self/task")
    for line in itertools.count(1):
        begun: list[int] = []
        # Not needed, so that no other thread ends between the two.
        thread = DaemonThread(print, "remit-test", lambda begun=begun: bool(begun.append(threading.get_ident())))
        others = set(tasks.iterdir())

        def start_and_end(thread=thread, others=others):
            thread.start()
            thread.join(DEADLINE)
            wait_until(lambda: set(tasks.iterdir()) <= others)

        injected = call_with(start_and_end, line, thread.start)
        start_and_end()
        assert len(begun) == 1, injected.place
        if injected.place is None:
            assert line > 2
            return
