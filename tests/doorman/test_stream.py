"""Stream: what tasks write comes to their manager, line by line, whatever becomes of them."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from chores import hear_signals
from internals import launcher_of
from managing import tick_until
from waiting import DEADLINE

from doorman import ProcessManager, State, Task
from doorman._scheduler.output import KEPT_LINES, Logs, Streams, is_streamed
from doorman.errors import WorkerDied
from doorman.launcher.command import CommandLauncher
from remit.errors import ReentrantTick

Heard = list[tuple[str, str, str]]


@pytest.fixture
def heard() -> Heard:
    return []


@pytest.fixture
def manager(short_path, heard) -> Iterator[ProcessManager]:
    def hear(task: Task, stream: str, line: str) -> None:
        heard.append((task.name, stream, line))

    with ProcessManager(f"unix://{short_path}/m", grace=1.0, on_output=hear) as manager:
        yield manager


def test_what_a_task_writes_comes_over_every_transport(crossing_location, speak):
    heard: Heard = []
    with ProcessManager(crossing_location) as manager:
        task = manager.add_task(Task(speak, "one", on_output=lambda task, *line: heard.append((task.name, *line))))
        task.result(DEADLINE)
    assert sorted(heard) == [("speak", "stderr", "one err"), ("speak", "stdout", "one out")]
    assert sorted(task.lines) == [("stderr", "one err"), ("stdout", "one out")]


def test_lines_come_while_the_task_runs_and_a_wait_wakes_for_them(manager, heard, monkeypatch):
    def speak_when_told() -> None:
        signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b"up\n"))
        while True:
            signal.pause()

    wakers: list[Any] = []
    wait = manager.server.wait
    monkeypatch.setattr(manager.server, "wait", lambda timeout, waker: wakers.append(waker) or wait(timeout, waker))
    task = manager.add_task(Task(speak_when_told))
    tick_until(manager, lambda: task.state is State.RUNNING)
    deadline = time.monotonic() + DEADLINE
    with task.identity.open() as process:
        while not select.select([wakers[-1]], [], [], 0.1)[0]:
            assert time.monotonic() < deadline, "what ends a wait does not know of the output"
            process.signal(signal.SIGUSR1)
    manager.tick()
    assert heard[0] == ("speak_when_told", "stdout", "up")
    assert not task.done()


def test_what_is_in_a_pipe_at_the_end_is_told_though_nobody_has_looked(manager, heard):
    streams = Streams(Logs(None), launcher_of(manager), None)
    task = Task(print, stream=True)
    output = streams.open(task, "1")
    os.write(output.stdout, b"out\n" * 1000 + b"last")
    os.write(output.stderr, b"err\n")
    streams.finish_attempt("1")  # The other ends are open still, as with a grandchild that has not ended.
    output.close()
    streams.close()
    assert list(task.lines) == [*[("stdout", "out")] * 998, ("stdout", "last"), ("stderr", "err")]


def test_the_order_of_a_stream_is_kept_however_much_is_written(manager, heard):
    def write() -> None:
        sys.stdout.writelines(f"{number} {'x' * (number % 500)}\n" for number in range(5000))

    tasks = [manager.add_task(Task(write, name=f"t{number}")) for number in range(3)]
    manager.run(DEADLINE)
    for task in tasks:
        assert task.result() is None
        numbers = [int(line.split()[0]) for name, _, line in heard if name == task.name]
        assert numbers == list(range(5000))
        assert [line.text.split()[0] for line in task.lines] == [f"{n}" for n in range(5000 - KEPT_LINES, 5000)]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_what_was_written_before_a_kill_is_told_before_the_end(manager, heard, number):
    def crash() -> None:
        os.write(1, b"".join(b"%d\n" % line for line in range(1000)) + b"no end")
        os.kill(os.getpid(), number)

    ended: list[bool] = []
    task = manager.add_task(Task(crash, on_output=lambda task, *line: ended.append(task.done())))
    with pytest.raises(WorkerDied):
        task.result(DEADLINE)
    assert [line for *_, line in heard] == [*map(str, range(1000)), "no end"]
    assert not any(ended)


def test_what_was_written_before_the_manager_kills_is_told(manager, heard):
    def write_and_stay() -> None:
        # Not by print(): a signal that comes while "up" is being written finds the stream busy, and raises.
        signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"told to end\n"))
        print("up")
        hear_signals()

    manager.add_task(Task(write_and_stay))
    tick_until(manager, lambda: heard)
    manager.close()
    assert [line for *_, line in heard] == ["up", "told to end"]


def test_commands_their_children_and_wrapped_tasks_are_heard(manager, heard, speak):
    manager.add_task(Task.command(["sh", "-c", "echo said; (echo child >&2)"], name="command"))
    manager.add_task(Task(os.system, "echo shell", name="child"))
    manager.add_task(Task(speak, "nice", name="wrapped", wrapper=("sh", "-c", 'echo wrapper; exec "$@"', "-")))
    manager.run(DEADLINE)
    assert sorted(heard) == [
        ("child", "stdout", "shell"),
        ("command", "stderr", "child"),
        ("command", "stdout", "said"),
        ("wrapped", "stderr", "nice err"),
        ("wrapped", "stdout", "nice out"),
        ("wrapped", "stdout", "wrapper"),
    ]


def test_programs_of_the_command_launcher_are_heard(short_path, speak):
    heard: Heard = []
    launcher = CommandLauncher(["nice"])
    with ProcessManager(f"unix://{short_path}/m", launcher=launcher, on_output=lambda *o: heard.append(o)) as manager:
        task = manager.add_task(Task(speak, "one"))
        task.result(DEADLINE)
    assert sorted(heard) == [(task, "stderr", "one err"), (task, "stdout", "one out")]


def test_a_task_that_is_not_heard_waits_instead_of_filling_the_memory(manager, heard):
    written = 4 * 1024 * 1024

    def flood() -> int:
        line = b"x" * 1023 + b"\n"
        return sum(os.write(1, line) for _ in range(written // len(line)))

    task = manager.add_task(Task(flood))
    tick_until(manager, lambda: heard)
    before = len(heard)
    with task.identity.open() as process:
        assert not process.wait(0.2), "four megabytes are in no pipe, and nobody reads"
    assert len(heard) == before
    assert task.result(DEADLINE) == written
    assert len(heard) == written // 1024


def test_a_grandchild_that_goes_on_writing_holds_nobody_up(manager, heard):
    def leave_somebody() -> None:
        reader, writer = os.pipe()
        if not os.fork():
            os.setsid()
            for number in count():
                os.write(1, b"%d\n" % number)
                os.write(writer, b"up") if not number else None
        os.read(reader, 2)

    manager.add_task(Task(leave_somebody)).result(DEADLINE)
    numbers = [int(line) for *_, line in heard[:-1]]  # The last one may have been cut by a signal.
    assert numbers == list(range(len(numbers)))
    assert heard


def test_a_task_that_closes_its_output_early_goes_on(manager, heard):
    def close_and_work() -> int:
        print("last")
        sys.stdout.flush()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        print("unheard")
        return 7

    assert manager.add_task(Task(close_and_work)).result(DEADLINE) == 7
    assert heard == [("close_and_work", "stdout", "last")]


def test_a_listener_that_raises_is_reported_and_stops_nobody(manager, heard, speak, caplog):
    def fail(task: Task, stream: str, line: str) -> None:
        raise ValueError(f"cannot bear {line}")

    assert manager.add_task(Task(speak, "one", on_output=fail)).result(DEADLINE) is None
    assert len(heard) == 2
    assert sorted(str(record.exc_info[1]) for record in caplog.records) == [
        "cannot bear one err",
        "cannot bear one out",
    ]


def test_an_interrupted_listener_loses_only_its_own_line(manager, heard):
    def interrupt(task: Task, stream: str, line: str) -> None:
        if line == "1":
            raise KeyboardInterrupt

    def write_and_stay() -> None:
        os.write(1, b"0\n1\n2\n3\n")
        signal.pause()

    task = manager.add_task(Task(write_and_stay, on_output=interrupt))
    with pytest.raises(KeyboardInterrupt):
        manager.run(DEADLINE)
    tick_until(manager, lambda: [line for *_, line in heard] == ["0", "2", "3"])
    assert task.state is State.RUNNING
    assert [line.text for line in task.lines] == ["0", "1", "2", "3"]


def test_who_is_interrupted_in_the_last_line_finds_the_task_ended(manager, monkeypatch):
    monkeypatch.setattr(Streams, "read", lambda _: None)  # As if the line came just before the end.

    def interrupt(task: Task, stream: str, line: str) -> None:
        raise KeyboardInterrupt

    task = manager.add_task(Task(os.write, 1, b"no end", on_output=interrupt))
    with pytest.raises(KeyboardInterrupt):
        manager.run(DEADLINE)
    assert task.state is State.DONE
    assert not manager.busy


def test_a_listener_may_cancel_its_task_and_may_not_tick(manager, caplog):
    def stay() -> None:
        print("stop me")
        signal.pause()

    def cancel(task: Task, stream: str, line: str) -> None:
        assert task.cancel()
        manager.tick()

    task = manager.add_task(Task(stay, on_output=cancel))
    manager.run(DEADLINE)
    assert task.state is State.CANCELLED
    assert [record.exc_info[0] for record in caplog.records] == [ReentrantTick]


def test_a_last_line_that_makes_its_listener_cancel_changes_no_result(manager):
    task = manager.add_task(Task(os.write, 1, b"no end", on_output=lambda task, *_: task.cancel()))
    assert task.result(DEADLINE) == 6


def test_each_attempt_begins_with_no_lines(manager, heard):
    def speak_and_fail() -> None:
        from doorman import current_task

        print("attempt", current_task().attempt)
        assert current_task().attempt == 2

    task = manager.add_task(Task(speak_and_fail, retries=1))
    task.result(DEADLINE)
    assert [line for *_, line in heard] == ["attempt 1", "attempt 2"]
    assert [line.text for line in task.lines] == ["attempt 2"]


def test_a_task_may_be_streamed_alone_or_be_left_out(short_path, manager, heard, speak, capfd):
    manager.add_task(Task(len, "mute", stream=False)).result(DEADLINE)
    unheard = manager.add_task(Task.command(["true"], stream=False))
    unheard.result(DEADLINE)
    assert (heard, unheard.lines) == ([], ())
    with ProcessManager(f"unix://{short_path}/other") as other:
        alone, quiet = (other.add_task(Task(speak, word, stream=word == "alone")) for word in ("alone", "quiet"))
        other.run(DEADLINE)
    assert sorted(line.text for line in alone.lines) == ["alone err", "alone out"]
    assert quiet.lines == ()
    assert capfd.readouterr() == ("quiet out\n", "quiet err\n")


def test_what_is_streamed_is_also_in_the_files(short_path, speak):
    with ProcessManager(f"unix://{short_path}/m", log_path=short_path, on_output=lambda *_: None) as manager:
        task = manager.add_task(Task(speak, "both"))
        task.result(DEADLINE)
    assert [path.read_text() for path in task.output] == ["both out\n", "both err\n"]
    assert len(task.lines) == 2


def test_a_file_that_cannot_be_written_is_told_once_and_stops_nobody(short_path, heard, speak, caplog):
    (short_path / "stdout.log").symlink_to("/dev/full")
    where = f"unix://{short_path}/m"
    with ProcessManager(where, log_path=short_path, shared_log=True, on_output=lambda *o: heard.append(o)) as manager:
        manager.add_task(Task(os.system, "echo one; sleep 0.1; echo two")).result(DEADLINE)
    assert [line for *_, line in heard] == ["one", "two"]
    assert ["No space left" in record.getMessage() for record in caplog.records] == [True]


def test_tasks_that_cannot_have_a_pipe_wait_until_they_can(manager, heard, speak, monkeypatch):
    real = os.pipe
    failures = iter(range(3))

    def pipe() -> tuple[int, int]:
        if next(failures, None) is not None:
            raise OSError(24, "Too many open files")
        return real()

    monkeypatch.setattr("doorman._scheduler.output.os.pipe", pipe)
    manager.add_task(Task(speak, "one")).result(DEADLINE)
    assert next(failures, None) is None
    assert len(heard) == 2


def open_descriptors() -> set[int]:
    listed = list(Path("/proc/self/fd").iterdir())
    return {int(entry.name) for entry in listed if entry.exists()}  # that of the listing itself is closed


def test_no_descriptor_is_left_behind(manager, speak):
    manager.add_task(Task(speak, "one")).result(DEADLINE)
    before = open_descriptors()
    for _ in range(5):
        manager.add_task(Task(speak, "one", cwd="/nowhere")).exception(DEADLINE)
        manager.add_task(Task(speak, "one")).result(DEADLINE)
    assert len(open_descriptors()) == len(before)


def test_two_hundred_pipes_have_their_turn(manager, heard, speak):
    streams = Streams(Logs(None), launcher_of(manager), None)
    tasks = [Task(speak, f"{number}", stream=True) for number in range(100)]
    outputs = [streams.open(task, task.id) for task in tasks]
    for number, (out, err) in enumerate(outputs):
        os.write(out, b"out %d\n" % number)
        os.write(err, b"err %d\n" % number)
    for _ in range(4):
        streams.read()
    assert [sorted(line.text for line in task.lines) for task in tasks] == [
        [f"err {number}", f"out {number}"] for number in range(100)
    ]
    for task, output in zip(tasks, outputs, strict=True):
        output.close()
        streams.finish_attempt(task.id)
    streams.close()


@pytest.mark.parametrize("listener", ["no function", print])
def test_a_listener_is_a_plain_function(listener):
    async def later(*_: object) -> None: ...

    wrong = later if listener is print else listener
    with pytest.raises(TypeError, match="on_output is called"):
        Task(print, on_output=wrong)
    with pytest.raises(TypeError, match="on_output is called"):
        ProcessManager(on_output=wrong)


def test_a_pipe_that_a_fork_of_the_manager_still_holds_makes_no_noise(manager, speak):
    streams = Streams(Logs(None), launcher_of(manager), None)
    task = Task(speak, "one", stream=True)
    before = open_descriptors()
    with contextlib.closing(streams.open(task, "1")) as output:
        pipes = [each for each in open_descriptors() - before if Path(f"/proc/self/fd/{each}").is_fifo()]
        inherited = [os.dup(descriptor) for descriptor in pipes if descriptor not in output]
        assert len(inherited) == 2
        streams.finish_attempt("1")
        os.write(output.stdout, b"to nobody")
        assert select.select([streams.waker], [], [], 0) == ([], [], [])
    for descriptor in inherited:
        os.close(descriptor)
    streams.close()


def test_a_task_that_detaches_is_not_streamed():
    assert not is_streamed(Task(print, detach=True), print)
    assert is_streamed(Task(print), print)
    with pytest.raises(ValueError, match="log_path"):
        Task(print, detach=True, stream=True)
