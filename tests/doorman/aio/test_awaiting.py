"""Awaiting: a manager that is entered by ``async with`` is ticked by the loop, and its tasks are awaited."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time

import pytest
from internals import callbacks_kept

from doorman import GroupManager, ProcessManager, Rule, State, SynchronousManager, Task
from doorman.errors import TaskCancelled, TaskExpired, WorkerDied


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
            await manager.add_task(Task(pow, 2, 3))  # Then the thread of the manager has begun.
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


def test_waits_that_time_out_leave_nothing_behind(place):
    async def main() -> None:
        async with ProcessManager(place) as manager:
            task = manager.add_task(Task(signal.pause))
            for _ in range(3):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(task, 0.01)
            assert callbacks_kept(task) == 1
            waits = [asyncio.ensure_future(task) for _ in range(2)]
            await asyncio.sleep(0)
            task.cancel()
            ends = await asyncio.gather(*waits, return_exceptions=True)
            assert [type(end) for end in ends] == [TaskCancelled] * 2

    asyncio.run(main())


def test_a_run_has_a_bound(run, place):
    async def main() -> None:
        async with ProcessManager(place) as manager:
            task = manager.add_task(Task(signal.pause))
            await manager.run(0.1)
            assert not task.done()
        assert task.state is State.CANCELLED

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
