"""Leaving: a block that is cancelled, raises, is closed within or is refused leaves nothing behind."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import threading

import pytest
from injection import Alarmed, Injection, alarm, call_with, interrupt
from waiting import DEADLINE, wait_until

from doorman import ProcessManager, Rule, State, SynchronousManager, Task, current_task
from doorman._scheduler import event_loop
from doorman.errors import TaskCancelled


class Breakable(ProcessManager):
    """Once `broken` is set, the next tick raises."""

    broken = False

    def tick(self) -> bool:
        if self.broken:
            self.broken = False
            raise LookupError("broken")
        return super().tick()


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
        async with Breakable(place) as manager:
            task = manager.add_task(Task(signal.pause))
            waits = [asyncio.ensure_future(task), asyncio.ensure_future(manager.run())]
            while task.state is not State.RUNNING:
                await asyncio.sleep(0.01)
            manager.broken = True
            manager.add_rule(Rule())
            raised = await asyncio.gather(*waits, return_exceptions=True)
            assert [str(each) for each in raised] == ["broken"] * 2
            with pytest.raises(LookupError, match="broken"):
                await manager.run()

    with pytest.raises(LookupError, match="broken"):
        run(main())


def test_what_a_tick_raises_ends_a_block_that_awaits_something_else(run, place, caplog):
    async def main() -> None:
        async with Breakable(place) as manager:
            manager.broken = True
            manager.add_task(Task(print))
            await asyncio.get_running_loop().create_future()

    async def outside() -> None:
        with pytest.raises(LookupError, match="broken"):
            await main()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    run(outside())
    assert "ends its block" in caplog.text


def test_a_manager_whose_loop_was_closed_is_entered_on_the_next_one(place):
    manager = ProcessManager(place)

    async def enter() -> None:
        await manager.__aenter__()

    async def use() -> None:
        async with manager:
            assert await manager.add_task(Task(pow, 2, 5)) == 32

    loop = asyncio.new_event_loop()
    loop.run_until_complete(enter())
    loop.close()  # Within the block.
    asyncio.run(use())


def test_what_a_tick_raises_while_the_block_is_left_leaves_no_process(run, place):
    managers: list[ProcessManager] = []
    tasks: list[Task] = []

    async def main() -> None:
        async with Breakable(place, grace=0.5) as manager:
            managers.append(manager)
            tasks.append(manager.add_task(Task(stubborn)))
            while not tasks[0].progress:
                await asyncio.sleep(0.01)
            stop = manager.stop
            manager.stop = lambda: (stop(), setattr(manager, "broken", True))

    with pytest.raises(LookupError, match="broken"):
        run(main())
    assert managers[0].closed
    assert tasks[0].state is State.CANCELLED


@pytest.mark.parametrize("make", [ProcessManager, lambda _place: SynchronousManager()])
def test_what_would_stop_the_loop_is_refused(place, make):
    async def main() -> None:
        async with make(place) as manager:
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


@pytest.mark.parametrize("action", [alarm, interrupt])
def test_an_exception_at_any_line_of_the_driver_ends_the_block_or_changes_nothing(action):
    def once(line: int) -> Injection:
        manager = SynchronousManager()
        tasks = [Task(pow, 2, number) for number in range(3)]
        waits: list[asyncio.Task[int]] = []

        async def result(task: Task) -> int:
            try:
                return await task
            except Alarmed:
                return await task

        async def main() -> None:
            async with asyncio.timeout(DEADLINE):
                try:
                    async with manager:
                        await manager.run()  # Then the thread has the turn, and the tasks are awaited before they run.
                        waits.extend(asyncio.ensure_future(result(manager.add_task(task))) for task in tasks[:2])
                        assert await asyncio.gather(*waits) == [1, 2]
                        manager.add_task(tasks[2])
                        await manager.run()
                finally:
                    await asyncio.gather(*waits, return_exceptions=True)

        outcome = call_with(action, line, lambda: asyncio.run(main()), folders=(event_loop.__file__,))
        assert outcome.error is None
        if not outcome.interrupted and action is alarm:
            assert [task.state for task in tasks] == [State.DONE] * 3
        manager.close()
        assert (manager.waiting, manager.running) == ((), ())
        return outcome

    for line in itertools.count(1):
        if once(line).place is None:
            break
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name == "doorman-aio"])


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
    # Of an earlier test something may still have been there, which has gone by now.
    wait_until(lambda: left()[0] <= before[0])  # A thread that has set its result is about to end.
    wait_until(lambda: left()[1] <= before[1])


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
