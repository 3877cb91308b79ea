"""An interrupt, or a nested call, at any line of a manager or a pool loses no task and leaves no process.

By default each case takes a sample of the lines. DOORMAN_LINES=all takes each, DOORMAN_LINES=4::9 every ninth from the
fifth. DOORMAN_CASE=text takes only the cases with this text in their names.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import itertools
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from descriptors import open_descriptors
from injection import Injection, Interrupted, call_with, interrupt
from threads import of_each_thread
from waiting import DEADLINE, wait_until

from doorman import (
    Crew,
    GroupManager,
    ProcessExecutor,
    ProcessManager,
    Rule,
    State,
    SynchronousManager,
    Task,
    WorkerPool,
    current_task,
    futures,
)
from doorman.journal.journal import Journal
from doorman.launcher import Event, Order
from doorman.launcher.zygote import ZygoteLauncher
from doorman.process import stat_fields
from remit import Client
from remit.errors import LinkClosed, PeerLost, ReentrantTick

LINES = os.environ.get("DOORMAN_LINES", "").replace("all", "::")
CASE = os.environ.get("DOORMAN_CASE", "")
NEVER = 10**9
"""A line that no call reaches."""
SPARE = 24
"""Descriptors that interrupts may leave: Python may raise before the number of a new one is stored anywhere."""
FINAL = {State.DONE, State.FAILED, State.CANCELLED}
pytestmark = [
    pytest.mark.timeout(7200 if LINES else 180),
    # Python ignores what is raised in a finalizer, and pytest would report it.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"),
]


def sweep(name: str, once: Callable[[int], Injection], sample: int = 1) -> None:
    """Inject at each line of a case, or at a sample of them; an error names the place. The last word is the action."""
    if CASE not in name:
        return
    case = name.rpartition(" ")[0]
    if LINES:
        once(NEVER)  # Imports, caches.
    if LINES or case not in COUNTS:
        COUNTS[case] = once(NEVER).lines
    count, begin = COUNTS[case], time.monotonic()
    lines = range(1, count + 1)
    chosen = lines[slice(*(int(each) if each else None for each in LINES.split(":")))] if LINES else lines
    chosen = random.Random(name).sample(chosen, len(chosen) if LINES else min(sample, count))
    for line in chosen:
        try:
            once(line)
        except BaseException as error:
            error.add_note(f"{name}, line {line} of {count}: {last.place}")
            raise
    if LINES:
        seconds = time.monotonic() - begin
        print(f"swept {name}: {len(chosen)} of {count} lines, {seconds:.0f} s", file=sys.__stderr__, flush=True)


COUNTS: dict[str, int] = {}
"""Lines of each case, which its actions share."""
last = Injection()


def inject(action: Callable[[], object], line: int, call: Callable[[], Any]) -> Injection:
    """Inject, but not into a finalizer that the collector runs: Python ignores what it raises."""
    global last
    gc.disable()
    try:
        last = call_with(action, line, call)
    finally:
        gc.enable()
    return last


def three() -> int:
    return 3


def listen(folder: str) -> list[int]:
    """Return the numbers that the manager sends, up to its "end"."""
    numbers: list[int] = []
    ended = threading.Event()
    current_task().on("number", numbers.append)
    current_task().on("end", ended.set)
    (Path(folder) / "listens").touch()
    ended.wait()
    return numbers


def ends_of(*tasks: Task) -> list[Future[Any]]:
    """Return a list that gets the future of each task when it ends."""
    ends: list[Future[Any]] = []
    for task in tasks:
        task.future.add_done_callback(ends.append)
    return ends


class Shared:
    """A zygote for one manager after the other: the end of one kills its processes, and leaves the zygote."""

    def __init__(self, scheme: str) -> None:
        self._launcher = ZygoteLauncher(entry=f"doorman._worker.main:prepare:{scheme}")
        self._launcher.start()
        self._launched: set[str] = set()
        self.fileno, self.kill, self.end = self._launcher.fileno, self._launcher.kill, self._launcher.close

    def launch(self, order: Order) -> None:
        if not order.detach:
            self._launched.add(order.attempt)
        self._launcher.launch(order)

    def poll(self) -> list[Event]:
        return self._launcher.poll()

    def close(self, _: float) -> None:
        for attempt in self._launched:
            self.kill(attempt)
        self._launched.clear()

    @property
    def processes(self) -> set[int]:
        """The processes that it has started and that have not ended."""
        return set() if self._launcher.pid is None else children(self._launcher.pid)


def children(pid: int | str = "self") -> set[int]:
    """Return the children of a process, without zombies: `subprocess` reaps those of an interrupted call later."""
    found = {int(child) for children in of_each_thread("children", pid) for child in children.split()}
    return {child for child in found if stat_fields(child)[:1] not in ([], [b"Z"])}


@contextlib.contextmanager
def nothing_left(shared: Shared | None = None, journal: Path | None = None) -> Iterator[None]:
    """Check that a block leaves no process, no thread, few descriptors and a readable journal."""
    before, known, threads = open_descriptors(), children(), threading.active_count()
    there = set() if shared is None else shared.processes
    yield
    gc.collect()
    wait_until(lambda: children() <= known)
    if shared is not None:
        wait_until(lambda: shared.processes <= there)
    wait_until(lambda: threading.active_count() <= threads)
    assert open_descriptors() <= before + SPARE
    if journal is not None:
        assert all(finished.state in FINAL for finished in Journal.read(journal))


class Place:
    """Makes managers of one kind at one kind of location, with a shared zygote."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self._folder, self._number = kind, folder, 0
        self.name = kind.split()[0]
        self.shared = None if self.name == "memory" else Shared("zmq+ipc" if self.name == "zmq+ipc" else "unix")

    @property
    def location(self) -> str | None:
        """A new location; None: a private one."""
        self._number += 1
        return None if self.name == "unix" else f"{self.name}://{self._folder}/{self._number}"

    def manager(self, **options: Any) -> Any:
        if self.shared is None:
            made: Any = SynchronousManager()
        else:
            made = ProcessManager(self.location, launcher=self.shared, grace=1.0, **options)
        return GroupManager(made) if "groups" in self.kind else made


KINDS = ["unix", "zmq+ipc", "unix groups", "memory", "memory groups"]
PROCESSES = KINDS[:2]


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    if request.param.startswith("zmq"):
        pytest.importorskip("remit_zeromq")
    place = Place(request.param, tmp_path_factory.mktemp("m"))
    yield place
    if place.shared is not None:
        place.shared.end(0.0)


# -- managers --------------------------------------------------------------------------------------------------


def rules(manager: Any, _: Task) -> None:
    rule = Rule(processes=3)
    manager.add_rule(rule)
    manager.remove_rule(rule)


def state(manager: Any, task: Task) -> None:
    for name in STATE:
        getattr(manager, name, None)
    manager.why(task)


STATE = ("busy", "closed", "groups", "running", "waiting")
CALLS: dict[str, Callable[[Any, Task], object]] = {
    "add_task": lambda manager, task: manager.add_task(Task(three)),
    "add_group": lambda manager, task: manager.add_group([Task(three), Task(three)]),
    "add_rule": rules,
    "why": state,
    "tick": lambda manager, task: manager.tick(),
    "wait": lambda manager, task: manager.wait(0.01),
    "cancel": lambda manager, task: [manager.cancel(each) for each in (*manager.waiting, *manager.running)],
    "future.cancel": lambda manager, task: task.future.cancel(),
    "task.stop": lambda manager, task: task.stop(kill=True),
    "stop": lambda manager, task: manager.stop(),
    "kill": lambda manager, task: manager.kill(),
    "suspend": lambda manager, task: manager.suspend(),
    "resume": lambda manager, task: manager.resume(),
    "run": lambda manager, task: manager.run(DEADLINE),
    "result": lambda manager, task: task.result(DEADLINE),
    "future": lambda manager, task: task.future.result(DEADLINE),
}
STOPPING = {"cancel", "future.cancel", "task.stop", "stop", "kill"}
TICKED = {*STOPPING, "result", "future", "suspend", "resume"}
COVERED = {*CALLS, *STATE, "remove_rule", "emit_to", "close"}


def test_each_public_method_of_a_manager_is_swept() -> None:
    for kind in (ProcessManager, SynchronousManager, GroupManager):
        assert {name for name, _ in inspect.getmembers(kind) if not name.startswith("_")} <= COVERED


def finish(manager: Any, *tasks: Task, cancels: bool = False) -> None:
    """Use a manager after an interrupt: its tasks end, and another one too."""
    getattr(manager, "resume", int)()
    for task in tasks:
        if task._manager is None:
            manager.add_task(task)  # The interrupted call had not added it.
        if cancels:
            task.cancel()
    late = manager.add_task(Task(three))
    manager.run(DEADLINE)
    assert late.state is State.DONE, late
    assert not manager.busy
    assert (manager.waiting, manager.running) == ((), ())
    for task in tasks:
        assert task.state in FINAL, task


def injected(place: Place, manager: Any, name: str, action: Callable[[], object], line: int) -> Injection:
    """Inject an action into a call at a line; check that the manager works on, and that each task ends once."""
    stops = name in STOPPING
    first = manager.add_task(Task(time.sleep, 60 if stops and place.shared is not None else 0, retries=1))
    while stops and place.shared is not None and first.state is not State.RUNNING:
        manager.tick()
        manager.wait(0.1)
    second = manager.add_task(Task(three, retries=1))
    if name in TICKED and place.shared is not None:
        manager.tick()
    ends = ends_of(first, second)
    outcome = inject(action, line, lambda: CALLS[name](manager, first))
    finish(manager, first, second, cancels=stops)
    if not stops and (place.shared is not None or (not outcome.interrupted and outcome.error is None)):
        assert (first.state, second.state) == (State.DONE, State.DONE), (first, second)
    assert len(ends) == 2
    return outcome


def nested(manager: Any) -> None:
    """Call what a finalizer or a signal handler may call."""
    added = manager.add_task(Task(three))
    other = manager.add_task(Task(three))
    assert other.cancel()
    with contextlib.suppress(ReentrantTick):
        manager.tick()
    NESTED.append(added)


NESTED: list[Task] = []


class Alarm(Exception):
    """The exception of a signal handler that ends a call after some time."""


def throw(error: type[BaseException]) -> None:
    raise error


@pytest.mark.parametrize("action", ["interrupt", "alarm", "nested"])
@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_an_action_at_any_line_loses_no_task(place: Place, action: str, tmp_path: Path) -> None:
    options = {} if place.shared is None else {"journal": tmp_path / "journal"} if "groups" in place.kind else {}
    with nothing_left(place.shared, options.get("journal")), place.manager(**options) as manager:
        throws = functools.partial(throw, Alarm)
        chosen = {"interrupt": interrupt, "alarm": throws, "nested": functools.partial(nested, manager)}[action]
        for name in CALLS:
            if "." in name or name in ("result", "future") or hasattr(manager, name):
                sweep(f"{place.kind} {name} {action}", functools.partial(injected, place, manager, name, chosen))
            while NESTED:
                task = NESTED.pop()
                cancelled = task.exception(DEADLINE) is not None and task.state is State.CANCELLED
                assert (cancelled and name in STOPPING) or task.result(
                    0
                ) == 3  # A stop may include what is added in it.


@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_a_task_whose_addition_is_interrupted_runs_or_can_be_added_again(place: Place) -> None:
    package = Path(futures.__file__).parent
    files = [f"{package}/{each}.py" for each in ("_scheduler/supervisor", "synchronous_manager", "group_manager")]
    with nothing_left(place.shared), place.manager() as manager:
        for line in itertools.count(1):
            task = Task(three)
            outcome = call_with(interrupt, line, lambda task=task: manager.add_task(task), folders=tuple(files))
            manager.run(DEADLINE)
            if task.state is State.WAITING:
                manager.add_task(task)
            assert task.result(DEADLINE) == 3, outcome.place
            if outcome.place is None:
                break
        assert line > 5


@pytest.mark.parametrize("closes", [False, True], ids=["run", "close"])
@pytest.mark.parametrize("error", [Interrupted, Alarm])
def test_a_group_whose_start_an_exception_ends_runs_or_is_cancelled(error: type[BaseException], closes: bool) -> None:
    file = f"{Path(futures.__file__).parent}/group_manager.py"
    for line in itertools.count(1):
        with GroupManager(SynchronousManager()) as manager:
            tasks = [*manager.add_group([Task(three), Task(three)]), *manager.add_group([Task(three)])]
            outcome = call_with(functools.partial(throw, error), line, manager.tick, folders=(file,))
            if not closes:
                manager.run(DEADLINE)
                assert [task.result(0) for task in tasks] == [3, 3, 3], outcome.place
        assert all(task.state in FINAL for task in tasks), outcome.place
        if outcome.place is None:
            break
    assert line > 20


@pytest.mark.parametrize("place", ["unix"], indirect=True)
def test_an_interrupt_at_any_line_of_a_launch_leaves_no_descriptor(place: Place) -> None:
    files = [f"{Path(futures.__file__).parent}/{each}.py" for each in ("launcher/launch_messages", "process")]
    large = bytes(100_000)  # Its order needs a descriptor.
    with nothing_left(place.shared), place.manager() as manager:
        for line in itertools.chain([NEVER], itertools.count(1)):
            task = manager.add_task(Task(len, large))
            outcome = call_with(interrupt, line, lambda: manager.run(DEADLINE), folders=tuple(files))
            manager.run(DEADLINE)
            assert task.result(DEADLINE) == len(large)
            if line == NEVER or "Descriptors.close" in str(outcome.place):  # Python ignores what a finalizer raises.
                before = open_descriptors()
            print(outcome.place)
            wait_until(lambda: (manager.tick(), manager.wait(0.01), open_descriptors() <= before)[-1])  # noqa: B023
            if line != NEVER and outcome.place is None:
                break
        assert line > 40


@pytest.mark.parametrize("error", [Interrupted, Alarm])
def test_each_callback_of_a_future_is_called_once_at_whatever_line_an_exception_occurs(
    error: type[BaseException],
) -> None:
    with SynchronousManager() as manager:
        for line in itertools.count(1):
            task = manager.add_task(Task(three))
            ends = ends_of(task, task, task)
            throws = functools.partial(throw, error)
            outcome = call_with(throws, line, lambda: manager.run(DEADLINE), folders=(futures.__file__,))
            manager.run(DEADLINE)
            assert len(ends) == 3, outcome.place
            if outcome.place is None:
                break
        assert line > 20


@pytest.mark.parametrize("place", PROCESSES, indirect=True)
def test_an_event_to_a_task_arrives_once_although_others_are_interrupted(place: Place, tmp_path: Path) -> None:
    numbers: list[int] = []
    with nothing_left(place.shared), place.manager() as manager:
        task = manager.add_task(Task(listen, str(tmp_path)))
        while not (tmp_path / "listens").exists():
            manager.tick()
            manager.wait(0.01)

        def once(line: int) -> Injection:
            number = 2 * len(numbers)
            outcome = inject(interrupt, line, lambda: manager.emit_to(task, "number", number))
            manager.emit_to(task, "number", number + 1)
            manager.tick()
            numbers.append(number + 1)
            return outcome

        sweep(f"{place.kind} emit_to interrupt", once, 9)
        manager.emit_to(task, "end")
        got = task.result(DEADLINE)
        assert [number for number in got if number % 2] == numbers
        assert len(set(got)) == len(got)


# -- begin and end ---------------------------------------------------------------------------------------------


def closed(place: Place, options: dict[str, Any], action: Callable[[], object], line: int) -> Injection:
    """Interrupt the end of a manager's block; a second close ends what is left."""
    manager = place.manager(**options)
    tasks = [manager.add_task(Task(time.sleep, 60)) for _ in range(2)]
    while place.shared is not None and tasks[0].state is not State.RUNNING:
        manager.tick()
        manager.wait(0.1)
    outcome = inject(action, line, lambda: manager.__exit__(None, None, None))
    manager.close()
    assert [task.state for task in tasks] == [State.CANCELLED] * 2 or outcome.interrupted
    assert all(task.state in FINAL | {State.LOST} for task in tasks), tasks
    with pytest.raises(ValueError, match="closed"):
        manager.add_task(Task(three))
    return outcome


@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_an_interrupt_at_any_line_of_close_leaves_no_process(place: Place) -> None:
    with nothing_left(place.shared):
        sweep(f"{place.kind} close interrupt", functools.partial(closed, place, {}, interrupt), 3)


@pytest.mark.parametrize("place", PROCESSES, indirect=True)
def test_an_interrupt_at_any_line_of_the_begin_leaves_no_process(place: Place, tmp_path: Path) -> None:
    def once(line: int) -> Injection:
        place.shared.end = int if line % 2 else place.shared.end
        outcome = inject(interrupt, line, lambda: ProcessManager(place.location, journal=tmp_path / "journal"))
        if outcome.value is not None:
            outcome.value.close()
        outcome.value = None
        with ProcessManager(place.location, launcher=place.shared, journal=tmp_path / "journal") as manager:
            assert manager.add_task(Task(three)).result(DEADLINE) == 3
        return outcome

    with nothing_left():
        sweep(f"{place.kind} begin interrupt", once, 2)


def adopted(place: Place, journal: Path, location: str | None, line: int) -> Injection:
    """Interrupt the recovery of a detached and of a waiting task; the next manager has both."""
    options = {"launcher": place.shared, "journal": journal, "grace": 1.0}
    with ProcessManager(location, **options) as manager:
        first = manager.add_task(Task(time.sleep, 60, detach=True))
        while first.state is not State.RUNNING:
            manager.tick()
            manager.wait(0.1)
        manager.add_task(Task(three))
        pid = first.identity.pid
    outcome = inject(interrupt, line, lambda: ProcessManager(location, **options))
    if outcome.value is not None:
        outcome.value.close()
    outcome.value = None
    gc.collect()
    with ProcessManager(location, **options) as manager:
        left = [task for task in manager.recovered if not task.done()]
        assert [task.name for task in left] == ["sleep", "three"]
        manager.run(0.0)
        assert left[0].state is State.RUNNING
        assert left[0].identity.pid == pid
        left[0].cancel()
        manager.run(DEADLINE)
        assert [task.state for task in left] == [State.CANCELLED, State.DONE]
    return outcome


@pytest.mark.parametrize("place", PROCESSES, indirect=True)
def test_an_interrupt_at_any_line_of_a_recovery_loses_no_task(place: Place, tmp_path: Path) -> None:
    with nothing_left(place.shared):
        numbers = iter(range(NEVER))
        sweep(
            f"{place.kind} recovery interrupt",
            lambda line: adopted(place, tmp_path / f"j{next(numbers)}", place.location, line),
            2,
        )


# -- pools -----------------------------------------------------------------------------------------------------

POOL: dict[str, Callable[[Any], object]] = {
    "submit": lambda pool: pool.submit(three),
    "run": lambda pool: pool.run(DEADLINE),
    "workers": lambda pool: (pool.workers, pool.busy),
    "cancel_waiting": lambda pool: pool.cancel_waiting(),
    "stop_workers": lambda pool: pool.stop_workers(),
}


def pooled(pool: Crew, name: str, action: Callable[[], object], line: int) -> Injection:
    """Inject into a call of a crew; each of its calls ends."""
    calls = [pool.submit(three) for _ in range(3)]
    if name == "stop_workers":
        pool.manager.tick()
    outcome = inject(action, line, lambda: POOL[name](pool))
    calls.append(pool.submit(three))
    pool.run(DEADLINE)
    assert not pool.busy
    assert all(each.done() for each in calls)
    assert calls[-1].result(DEADLINE) == 3
    if name in ("submit", "run", "workers"):
        assert [each.result() for each in calls] == [3] * len(calls)
    return outcome


def ended_crew(manager: ProcessManager, line: int) -> Injection:
    with Crew(manager, 1) as crew:
        calls = [crew.submit(three) for _ in range(2)]
        manager.tick()
        outcome = inject(interrupt, line, crew.close)
    wait_until(lambda: (manager.tick(), manager.wait(0.01), all(each.done() for each in calls))[-1])
    return outcome


@pytest.mark.parametrize("action", ["interrupt", "nested"])
@pytest.mark.parametrize("place", PROCESSES, indirect=True)
def test_an_action_at_any_line_of_a_crew_loses_no_call(place: Place, action: str) -> None:
    assert {name for name, _ in inspect.getmembers(Crew) if not name.startswith("_")} == {*POOL, "busy", "close"}
    calls: list[Any] = []

    def resubmit() -> None:
        calls.append(crew.submit(three))
        crew.submit(three).cancel()

    with nothing_left(place.shared), place.manager() as manager, Crew(manager, 2) as crew:
        for name in POOL:
            chosen = interrupt if action == "interrupt" else resubmit
            sweep(f"{place.kind} crew.{name} {action}", functools.partial(pooled, crew, name, chosen), 3)
        crew.run(DEADLINE)
        assert all(each.done() for each in calls)
        sweep(f"{place.kind} crew.close interrupt", functools.partial(ended_crew, manager), 3)


EXECUTOR: dict[str, Callable[[ProcessExecutor], object]] = {
    "submit": lambda executor: executor.submit(three),
    "map": lambda executor: list(executor.map(abs, [1, 2])),
    "workers": lambda executor: executor.workers,
    "shutdown": lambda executor: executor.shutdown(),
    "terminate_workers": lambda executor: executor.terminate_workers(),
    "kill_workers": lambda executor: executor.kill_workers(),
}


@pytest.mark.parametrize("reuse", [True, False], ids=["workers", "calls"])
@pytest.mark.parametrize("action", ["interrupt", "nested"])
@pytest.mark.parametrize("place", PROCESSES, indirect=True)
def test_an_action_at_any_line_of_an_executor_leaves_it_usable(place: Place, action: str, reuse: bool) -> None:
    assert {name for name, _ in inspect.getmembers(ProcessExecutor) if not name.startswith("_")} == {*EXECUTOR}
    calls: list[Future[int]] = []
    executors: list[ProcessExecutor] = []

    def resubmit() -> None:
        with contextlib.suppress(RuntimeError):  # WouldDeadlock, or after the shutdown.
            calls.append(executors[-1].submit(three))

    def once(name: str, first: bool, line: int) -> Injection:
        if first or not executors:
            executors[:] = [ProcessExecutor(1, reuse=reuse, location=place.location, launcher=place.shared, grace=1.0)]
        executor = executors[-1]
        ends = list(EXECUTOR).index(name) > 2
        calls.extend(executor.submit(three) for _ in range(ends))
        outcome = inject(interrupt if action == "interrupt" else resubmit, line, lambda: EXECUTOR[name](executor))
        if not ends:
            assert executor.submit(three).result(DEADLINE) == 3
        if first:
            executor.shutdown()
            with pytest.raises(RuntimeError):
                executor.submit(three)
        return outcome

    with nothing_left(place.shared):
        for name in EXECUTOR:
            for first in (True, False) if name == "submit" or (LINES and name in ("map", "workers")) else (True,):
                title = f"{place.kind} executor.{'first ' * first}{name} {action}"
                sweep(title, functools.partial(once, name, first))
                executors[-1].shutdown()
                executors.clear()
        assert all(each.done() for each in calls)


@pytest.mark.parametrize("place", ["unix"], indirect=True)
def test_a_nested_submit_at_any_line_of_the_first_one_starts_no_second_thread(place: Place) -> None:
    file = f"{Path(futures.__file__).parent}/pools/executor.py"
    for line in itertools.count(1):
        with ProcessExecutor(1, location=place.location, launcher=place.shared, grace=1.0) as executor:

            def again(executor: ProcessExecutor = executor) -> None:
                with contextlib.suppress(RuntimeError):  # WouldDeadlock
                    executor.submit(three)

            outcome = call_with(again, line, functools.partial(executor.submit, three), folders=(file,))
            assert [each.name for each in threading.enumerate()].count("doorman-executor") == 1, outcome.place
            assert outcome.value.result(DEADLINE) == 3
        if outcome.place is None:
            break
    assert line > 10


def cut_connection() -> bool:
    """Return whether the injection was within the use of a socket.

    How much of a frame was read or written is unknown then, so the connection ends; it may be the client's. A request
    whose connection ends raises PeerLost, since it may have run. No other interrupt may cost a request.
    """
    return "/stream_link.py" in (last.place or "")


BROKERED: dict[str, Callable[[WorkerPool], object]] = {
    "tick": lambda pool: pool.tick(),
    "wait": lambda pool: pool.wait(0.01),
    "run": lambda pool: pool.run(0.03),
    "stop": lambda pool: pool.stop(),
    "workers": lambda pool: pool.workers,
    "location": lambda pool: pool.location,
}


@pytest.mark.parametrize("place", PROCESSES, indirect=True)
def test_an_interrupt_at_any_line_of_a_worker_pool_loses_no_request(place: Place) -> None:
    assert {name for name, _ in inspect.getmembers(WorkerPool) if not name.startswith("_")} == {
        *BROKERED,
        "close",
        "drain",
    }

    def until_done(pool: WorkerPool, *futures: Future[Any]) -> None:
        wait_until(lambda: (pool.tick(), pool.wait(0.01), all(each.done() for each in futures))[-1])

    def once(pool: WorkerPool, client: Client, name: str, line: int) -> Injection:
        future = client.submit("job", timeout=DEADLINE)
        outcome = inject(interrupt, line, lambda: BROKERED[name](pool))
        pool.run(0.0)
        later = client.submit("job", timeout=DEADLINE)
        until_done(pool, future, later)
        for each in (future, later):
            if not (cut_connection() and isinstance(each.exception(), PeerLost)):
                assert each.result() == 3
        return outcome

    def ended(name: str, line: int) -> Injection:
        with WorkerPool(three, processes=1, location=place.location, launcher=place.shared, grace=1.0) as pool:
            with Client(pool.location, linger=0.1) as client:
                future = client.submit("job", timeout=DEADLINE)
                pool.tick()
                if name == "drain":
                    outcome = inject(interrupt, line, lambda: pool.drain(DEADLINE))
                    assert pool.drain(DEADLINE)
                    until_done(pool, future)
                else:
                    outcome = inject(interrupt, line, pool.close)
                    future.cancel()
            return outcome

    with nothing_left(place.shared):
        options = {"processes": 1, "location": place.location, "launcher": place.shared, "grace": 1.0}
        with WorkerPool(three, **options) as pool, Client(pool.location) as client:
            for name in BROKERED:
                sweep(f"{place.kind} pool.{name} interrupt", functools.partial(once, pool, client, name))
        for name in ("drain", "close"):
            sweep(f"{place.kind} pool.{name} interrupt", functools.partial(ended, name))


# -- asyncio ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["interrupt", "nested"])
@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_an_action_at_any_line_of_a_loop_ends_the_manager_or_changes_nothing(place: Place, action: str) -> None:
    def once(line: int) -> Injection:
        manager = place.manager()
        tasks = [Task(three) for _ in range(2)]

        async def main() -> None:
            async with manager:
                for task in tasks:
                    manager.add_task(task)
                assert await tasks[0] == 3
                await manager.run()

        def call() -> None:
            try:
                with asyncio.Runner() as runner:
                    signal.signal(signal.SIGINT, signal.default_int_handler)
                    runner.run(main())
            except KeyboardInterrupt:
                raise Interrupted from None

        added: list[Task] = []

        def again() -> None:
            with contextlib.suppress(ValueError):  # closed
                added.append(manager.add_task(Task(three)))
                assert manager.add_task(Task(three)).cancel()
            with contextlib.suppress(RuntimeError, LinkClosed):  # LinkClosed: its server is closed already.
                manager.tick()

        outcome = inject(functools.partial(throw, KeyboardInterrupt) if action == "interrupt" else again, line, call)
        manager.close()
        if action == "nested":
            assert [task.result(0) for task in tasks] == [3, 3]
            assert outcome.error is None
        assert all(task.state in FINAL | {State.LOST} for task in (*tasks, *added) if task._manager is not None)
        assert (manager.waiting, manager.running) == ((), ())
        return outcome

    with nothing_left(place.shared):
        sweep(f"{place.kind} asyncio {action}", once, 3)


# -- real signals ----------------------------------------------------------------------------------------------


SIGNALS = 300 if LINES else 4


@pytest.mark.parametrize("action", ["interrupt", "nested"])
@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_a_signal_at_any_moment_loses_no_task(place: Place, action: str) -> None:
    moments, interrupted = random.Random(11), 0
    with nothing_left(place.shared), place.manager() as manager:
        chosen = interrupt if action == "interrupt" else functools.partial(nested, manager)
        before = signal.signal(signal.SIGALRM, lambda *_: chosen())
        try:
            for _ in range(SIGNALS):
                tasks = [Task(three, retries=1) for _ in range(4)]
                ends = ends_of(*tasks)
                try:
                    signal.setitimer(signal.ITIMER_REAL, moments.uniform(0.0001, 0.05))
                    for task in tasks:
                        manager.add_task(task)
                    manager.run(DEADLINE)
                except Interrupted:
                    interrupted += 1
                signal.setitimer(signal.ITIMER_REAL, 0)
                finish(manager, *tasks)
                assert len(ends) == 4
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    if LINES:
        print(f"swept {place.kind} signals {action}: {SIGNALS}, {interrupted} raised", file=sys.__stderr__, flush=True)
    NESTED.clear()
