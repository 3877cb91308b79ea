"""Result: what comes back from a process, and what cannot."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator

import pytest
from waiting import DEADLINE

from doorman import ProcessManager, State, Task
from doorman._worker.outcome import TaskOutcome, failed, returned
from doorman.errors import ResultTimeout, TaskFailed, WorkerDied


@pytest.fixture
def manager(short_path) -> Iterator[ProcessManager]:
    with ProcessManager(f"unix://{short_path}/m") as manager:
        yield manager


def ended(manager: ProcessManager, task: Task) -> Task:
    manager.add_task(task)
    manager.run(DEADLINE)
    assert task.done()
    return task


def test_result_called_before_the_end_drives_the_manager(manager):
    task = manager.add_task(Task(lambda: "done"))
    assert task.result(DEADLINE) == "done"
    assert not manager.busy


def test_result_can_be_asked_for_twice(manager):
    task = ended(manager, Task(lambda: [1]))
    assert task.result() == task.result() == [1]
    assert task.exception() is None


def test_result_times_out_and_the_task_goes_on(manager):
    task = manager.add_task(Task(signal.pause))
    with pytest.raises(ResultTimeout, match="pause"):
        task.result(0.05)
    assert not task.done()
    assert task.cancel()


def test_result_of_a_task_that_was_never_added_does_not_wait():
    with pytest.raises(ValueError, match="has not been added"):
        Task(print).result()


def test_result_in_another_thread_is_refused_while_the_task_runs(manager):
    task = manager.add_task(Task(signal.pause))
    raised: list[BaseException] = []

    def ask() -> None:
        try:
            task.result(DEADLINE)
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(DEADLINE)
    assert "only the thread that owns the manager" in str(raised[0])


def test_an_exception_is_raised_with_the_traceback_of_its_process_as_cause(manager):
    def broken() -> None:
        raise LookupError("no such thing", 7)

    task = ended(manager, Task(broken))
    with pytest.raises(LookupError) as raised:
        task.result()
    assert raised.value.args == ("no such thing", 7)
    assert isinstance(raised.value.__cause__, TaskFailed)
    assert "in broken" in str(raised.value.__cause__)
    assert task.exception() is raised.value
    assert task.state is State.FAILED


def test_the_causes_and_notes_of_an_exception_are_told(manager):
    def broken() -> None:
        try:
            raise KeyError("first")
        except KeyError as first:
            second = ValueError("second")
            second.add_note("by the way")
            raise second from first

    error = ended(manager, Task(broken)).exception()
    assert error.__notes__ == ["by the way"]
    assert "KeyError: 'first'" in str(error.__cause__)


def test_an_exception_that_cannot_be_pickled_is_told_as_text(manager):
    def broken() -> None:
        error = ValueError("with a lock")
        error.lock = threading.Lock()
        raise error

    with pytest.raises(TaskFailed, match="ValueError: with a lock"):
        ended(manager, Task(broken)).result()


def test_an_exception_that_cannot_be_unpickled_is_told_as_text(manager):
    def broken() -> None:
        class Picky(Exception):
            def __init__(self, one: int, two: int) -> None:
                super().__init__(f"{one} and {two}")

        raise Picky(1, 2)

    with pytest.raises(TaskFailed, match="Picky: 1 and 2"):
        ended(manager, Task(broken)).result()


def test_an_exception_that_unpickles_to_something_else_is_told_as_text(manager):
    def broken() -> None:
        class Impostor(Exception):
            def __reduce__(self) -> tuple[object, ...]:
                return str, ("not an exception",)

        raise Impostor("of its own kind")

    with pytest.raises(TaskFailed, match="of its own kind"):
        ended(manager, Task(broken)).result()


def test_a_group_of_exceptions_comes_back_whole(manager):
    def broken() -> None:
        raise ExceptionGroup("both", [ValueError(1), KeyError(2)])

    with pytest.raises(ExceptionGroup) as raised:
        ended(manager, Task(broken)).result()
    assert [type(error) for error in raised.value.exceptions] == [ValueError, KeyError]


def test_a_value_that_cannot_be_pickled_fails_the_task_and_names_its_type(manager):
    task = ended(manager, Task(threading.Lock))
    with pytest.raises(TypeError, match=r"returned a lock that cannot be pickled"):
        task.result()
    assert task.state is State.FAILED


def test_a_value_that_cannot_be_unpickled_here_fails_the_task_and_tells_why(manager):
    parent = os.getpid()

    def picky() -> object:
        def opened() -> None:
            if os.getpid() == parent:
                raise OSError("not in this process")

        class Value:
            def __reduce__(self) -> tuple[object, ...]:
                return opened, ()

        return Value()

    task = ended(manager, Task(picky))
    with pytest.raises(TaskFailed, match="cannot be unpickled here") as raised:
        task.result()
    assert "not in this process" in str(raised.value)
    assert task.state is State.FAILED


@pytest.mark.parametrize("code", [None, 0, False, 256])
def test_leaving_without_an_error_is_returning_nothing(manager, code):
    task = ended(manager, Task(sys.exit, code))
    assert task.result() is None
    assert task.state is State.DONE
    assert task.exit_code == 0


@pytest.mark.parametrize(
    ("code", "exit_code"), [(3, 3), (True, 1), ("wrong", 1), ("", 1), (0.0, 1), (-1, 255), (1 << 70, 255)]
)
def test_leaving_with_an_error_is_dying(manager, code, exit_code):
    task = ended(manager, Task(sys.exit, code))
    with pytest.raises(WorkerDied) as raised:
        task.result()
    assert raised.value.exit_code == task.exit_code == exit_code
    assert raised.value.pid == task.identity.pid


def test_a_process_that_vanishes_is_dying_even_with_exit_code_0(manager):
    task = ended(manager, Task(os._exit, 0))
    with pytest.raises(WorkerDied, match="exit code 0"):
        task.result()
    assert task.state is State.FAILED


def test_a_process_that_is_killed_is_dying(manager):
    task = ended(manager, Task(lambda: os.kill(os.getpid(), signal.SIGKILL)))
    with pytest.raises(WorkerDied, match="killed by SIGKILL") as raised:
        task.result()
    assert raised.value.signal is signal.SIGKILL
    assert (task.exit_code, task.signal) == (None, signal.SIGKILL)


def test_an_interrupt_of_the_process_does_not_look_like_one_of_the_manager(manager):
    def interrupted() -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(TaskFailed, match="KeyboardInterrupt"):
        ended(manager, Task(interrupted)).result()


def test_an_outcome_survives_its_journey():
    value, error = TaskOutcome.decode(returned({"a": 1}).encode()).unpickle()
    assert (value, error) == ({"a": 1}, None)
    value, error = TaskOutcome.decode(failed(KeyError("b")).encode()).unpickle()
    assert value is None
    assert isinstance(error, KeyError)


def test_nothing_is_not_the_same_as_no_value():
    assert TaskOutcome.decode(returned(None).encode()).unpickle() == (None, None)


class Leaving:
    """A value that is fine where it was made, and asks whoever reads it to leave."""

    def __init__(self, leaving: type[BaseException]) -> None:
        self.leaving = leaving

    def __reduce__(self) -> tuple[object, ...]:
        return leave, (self.leaving,)


def leave(leaving: type[BaseException]) -> None:
    raise leaving("now")


@pytest.mark.parametrize("leaving", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_value_that_asks_its_reader_to_leave_is_an_error_of_its_task_only(manager, leaving):
    task, other = manager.add_task(Task(Leaving, leaving)), manager.add_task(Task(divmod, 7, 2))
    manager.run(DEADLINE)
    with pytest.raises(TaskFailed, match=f"cannot be unpickled here:(.|\\n)*{leaving.__name__}: now"):
        task.result(0)
    assert other.result(0) == (3, 1)


@pytest.mark.parametrize("leaving", [SystemExit, KeyboardInterrupt])
def test_an_error_that_asks_its_reader_to_leave_is_told_as_text(leaving):
    error = ValueError("first", Leaving(leaving))
    assert failed(error).error is not None
    _, told = failed(error).unpickle()
    assert isinstance(told, TaskFailed)
    assert "ValueError: ('first'" in str(told)


def test_a_ctrl_c_while_a_value_is_read_is_not_lost():
    class Pressed:
        def __reduce__(self) -> tuple[object, ...]:
            return signal.raise_signal, (signal.SIGINT,)

    outcome = returned(Pressed())
    with pytest.raises(KeyboardInterrupt):
        outcome.unpickle()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_that_cannot_be_changed_has_its_cause_all_the_same():
    class Frozen(Exception):
        def __setattr__(self, name: str, value: object) -> None:
            raise AttributeError(f"{name} cannot be set")

    _, error = failed(Frozen(3)).unpickle()
    assert error.args == (3,)
    assert isinstance(error.__cause__, TaskFailed)


def test_an_error_whose_traceback_cannot_be_read_is_reported_by_its_class():
    class Hidden(Exception):
        @property
        def __traceback__(self) -> None:
            raise LookupError("hidden")

    outcome = failed(Hidden(3))
    assert (outcome.value, outcome.traceback) == (None, Hidden.__qualname__)


@pytest.mark.parametrize(
    ("known", "text"),
    [
        ((None, None, None, "cannot run x"), "no process was started: cannot run x"),
        ((None, 127, None), "no process was started, exit code 127"),
        ((5, None, None), "process 5 ended without a result; its exit status is unknown"),
        ((5, 3, None, "why"), "process 5 ended without a result, exit code 3: why"),
        ((5, None, 9), "process 5 ended without a result, killed by SIGKILL"),
    ],
)
def test_what_is_known_of_a_death_is_told(known, text):
    assert str(WorkerDied(*known)) == str(pickle.loads(pickle.dumps(WorkerDied(*known)))) == text
