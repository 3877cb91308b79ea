"""Asyncio: a manager that is entered by ``async with`` is ticked by the loop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from chores import obey
from waiting import DEADLINE

from doorman import GroupManager, ProcessManager, Rule, State, SynchronousManager, Task, current_task
from doorman.errors import TaskCancelled, TaskExpired, WorkerDied
from remit import Client

Runner = Callable[[Awaitable[Any]], Any]


def loops() -> Iterator[Any]:
    yield pytest.param(asyncio.run, id="asyncio")
    if sys.platform == "linux":
        import uvloop

        yield pytest.param(uvloop.run, id="uvloop")


@pytest.fixture(params=loops())
def run(request: pytest.FixtureRequest) -> Runner:
    """Run a coroutine on each kind of loop, and not for ever."""

    async def bounded(coroutine: Awaitable[Any]) -> Any:
        async with asyncio.timeout(2 * DEADLINE):
            return await coroutine

    return lambda coroutine: request.param(bounded(coroutine))


@pytest.fixture
def place(short_path) -> str:
    return f"unix://{short_path}/m"


def test_tasks_are_awaited_over_every_transport(crossing_location):
    async def main() -> None:
        async with ProcessManager(crossing_location) as manager:
            tasks = [manager.add_task(Task(pow, 2, number)) for number in range(5)]
            assert await asyncio.gather(*tasks) == [1, 2, 4, 8, 16]
            assert all(task.identity.attempt for task in tasks)
            last = manager.add_task(Task(pow, 2, 5))
            await manager.run()
            assert last.result() == 32

    asyncio.run(main())


def test_what_a_task_raises_is_raised_where_it_is_awaited(run, place):
    async def main() -> None:
        async with ProcessManager(place) as manager:
            task = manager.add_task(Task(divmod, 1, 0))
            with pytest.raises(ZeroDivisionError):
                await task
            with pytest.raises(ZeroDivisionError):
                await task
            with pytest.raises(WorkerDied):
                await manager.add_task(Task.command(["false"]))
            with pytest.raises(TaskExpired):
                await manager.add_task(Task(time.sleep, 600, expires_in=0.1))

    run(main())


def test_the_loop_goes_on_meanwhile_and_is_not_woken_for_nothing(run, place):
    ticks: list[int] = []

    async def main() -> None:
        async with ProcessManager(place) as manager:
            tick = manager.tick
            manager.tick = lambda: ticks.append(1) or tick()
            task = manager.add_task(Task(time.sleep, 1.0))
            turns = 0
            while not task.done():
                await asyncio.sleep(0.01)
                turns += 1
            assert turns > 3
            assert await task is None

    run(main())
    assert len(ticks) < 50, "a tick whenever something happens, and not over and over"


def test_no_thread_for_each_task(place):
    async def main() -> None:
        async with ProcessManager(place) as manager:
            before = threading.active_count()
            tasks = [manager.add_task(Task(time.sleep, 600)) for _ in range(5)]
            waits = [asyncio.ensure_future(task) for task in tasks]
            while not all(task.state is State.RUNNING for task in tasks):
                await asyncio.sleep(0.01)
            assert threading.active_count() == before
            for task in tasks:
                task.cancel()
            done = await asyncio.gather(*waits, return_exceptions=True)
            assert [type(each) for each in done] == [TaskCancelled] * 5

    asyncio.run(main())


def test_a_task_that_was_added_before_is_run_and_one_that_was_never_added_is_refused(run, place):
    async def main() -> None:
        manager = ProcessManager(place)
        task = manager.add_task(Task(pow, 2, 3))
        async with manager:
            assert await task == 8
            with pytest.raises(ValueError, match="has not been added"):
                await Task(print)
        assert await task == 8

    run(main())


def test_a_cancelled_wait_loses_nothing(run, place):
    async def main() -> None:
        async with ProcessManager(place) as manager:
            task = manager.add_task(Task(pow, 2, 3))
            everything = asyncio.ensure_future(manager.run())
            one = asyncio.ensure_future(task)
            await asyncio.sleep(0)
            for wait in (everything, one):
                wait.cancel()
            assert [type(each) for each in await asyncio.gather(everything, one, return_exceptions=True)] == [
                asyncio.CancelledError
            ] * 2
            assert await task == 8
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(manager.add_task(Task(time.sleep, 600)), 0.2)
            assert len(manager.running) == 1

    run(main())


def test_a_run_has_a_bound(run, place):
    async def main() -> None:
        async with ProcessManager(place) as manager:
            task = manager.add_task(Task(signal.pause))
            await manager.run(0.1)
            assert not task.done()
        assert task.state is State.CANCELLED

    run(main())


def test_an_exception_in_the_block_stops_what_runs(run, place):
    tasks: list[Task] = []

    async def main() -> None:
        async with ProcessManager(place, grace=0.5) as manager:
            tasks.append(manager.add_task(Task(signal.pause)))
            tasks.append(manager.add_task(Task(stubborn)))
            tasks.append(manager.add_task(Task(print, can_run=lambda: False)))
            while not all(task.progress for task in tasks[1:2]):
                await asyncio.sleep(0.01)
            raise LookupError("of mine")

    with pytest.raises(LookupError, match="of mine"):
        run(main())
    assert [task.state for task in tasks] == [State.CANCELLED] * 3


def stubborn() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    current_task().progress(1)
    while True:
        signal.pause()


def test_to_cancel_the_block_or_its_end_leaves_no_process(place):
    async def block(started: asyncio.Event, tasks: list[Task]) -> None:
        async with ProcessManager(place, grace=0.5) as manager:
            tasks.append(manager.add_task(Task(stubborn, on_progress=lambda *_: started.set())))
            await manager.run()

    async def main() -> None:
        started, tasks = asyncio.Event(), []
        running = asyncio.create_task(block(started, tasks))
        await started.wait()
        with tasks[0].identity.open() as process:
            running.cancel()
            await asyncio.sleep(0.1)
            running.cancel()  # Now it is leaving, and the task is deaf to SIGTERM.
            with pytest.raises(asyncio.CancelledError):
                await running
            assert not process.alive()
        assert tasks[0].state is State.CANCELLED

    asyncio.run(main())


def test_what_a_tick_raises_ends_every_wait(run, place):
    async def main() -> None:
        async with ProcessManager(place) as manager:
            task = manager.add_task(Task(signal.pause))
            waits = [asyncio.ensure_future(task), asyncio.ensure_future(manager.run())]
            while task.state is not State.RUNNING:
                await asyncio.sleep(0.01)

            def broken() -> None:
                raise LookupError("broken")

            manager._admit = broken
            manager.changed()
            raised = await asyncio.gather(*waits, return_exceptions=True)
            assert [str(each) for each in raised] == ["broken"] * 2
            with pytest.raises(LookupError, match="broken"):
                await manager.run()
            del manager._admit

    with pytest.raises(LookupError, match="broken"):
        run(main())


def test_output_and_progress_are_told_on_the_loop(run, place):
    heard: list[tuple[str, Any, int]] = []

    async def main() -> None:
        def hear_line(task: Task, stream: str, line: str) -> None:
            heard.append((stream, line, threading.get_ident()))

        async with ProcessManager(place, on_output=hear_line) as manager:
            lines: asyncio.Queue[str] = asyncio.Queue()
            task = Task(speak_and_wait, on_output=lambda task, stream, line: lines.put_nowait(line))
            manager.add_task(task)
            assert await lines.get() == "up"
            assert not task.done()
            task.cancel()
            await manager.run()
        assert task.progress.done == 1

    run(main())
    assert heard == [("stdout", "up", threading.get_ident())]


def speak_and_wait() -> None:
    current_task().progress(1)
    time.sleep(0.1)
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


def say_and_obey(path: Any) -> list[str]:
    current_task().emit("said", "hello")
    return obey(path)


def test_what_is_wanted_or_published_between_ticks_wakes_the_thread_that_waits(run, place, monkeypatch):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with ProcessManager(place) as manager:
            woken: list[str] = []
            waker = manager.server.keeping.waker
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
                while manager.driver._kicked:
                    await asyncio.sleep(0)
                woken.clear()
                want()
                assert woken

    run(main())


def test_rules_and_questions_are_asked_again(run, place):
    async def main() -> None:
        allowed: list[int] = []
        async with ProcessManager(place, rules=[Rule(processes=1)]) as manager:
            rule = Rule(processes=0, handler="held")
            manager.add_rule(rule)
            held = manager.add_task(Task(pow, 2, 2, handler="held"))
            asking = manager.add_task(Task(pow, 2, 3, can_run=lambda: bool(allowed)))
            assert await manager.add_task(Task(pow, 2, 4)) == 16
            assert (held.state, asking.state) == (State.WAITING, State.WAITING)
            manager.remove_rule(rule)
            assert await held == 4
            allowed.append(1)
            assert await asking == 8

    run(main())


def test_groups_run_in_order(run, place):
    async def main() -> None:
        async with GroupManager(ProcessManager(place)) as manager:
            first = manager.add_group([Task(time.monotonic), Task(time.monotonic)])
            last = manager.add_task(Task(time.monotonic))
            assert await last > max(await asyncio.gather(*first))
            stays = manager.add_task(Task(signal.pause))
            behind = manager.add_task(Task(print))
            await manager.run(0.1)
        assert [stays.state, behind.state] == [State.CANCELLED] * 2

    run(main())


def test_a_manager_is_driven_once(place):
    async def main() -> None:
        async with ProcessManager(place) as manager:
            with pytest.raises(RuntimeError, match="driven by an event loop already"):
                async with GroupManager(manager):
                    pass
            assert await manager.add_task(Task(pow, 2, 3)) == 8

    asyncio.run(main())


def test_without_processes_it_is_awaited_alike():
    async def main() -> None:
        async with SynchronousManager() as manager:
            assert await manager.add_task(Task(pow, 2, 3)) == 8
            manager.add_task(Task(pow, 2, 4))
            await manager.run()

    asyncio.run(main())


def test_what_would_stop_the_loop_is_refused(place):
    async def main() -> None:
        async with ProcessManager(place) as manager:
            task = manager.add_task(Task(pow, 2, 3))
            with pytest.raises(RuntimeError, match="await"):
                task.result()
            with pytest.raises(RuntimeError, match="await"):
                manager.tick()
            assert await task == task.result() == 8

    asyncio.run(main())


def test_outside_of_a_block_a_task_is_not_awaited_and_a_run_that_is_over_may_be(place):
    async def main() -> None:
        with ProcessManager(place) as manager:
            task = manager.add_task(Task(pow, 2, 3))
            with pytest.raises(RuntimeError, match="async with"):
                await task
            await manager.run()
            assert await task == 8

    asyncio.run(main())


def test_on_another_loop_nothing_is_awaited(place):
    async def main() -> None:
        async with ProcessManager(place) as manager:
            task = manager.add_task(Task(signal.pause))

            async def wait() -> None:
                await task

            with pytest.raises(RuntimeError, match="on the loop on which"):
                await asyncio.get_running_loop().run_in_executor(None, asyncio.run, wait())

    asyncio.run(main())


def test_a_manager_may_be_closed_inside_its_block(run, place):
    async def main() -> None:
        async with ProcessManager(place) as manager:
            task = manager.add_task(Task(signal.pause))
            waits = asyncio.gather(task, manager.run(), return_exceptions=True)
            await asyncio.sleep(0)
            manager.close()
            ended, ran = await waits
            assert (type(ended), ran) == (TaskCancelled, None)

    run(main())


def test_nothing_is_left_behind(place):
    def left() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    async def main() -> None:
        async with ProcessManager(place, on_output=lambda *_: None) as manager:
            await asyncio.gather(*(manager.add_task(Task(print, number)) for number in range(3)))

    asyncio.run(main())
    before = left()
    for _ in range(3):
        asyncio.run(main())
    assert left() == before


def test_what_is_detached_or_waits_is_left_to_the_next_manager_of_the_journal(run, short_path):
    journal = short_path / "journal"

    async def main() -> tuple[Task, Task]:
        async with ProcessManager(journal=journal) as manager:
            detached = manager.add_task(Task(signal.pause, detach=True))
            waiting = manager.add_task(Task(pow, 2, 3, can_run=lambda: False))
            while detached.state is not State.RUNNING:
                await asyncio.sleep(0.01)
        return detached, waiting

    async def again(before: int) -> None:
        async with ProcessManager(journal=journal) as manager:
            detached, waiting = manager.recovered
            assert await waiting == 8
            while detached.identity is None:
                await asyncio.sleep(0.01)
            assert detached.identity.pid == before
            detached.cancel()
            with pytest.raises(TaskCancelled):
                await detached

    detached, waiting = run(main())
    assert (detached.state, waiting.state) == (State.LOST, State.CANCELLED)
    run(again(detached.identity.pid))
