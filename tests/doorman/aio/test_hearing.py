"""Hearing: output, progress and messages are told on the loop, and what is said wakes whoever waits."""

from __future__ import annotations

import asyncio
import signal
import threading
from typing import Any

from chores import obey
from internals import loop_driver, server_io

from doorman import ProcessManager, Rule, Task, current_task
from remit import AsyncClient, Client


def test_output_and_progress_are_told_on_the_loop(run, place):
    heard: list[tuple[str, Any, int]] = []

    async def main() -> None:
        def hear_line(task: Task, stream: str, line: str) -> None:
            heard.append((stream, line, threading.get_ident()))

        async with ProcessManager(place, on_output=hear_line) as manager:
            lines: asyncio.Queue[str] = asyncio.Queue()
            reports: asyncio.Queue[float] = asyncio.Queue()
            task = Task(
                speak_and_wait,
                on_output=lambda task, stream, line: lines.put_nowait(line),
                on_progress=lambda task, progress: reports.put_nowait(progress.done),
            )
            manager.add_task(task)
            assert await lines.get() == "up"
            assert await reports.get() == 1
            assert not task.done()
            task.cancel()
            await manager.run()
        assert task.progress.done == 1

    run(main())
    assert heard == [("stdout", "up", threading.get_ident())]


def speak_and_wait() -> None:
    current_task().progress(1)
    print("up")
    signal.pause()


def test_listeners_may_be_async_and_the_manager_speaks_at_once(run, place, short_path, caplog):
    async def main() -> None:
        heard: asyncio.Queue[str] = asyncio.Queue()

        async def hear(word: str) -> None:
            await asyncio.sleep(0)
            await heard.put(word)

        async def fail(word: str) -> None:
            raise ValueError(word)

        async with ProcessManager(place) as manager:
            manager.server.add_listener("said", hear)
            manager.server.add_listener("said", fail)
            task = manager.add_task(Task(say_and_obey, short_path / "up"))
            assert await heard.get() == "hello"
            while not (short_path / "up").exists():
                await asyncio.sleep(0.01)
            manager.emit_to(task, "word", "one")
            manager.emit_to(task, "stop")
            assert await task == ["one"]

    run(main())
    assert [str(record.exc_info[1]) for record in caplog.records] == ["hello"]


def test_async_listeners_answer_requests_and_are_cancelled_with_them(run, place):
    async def main() -> None:
        began, cancelled = asyncio.Event(), asyncio.Event()

        async def double(number: int) -> int:
            await asyncio.sleep(0)
            return 2 * number

        async def wait() -> None:
            began.set()
            try:
                await asyncio.sleep(60)
            finally:
                cancelled.set()

        async with ProcessManager(place) as manager, AsyncClient(manager.server.location) as client:
            manager.server.add_listener("double", double)
            manager.server.add_listener("wait", wait)
            assert await client.request("double", 4) == 8
            future = await client.submit("wait")
            await began.wait()
            future.cancel()
            await cancelled.wait()

    run(main())


def say_and_obey(path: Any) -> list[str]:
    current_task().emit("said", "hello")
    return obey(path)


def test_what_is_wanted_or_published_between_ticks_wakes_the_thread_that_waits(run, place, monkeypatch):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with ProcessManager(place) as manager:
            woken: list[str] = []
            waker = server_io(manager.server).waker
            wake = waker.wake
            with Client(manager.server.location) as client:
                heard: asyncio.Future[int] = loop.create_future()
                hear = lambda number: loop.call_soon_threadsafe(heard.set_result, number)  # noqa: E731
                await loop.run_in_executor(None, client.subscribe, "number", hear)
                await manager.run()
                monkeypatch.setattr(waker, "wake", lambda: woken.append("woken") or wake())
                manager.server.publish("number", 7)
                assert woken.pop()
                assert await heard == 7
            for want in (
                lambda: manager.add_task(Task(print, can_run=lambda: False)),
                lambda: manager.add_rule(Rule(processes=1)),
                lambda: manager.remove_rule(Rule(processes=1)),
                lambda: manager.cancel(manager.waiting[0]),
            ):
                await manager.run(0.0)
                while loop_driver(manager).tick_scheduled:
                    await asyncio.sleep(0)
                woken.clear()
                want()
                assert woken

    run(main())
