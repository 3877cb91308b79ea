"""The table of an attempt's life: every event in every phase, the invariants, and the cases of docs/identity.md."""

from __future__ import annotations

import ast
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from doorman import Backoff, Intensity, State, Task
from doorman._scheduler import lifecycle
from doorman._scheduler.attempt import Attempt, Timeouts
from doorman._scheduler.lifecycle import (
    EARLY,
    Admitted,
    Adopted,
    AdoptedUnverified,
    CancelRequested,
    Challenge,
    CloseProcess,
    CollectOutput,
    CountRefusal,
    Deadline,
    FailRequested,
    FilesRead,
    Finish,
    FreeSlot,
    HelloReceived,
    JournalEntry,
    Launch,
    LaunchAccepted,
    LaunchDeclined,
    LaunchInvalid,
    ManagerClosed,
    ManagerClosing,
    OpenOutcome,
    OutcomeOpened,
    Phase,
    ProcessGone,
    ProgressReceived,
    ProofRefused,
    Proven,
    ReadFiles,
    Reply,
    ReportProgress,
    Requeue,
    ResultReceived,
    SetDeadline,
    SetExit,
    SetState,
    Signal,
    SignalTarget,
    StopSiblings,
    TakeSlot,
    VerifyHello,
    WriteRecord,
    step,
)
from doorman.errors import RestartedTooOften, TaskDetached, WorkerDied
from doorman.launcher import DescendantsLeft, Exited, Launched, LaunchFailed

GRACE, HELLO = 3.0, 30.0
NOW = 1000.0
ID = "7.1-abc"
PROCESS: Any = SimpleNamespace(pid=70, inode=700)
OTHER: Any = SimpleNamespace(pid=71, inode=710)
IDENTITY: Any = SimpleNamespace(pid=70, inode=700)
CHILD: Any = SimpleNamespace(id="child")
STRANGER: Any = SimpleNamespace(id="stranger")
OUTCOME: Any = object()
PROGRESS: Any = object()
ERROR = ValueError("the user's")
KILL = Signal(signal.SIGKILL, SignalTarget.ALL)
TERM = Signal(signal.SIGTERM, SignalTarget.TASK)
STOPPED = [WriteRecord(JournalEntry.STOPPED), SetState(State.STOPPING, NOW)]
KILL_LATER = SetDeadline(Deadline.KILL, NOW + GRACE)
REPLAYED = CountRefusal("another process has already proven this attempt")

EVENTS: list[Any] = [
    Admitted(),
    LaunchAccepted(),
    LaunchDeclined("busy"),
    LaunchInvalid(ERROR),
    LaunchFailed(ID, "no"),
    LaunchFailed(ID, "no", back_pressure=True),
    Launched(ID, PROCESS),
    HelloReceived({"pid": 70}, CHILD),
    Proven(IDENTITY, CHILD),
    Proven(IDENTITY, STRANGER),
    ProofRefused("forged"),
    ProgressReceived(1, PROGRESS),
    ProgressReceived(2, PROGRESS),
    ResultReceived(OUTCOME),
    DescendantsLeft(ID),
    Exited(ID, 0, None),
    Exited(ID, 3, None),
    Exited(ID, None, 9),
    Exited(ID, None, None),
    FilesRead(None, None),
    FilesRead(OUTCOME, Exited(ID, 0, None)),
    OutcomeOpened(42, None),
    OutcomeOpened(None, ERROR),
    CancelRequested(),
    FailRequested(ERROR),
    *Deadline,
    ManagerClosing(),
    ManagerClosed(),
    Adopted(PROCESS, None),
    AdoptedUnverified(),
    ProcessGone(),
]


def made(*events: Any, adopted: bool = False, **policy: Any) -> Attempt:
    """Return an attempt of a task with this policy to which these events have happened."""
    number = policy.pop("number", 1)
    task = Task.command(policy.pop("argv"), **policy) if "argv" in policy else Task(len, "", **policy)
    attempt = Attempt(task, b"", number, Timeouts(GRACE, HELLO), salt=b"salt" if adopted else b"")
    for event in events:
        step(attempt, event, NOW)
    return attempt


LAUNCHED = (Admitted(), LaunchAccepted(), Launched(ID, PROCESS))
RUNNING = (*LAUNCHED, Proven(IDENTITY, CHILD))
PATHS: dict[Phase, list[tuple[Any, ...]]] = {
    Phase.LAUNCHING: [(Admitted(), LaunchAccepted())],
    Phase.PROVING: [LAUNCHED],
    Phase.RUNNING: [RUNNING, (*RUNNING, ResultReceived(OUTCOME))],
    Phase.STOPPING: [
        (Admitted(), CancelRequested()),
        (*LAUNCHED, CancelRequested()),
        (*RUNNING, CancelRequested()),
        (*RUNNING, FailRequested(ERROR)),
        (*RUNNING, Deadline.EXPIRY),
        (*RUNNING, Deadline.EXPIRY, ResultReceived(OUTCOME)),
    ],
    Phase.EXITED: [(*RUNNING, Exited(ID, 1, None)), (*RUNNING, ResultReceived(OUTCOME), Exited(ID, 0, None))],
    Phase.ENDED: [(Admitted(), LaunchFailed(ID, "no")), (*RUNNING, Exited(ID, 1, None), ManagerClosed())],
}
"""Ways into each phase."""


def ended(state: State, value: Any = None, error: Any = None, *, entry: bool = True) -> list[Any]:
    """Return the actions by which an attempt and its task end."""
    return [
        CollectOutput(),
        *([WriteRecord(JournalEntry.ENDED, state, value, error)] if entry else []),
        FreeSlot(),
        CloseProcess(),
        Finish(state, value, error),
    ]


def again(why: str | None = None) -> list[Any]:
    """Return the actions by which an attempt that does not count ends, and its task waits again."""
    requeue = Requeue(0.0, counted=False, why=why)
    return [CollectOutput(), WriteRecord(JournalEntry.REQUEUED), FreeSlot(), CloseProcess(), requeue]


def retried(actions: list[Any]) -> tuple[float, State | None]:
    """Return after how long a task is tried again whose attempt ended by these actions, and as what that ended."""
    requeue = actions[-1]
    assert actions[:-1] == again()[:-1]
    assert isinstance(requeue, Requeue)
    assert (requeue.counted, requeue.why) == (True, None)
    return requeue.delay, requeue.state


def of_died(error: Any) -> tuple[Any, ...]:
    assert isinstance(error, WorkerDied)
    return error.pid, error.exit_code, error.signal


def finish_of(actions: list[Any]) -> Finish:
    """Return the end among the actions, which has to be the last, and the same as in the journal."""
    finish = actions[-1]
    assert isinstance(finish, Finish)
    [entry] = [action for action in actions if isinstance(action, WriteRecord) and action.entry is JournalEntry.ENDED]
    assert (entry.state, entry.value, entry.error) == (finish.state, finish.value, finish.error)
    return finish


# -- the life of an attempt that goes well, and each way in which it does not -------------------------------------


def test_the_whole_life_of_an_attempt_that_goes_well():
    attempt = made(expires_in=9.0)
    life = [
        (Admitted(), [WriteRecord(JournalEntry.STARTED), TakeSlot(), Launch()]),
        (LaunchAccepted(), []),
        (
            Launched(ID, PROCESS),
            [
                WriteRecord(JournalEntry.LAUNCHED),
                SetState(State.PROVING, NOW),
                SetDeadline(Deadline.HELLO, NOW + HELLO),
            ],
        ),
        (HelloReceived({"pid": 70}, CHILD), [VerifyHello({"pid": 70}, CHILD)]),
        (
            Proven(IDENTITY, CHILD),
            [
                WriteRecord(JournalEntry.PROVEN),
                SetState(State.RUNNING, NOW),
                SetDeadline(Deadline.EXPIRY, NOW + 9.0),
                Reply("go", CHILD),
            ],
        ),
        (ProgressReceived(1, PROGRESS), [ReportProgress(PROGRESS)]),
        (ResultReceived(OUTCOME), [WriteRecord(JournalEntry.OUTCOME)]),
        (Exited(ID, 0, None), [SetExit(Exited(ID, 0, None)), OpenOutcome()]),
        (OutcomeOpened(42, None), ended(State.DONE, 42)),
    ]
    for event, actions in life:
        assert step(attempt, event, NOW) == actions, event
    assert attempt.phase is Phase.ENDED


def test_siblings_are_stopped_once_the_launcher_has_accepted_the_request():
    attempt = made(Admitted(), stops_siblings=True)
    assert step(attempt, LaunchAccepted(), NOW) == [StopSiblings()]


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (LaunchDeclined("the zygote is busy"), "the zygote is busy"),
        (LaunchFailed(ID, "EAGAIN", back_pressure=True), "no process can be started now: EAGAIN"),
    ],
)
def test_where_no_process_can_be_had_the_task_waits_where_it_stood_and_the_attempt_does_not_count(event, why):
    attempt = made(Admitted())
    assert step(attempt, event, NOW) == again(why)
    assert not attempt.counted


def test_a_launch_that_fails_counts_and_may_be_tried_again():
    actions = step(made(Admitted()), LaunchFailed(ID, "no such folder"), NOW)
    assert of_died(finish_of(actions).error) == (None, None, None)
    actions = step(made(Admitted(), retries=1), LaunchFailed(ID, "no such folder"), NOW)
    assert retried(actions) == (0.0, State.FAILED)


def test_a_launch_that_fails_after_a_cancel_is_the_end_of_the_cancelled_task():
    for pressure in (False, True):
        attempt = made(Admitted(), CancelRequested())
        assert step(attempt, LaunchFailed(ID, "no", pressure), NOW) == ended(State.CANCELLED)


def test_a_request_that_cannot_be_written_fails_its_task_for_good():
    assert step(made(Admitted(), retries=5), LaunchInvalid(ERROR), NOW) == ended(State.FAILED, None, ERROR)


def test_a_death_without_a_result_waits_for_one_that_may_be_on_its_way():
    attempt = made(*RUNNING)
    exited = Exited(ID, None, signal.SIGKILL)
    assert step(attempt, exited, NOW) == [SetExit(exited), SetDeadline(Deadline.RESULT, NOW + 0.5)]
    actions = step(attempt, Deadline.RESULT, NOW)
    assert of_died(finish_of(actions).error) == (70, None, signal.SIGKILL)


def test_a_result_after_the_exit_ends_the_wait():
    attempt = made(*RUNNING, Exited(ID, 0, None))
    assert step(attempt, ResultReceived(OUTCOME), NOW) == [WriteRecord(JournalEntry.OUTCOME), OpenOutcome()]
    assert step(attempt, OutcomeOpened(1, None), NOW) == ended(State.DONE, 1)
    assert step(attempt, Deadline.RESULT, NOW) == []


def test_an_exit_code_decides_about_a_command_alone():
    command = {"argv": ["true"]}
    assert step(made(*RUNNING, **command), Exited(ID, 0, None), NOW)[1:] == ended(State.DONE, 0)
    actions = step(made(*RUNNING, **command), Exited(ID, 3, None), NOW)
    assert of_died(finish_of(actions).error) == (70, 3, None)
    assert finish_of(step(made(*LAUNCHED, **command), Exited(ID, 0, None), NOW)).state is State.FAILED


def test_what_the_user_code_raised_fails_this_task_only():
    attempt = made(*RUNNING, ResultReceived(OUTCOME), Exited(ID, 1, None))
    assert step(attempt, OutcomeOpened(None, ERROR), NOW) == ended(State.FAILED, None, ERROR)
    attempt = made(*RUNNING)
    assert step(attempt, FailRequested(ERROR), NOW) == [*STOPPED, TERM, KILL_LATER]
    assert finish_of(step(attempt, Exited(ID, None, 15), NOW)) == Finish(State.FAILED, None, ERROR)


def test_an_exit_that_cannot_be_known_is_a_loss():
    attempt = made(*RUNNING, Exited(ID, None, None))
    assert finish_of(step(attempt, Deadline.RESULT, NOW)).state is State.LOST


# -- stopping ------------------------------------------------------------------------------------------------------


def test_a_running_task_is_asked_to_end_and_killed_after_the_grace():
    attempt = made(*RUNNING)
    assert step(attempt, CancelRequested(), NOW) == [*STOPPED, TERM, KILL_LATER]
    assert step(attempt, CancelRequested(), NOW) == []
    assert step(attempt, Deadline.KILL, NOW) == [KILL]
    assert step(attempt, Exited(ID, None, 9), NOW)[1:] == ended(State.CANCELLED)


def test_a_process_that_has_not_proven_itself_has_no_grace():
    assert step(made(*LAUNCHED), CancelRequested(), NOW) == [*STOPPED, KILL, KILL_LATER]


def test_a_process_that_comes_after_the_cancel_is_killed():
    attempt = made(Admitted(), CancelRequested())
    assert step(attempt, Launched(ID, PROCESS), NOW) == [WriteRecord(JournalEntry.LAUNCHED), KILL]
    assert attempt.launched is PROCESS


def test_a_result_counts_though_the_task_was_cancelled():
    attempt = made(*RUNNING, CancelRequested())
    assert step(attempt, ResultReceived(OUTCOME), NOW) == [WriteRecord(JournalEntry.OUTCOME)]
    assert step(attempt, Exited(ID, 0, None), NOW)[-1] == OpenOutcome()
    assert step(attempt, OutcomeOpened(5, None), NOW) == ended(State.DONE, 5)


def test_a_cancel_while_a_result_may_still_come_signals_nothing():
    attempt = made(*RUNNING, Exited(ID, 1, None))
    assert step(attempt, CancelRequested(), NOW) == STOPPED
    assert step(attempt, Deadline.RESULT, NOW) == ended(State.CANCELLED)


def test_expiry_stops_user_code_and_its_result_counts_no_more():
    attempt = made(*RUNNING)
    assert step(attempt, Deadline.EXPIRY, NOW) == [*STOPPED, TERM, KILL_LATER]
    assert step(attempt, ResultReceived(OUTCOME), NOW) == [WriteRecord(JournalEntry.OUTCOME)]
    assert step(attempt, Exited(ID, 0, None), NOW)[1:] == ended(State.EXPIRED)


def test_expiry_is_about_user_code_alone():
    for early in ((Admitted(),), LAUNCHED, (*RUNNING, Exited(ID, 0, None))):
        assert step(made(*early), Deadline.EXPIRY, NOW) == []


def test_a_process_that_lingers_after_its_result_gets_the_grace_and_ends_as_its_result_says():
    attempt = made(*RUNNING, ResultReceived(OUTCOME))
    assert step(attempt, Deadline.EXPIRY, NOW) == [SetDeadline(Deadline.LINGER, NOW + GRACE)]
    assert step(attempt, Deadline.LINGER, NOW) == [*STOPPED, TERM, KILL_LATER]
    assert step(attempt, Exited(ID, None, 15), NOW)[-1] == OpenOutcome()
    assert step(attempt, OutcomeOpened(5, None), NOW) == ended(State.DONE, 5)


# -- another try -----------------------------------------------------------------------------------------------------


def death(attempt: Attempt, now: float = NOW) -> list[Any]:
    step(attempt, Exited(ID, 1, None), now)
    return step(attempt, Deadline.RESULT, now)


def test_retries_are_counted_and_only_failures_are_retried():
    assert retried(death(made(*RUNNING, retries=1))) == (0.0, State.FAILED)
    assert finish_of(death(made(*RUNNING, retries=1, number=2))).state is State.FAILED
    expired = made(*RUNNING, Deadline.EXPIRY, retries=1)
    assert step(expired, Exited(ID, None, 15), NOW)[1:] == ended(State.EXPIRED)
    backoff = Backoff(first=2.0, jitter=0.0)
    assert retried(death(made(*RUNNING, retries=1, backoff=backoff))) == (2.0, State.FAILED)


@pytest.mark.parametrize("event", [CancelRequested(), FailRequested(ERROR), ManagerClosing()])
def test_what_was_stopped_on_purpose_is_not_tried_again(event):
    for policy in ({"retries": 9}, {"restart": "permanent"}):
        attempt = made(*RUNNING, event, **policy)
        finish_of(step(attempt, Exited(ID, None, 15), NOW))
        attempt = made(*RUNNING, Deadline.EXPIRY, event, **policy)
        assert finish_of(step(attempt, Exited(ID, None, 15), NOW)).state is State.EXPIRED


def test_restarts_are_bound_by_their_intensity():
    task = Task(len, "", restart="permanent", intensity=Intensity(restarts=2, seconds=5.0))
    ends = []
    for number in (1, 2, 3):
        attempt = Attempt(task, b"", number, Timeouts(GRACE, HELLO))
        for event in (*RUNNING, ResultReceived(OUTCOME), Exited(ID, 0, None)):
            step(attempt, event, NOW)
        ends.append(step(attempt, OutcomeOpened(1, None), NOW))
    assert [retried(actions) for actions in ends[:2]] == [(0.0, State.DONE)] * 2
    assert isinstance(finish_of(ends[2]).error, RestartedTooOften)


# -- detached tasks, and recovery -------------------------------------------------------------------------------------


def test_a_detached_process_runs_on_when_its_manager_is_left_and_nothing_is_written_of_that():
    [output, slot, close, finish] = step(made(*RUNNING, detach=True), ManagerClosing(), NOW)
    assert (output, slot, close) == (CollectOutput(), FreeSlot(), CloseProcess(leave=True))
    assert isinstance(finish, Finish)
    assert finish.state is State.LOST
    assert isinstance(finish.error, TaskDetached)


def test_a_detached_process_that_has_not_proven_itself_or_is_being_stopped_is_not_left():
    assert step(made(*LAUNCHED, detach=True), ManagerClosing(), NOW) == [*STOPPED, KILL, KILL_LATER]
    assert step(made(*RUNNING, CancelRequested(), detach=True), ManagerClosing(), NOW) == []


def test_the_files_of_a_detached_process_are_read_when_it_has_ended():
    attempt = made(*RUNNING, detach=True)
    assert step(attempt, Exited(ID, 0, None), NOW) == [SetExit(Exited(ID, 0, None)), ReadFiles()]
    assert step(attempt, FilesRead(OUTCOME, None), NOW) == [WriteRecord(JournalEntry.OUTCOME), OpenOutcome()]


def test_the_files_of_a_detached_process_are_read_once_more_before_it_is_given_up():
    attempt = made(*RUNNING, detach=True, adopted=True)
    step(attempt, Exited(ID, None, None), NOW)
    assert step(attempt, FilesRead(None, None), NOW) == [SetDeadline(Deadline.RESULT, NOW + 0.5)]
    assert step(attempt, Deadline.RESULT, NOW) == [ReadFiles()]
    end = Exited(ID, 4, None)
    [shown, *rest] = step(attempt, FilesRead(None, end), NOW)
    assert shown == SetExit(end)
    assert of_died(finish_of(rest).error) == (70, 4, None)


def replayed(*events: Any, **policy: Any) -> Attempt:
    """Return an attempt of an earlier manager from its journal."""
    return made(*events, adopted=True, **policy)


def test_an_attempt_that_never_proved_itself_begins_anew_after_the_manager_died():
    for events in ((), (Launched(ID, PROCESS),)):
        assert step(replayed(*events), ProcessGone(), NOW) == again()


def test_a_stop_of_an_attempt_that_never_proved_itself_is_carried_out_by_the_next_manager():
    shown: list[Any] = [SetState(State.LAUNCHING, NOW), SetState(State.STOPPING, NOW)]
    assert step(replayed(CancelRequested()), ProcessGone(), NOW) == [*shown, *ended(State.CANCELLED)]


def test_what_ran_when_its_manager_died_is_lost_or_failed_if_it_may_be_tried_again():
    shown = SetState(State.RUNNING, NOW)
    [first, *rest] = step(replayed(*RUNNING), ProcessGone(), NOW)
    assert first == shown
    assert finish_of(rest).state is State.LOST
    [first, *rest] = step(replayed(*RUNNING, retries=1), ProcessGone(), NOW)
    assert (first, retried(rest)) == (shown, (0.0, State.FAILED))
    assert step(replayed(*RUNNING, ResultReceived(OUTCOME)), ProcessGone(), NOW) == [shown, OpenOutcome()]
    assert step(replayed(*RUNNING, detach=True), ProcessGone(), NOW) == [shown, ReadFiles()]
    stopped = replayed(*RUNNING, CancelRequested(), retries=1)
    assert step(stopped, ProcessGone(), NOW)[2:] == ended(State.CANCELLED)


def test_an_adopted_process_has_the_time_that_is_left_to_it():
    attempt = replayed(*RUNNING, detach=True, expires_in=9.0)
    assert step(attempt, Adopted(PROCESS, OTHER), NOW + 5) == [
        SetState(State.RUNNING, NOW),
        ReadFiles(),
        SetDeadline(Deadline.EXPIRY, NOW + 9.0),
    ]
    assert (attempt.launched, attempt.own) == (PROCESS, OTHER)


def test_an_adopted_process_that_was_being_stopped_is_asked_to_end_again():
    attempt = replayed(*RUNNING, CancelRequested(), detach=True)
    actions = step(attempt, Adopted(PROCESS, None), NOW)
    assert actions == [
        SetState(State.RUNNING, NOW),
        ReadFiles(),
        SetState(State.STOPPING, NOW),
        TERM,
        KILL_LATER,
    ]


def test_without_inodes_an_adopted_process_is_neither_known_nor_signalled_before_it_proves_itself_anew():
    attempt = replayed(*RUNNING, detach=True)
    assert SetDeadline(Deadline.HELLO, NOW + HELLO) in step(attempt, AdoptedUnverified(), NOW)
    assert (attempt.phase, attempt.identity) == (Phase.PROVING, None)
    assert step(attempt, HelloReceived({}, CHILD), NOW) == [Challenge(CHILD)]
    assert step(attempt, Proven(IDENTITY, CHILD, launched=PROCESS), NOW)[-1] == Reply("go", CHILD)
    assert attempt.launched is PROCESS
    silent = replayed(*RUNNING, detach=True)
    step(silent, AdoptedUnverified(), NOW)
    late = step(silent, Deadline.HELLO, NOW)
    assert late == [CountRefusal("no hello in time"), ReadFiles()]
    assert finish_of(step(silent, FilesRead(None, None), NOW)).state is State.LOST


def test_without_inodes_a_result_that_was_left_in_a_file_counts_though_the_process_is_not_held_yet():
    attempt = replayed(*RUNNING, detach=True)
    step(attempt, AdoptedUnverified(), NOW)
    assert step(attempt, FilesRead(OUTCOME, None), NOW) == [WriteRecord(JournalEntry.OUTCOME)]
    step(attempt, Exited(ID, None, None), NOW)
    step(attempt, FilesRead(OUTCOME, Exited(ID, 0, None)), NOW)
    shown = SetState(State.RUNNING, NOW)
    assert step(attempt, OutcomeOpened(5, None), NOW) == [shown, *ended(State.DONE, 5)]


def test_without_inodes_an_adopted_process_that_was_being_stopped_is_told_to_die():
    attempt = replayed(*RUNNING, CancelRequested(), detach=True)
    step(attempt, AdoptedUnverified(), NOW)
    assert step(attempt, HelloReceived({}, CHILD), NOW) == [Challenge(CHILD)]
    assert step(attempt, Proven(IDENTITY, CHILD, launched=PROCESS), NOW) == [Reply("die", CHILD), TERM, KILL_LATER]
    silent = replayed(*RUNNING, CancelRequested(), detach=True)
    step(silent, AdoptedUnverified(), NOW)
    assert step(silent, Deadline.HELLO, NOW) == [ReadFiles()]
    assert step(silent, FilesRead(None, None), NOW) == ended(State.CANCELLED)


# -- the cases of docs/identity.md ---------------------------------------------------------------------------------


def test_I01_hellos_that_overtake_the_launchers_report_are_verified_once_the_process_is_known():
    hellos = [HelloReceived({"pid": pid}, STRANGER) for pid in range(EARLY + 1)]
    attempt = made(Admitted(), *hellos)
    verified = [action for action in step(attempt, Launched(ID, PROCESS), NOW) if isinstance(action, VerifyHello)]
    assert [action.hello["pid"] for action in verified] == list(range(1, EARLY + 1)), "the newest are kept"


def test_I02_behind_a_wrapper_the_tasks_own_process_is_asked_to_end():
    attempt = made(*LAUNCHED)
    step(attempt, Proven(IDENTITY, CHILD, own=OTHER), NOW)
    assert (attempt.launched, attempt.own) == (PROCESS, OTHER)
    assert TERM in step(attempt, CancelRequested(), NOW)


@pytest.mark.parametrize("detach", [False, True])
def test_I03_nothing_goes_on_behind_a_wrapper_that_has_ended(detach):
    attempt = made(*LAUNCHED, detach=detach)
    step(attempt, Proven(IDENTITY, CHILD, own=OTHER), NOW)
    assert Signal(signal.SIGKILL, SignalTarget.OWN) in step(attempt, Exited(ID, 0, None), NOW)


def test_a_detached_process_that_its_launcher_has_lost_is_left_alone():
    attempt = made(*LAUNCHED, detach=True)
    step(attempt, Proven(IDENTITY, CHILD, own=OTHER), NOW)
    assert step(attempt, Exited(ID, None, None), NOW) == [SetExit(Exited(ID, None, None)), ReadFiles()]


def test_I04_a_process_that_leaves_its_work_to_a_fork_has_failed():
    attempt = made(*RUNNING)
    assert step(attempt, Exited(ID, 0, None), NOW)[-1] == SetDeadline(Deadline.RESULT, NOW + 0.5)
    assert finish_of(step(attempt, Deadline.RESULT, NOW)).state is State.FAILED


def test_I05_I06_I07_I17_signals_name_what_is_held_and_never_a_number():
    assert set(Signal.__struct_fields__) == {"number", "target"}
    assert {type(member.value) for member in SignalTarget} == {int}
    names = {node.attr for node in ast.walk(_tree()) if isinstance(node, ast.Attribute)}
    assert not names & {"kill", "killpg", "signal_group", "pidfd_send_signal"}


def test_I08_I09_the_identity_is_the_one_that_was_verified():
    attempt = made(*RUNNING)
    assert attempt.identity is IDENTITY
    assert step(attempt, ProofRefused("a process on another host"), NOW) == [CountRefusal("a process on another host")]
    assert attempt.identity is IDENTITY


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.ENDED])
def test_I10_what_is_not_believed_is_counted_and_changes_nothing(phase):
    for path in PATHS[phase]:
        attempt = made(*path)
        before = dict(vars(attempt))
        assert step(attempt, ProofRefused("forged"), NOW) == [CountRefusal("forged")]
        assert vars(attempt) == before


def test_I11_a_repeated_hello_has_the_same_answer_and_one_of_another_sender_has_none():
    attempt = made(*RUNNING)
    assert step(attempt, Proven(IDENTITY, CHILD), NOW) == [Reply("go", CHILD)]
    assert step(attempt, Proven(IDENTITY, STRANGER), NOW) == [REPLAYED]
    assert attempt.sender is CHILD
    step(attempt, CancelRequested(), NOW)
    assert step(attempt, Proven(IDENTITY, STRANGER), NOW) == [REPLAYED]


def test_I12_a_process_that_never_proves_itself_is_killed():
    attempt = made(*LAUNCHED)
    late = step(attempt, Deadline.HELLO, NOW)
    assert late == [CountRefusal("no hello in time"), *STOPPED, KILL, KILL_LATER]
    assert finish_of(step(attempt, Exited(ID, None, 9), NOW)).state is State.FAILED
    assert step(made(*RUNNING), Deadline.HELLO, NOW) == []


def test_I13_a_hello_after_the_stop_is_answered_with_die():
    attempt = made(*LAUNCHED, CancelRequested())
    assert step(attempt, HelloReceived({}, CHILD), NOW) == [VerifyHello({}, CHILD)]
    assert step(attempt, Proven(IDENTITY, CHILD), NOW) == [Reply("die", CHILD)]
    attempt = made(Admitted(), HelloReceived({}, CHILD), CancelRequested())
    assert step(attempt, Launched(ID, PROCESS), NOW)[-1] == VerifyHello({}, CHILD)


def test_I14_results_and_progress_without_a_proof_are_refused():
    for path in ((Admitted(),), LAUNCHED, (*LAUNCHED, CancelRequested())):
        attempt = made(*path)
        assert step(attempt, ResultReceived(OUTCOME), NOW) == [
            CountRefusal("result of a process that has not proven itself")
        ]
        assert attempt.outcome is None
        assert step(attempt, ProgressReceived(1, PROGRESS), NOW) == [
            CountRefusal("progress of a process that has not proven itself")
        ]
    assert finish_of(step(made(*LAUNCHED), Exited(ID, 0, None), NOW)).state is State.FAILED


def test_I15_go_follows_the_journals_record_of_the_proof():
    actions = step(made(*LAUNCHED), Proven(IDENTITY, CHILD), NOW)
    assert actions[0] == WriteRecord(JournalEntry.PROVEN)
    assert actions[-1] == Reply("go", CHILD)


def test_I16_the_process_of_an_earlier_manager_is_challenged():
    attempt = replayed(*RUNNING, detach=True)
    attempt.sender = None
    step(attempt, Adopted(PROCESS, None), NOW)
    assert step(attempt, HelloReceived({}, CHILD), NOW) == [Challenge(CHILD)]
    assert step(attempt, Proven(IDENTITY, CHILD), NOW) == [Reply("go", CHILD)]


def test_I18_a_stolen_exit_code_is_unknown_and_never_0():
    attempt = made(*RUNNING, argv=["true"])
    assert finish_of(step(attempt, Exited(ID, None, None), NOW)[1:]).state is State.LOST


def test_I19_a_task_that_becomes_another_program_ends_with_its_exit_code():
    attempt = made(*RUNNING, argv=["sleep", "1"])
    assert finish_of(step(attempt, Exited(ID, 0, None), NOW)) == Finish(State.DONE, 0, None)


def test_I20_no_clock_is_read():
    attempt = made(Admitted())
    [_, shown, deadline] = step(attempt, Launched(ID, PROCESS), 5.0)
    assert (shown, deadline) == (SetState(State.PROVING, 5.0), SetDeadline(Deadline.HELLO, 5.0 + HELLO))


def test_I21_I22_a_fork_of_the_task_speaks_with_another_client_and_is_not_believed():
    assert step(made(*RUNNING), Proven(IDENTITY, STRANGER), NOW) == [REPLAYED]


# -- the invariants ----------------------------------------------------------------------------------------------


def _tree() -> ast.Module:
    return ast.parse(Path(lifecycle.__file__).read_text())


def kinds() -> list[Any]:
    """Return what the rows of the table are for."""
    events = lifecycle.Event.__args__  # type: ignore[attr-defined]
    return [*(event for event in events if event is not Deadline), *Deadline]


def test_invariant_5_every_event_has_a_row_and_every_phase_a_column():
    assert set(lifecycle.TABLE) == set(kinds())
    seen = {event if isinstance(event, Deadline) else type(event) for event in EVENTS}
    assert seen == set(kinds()), "EVENTS has an example of each"
    for phase, paths in PATHS.items():
        for path in paths:
            assert made(*path).phase is phase
            for event in EVENTS:
                for adopted in (False, True):
                    for detach in (False, True):
                        attempt = made(*path, detach=detach)
                        attempt.salt = b"salt" * adopted
                        assert isinstance(step(attempt, event, NOW), list)


def test_invariant_5_every_event_after_the_end_is_ignored():
    for path in PATHS[Phase.ENDED]:
        for event in EVENTS:
            assert step(made(*path), event, NOW) == []


class World:
    """Executes actions as the supervisor does, remembers them, and answers them at random."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        pick = self.random.choice
        policy: list[dict[str, Any]] = [{}, {"retries": 1}, {"expires_in": 1.0}, {"detach": True}, {"argv": ["true"]}]
        self.attempt = made(**pick(policy), adopted=pick([False, False, True]))
        self.done: list[Any] = []

    def happen(self, event: Any) -> None:
        for action in step(self.attempt, event, NOW):
            self.done.append(action)
            for answer in self.answers(action):
                self.happen(answer)

    def answers(self, action: Any) -> list[Any]:
        pick = self.random.choice
        match action:
            case Launch():
                return [pick([LaunchAccepted(), LaunchAccepted(), LaunchDeclined("busy"), LaunchInvalid(ERROR)])]
            case VerifyHello() | Challenge():
                return [pick([Proven(IDENTITY, action.sender), ProofRefused("forged")])]
            case ReadFiles():
                return [pick([FilesRead(None, None), FilesRead(OUTCOME, Exited(ID, 0, None))])]
            case OpenOutcome():
                return [pick([OutcomeOpened(1, None), OutcomeOpened(None, ERROR)])]
        return []


INTERNAL = (LaunchAccepted, LaunchDeclined, LaunchInvalid, Proven, FilesRead, OutcomeOpened, Admitted)
RECOVERY = (Adopted, AdoptedUnverified, ProcessGone)


@pytest.mark.parametrize("seed", range(20))
def test_the_invariants_hold_for_events_in_any_order(seed):
    external = [event for event in EVENTS if not isinstance(event, (*INTERNAL, *RECOVERY))]
    for number in range(100):
        world = World(1000 * seed + number)
        world.happen(Admitted())
        for _ in range(world.random.randrange(12)):
            world.happen(world.random.choice(external))
        for event in (ManagerClosing(), ManagerClosed()):
            world.happen(event)
        check(world.done)


def check(done: list[Any]) -> None:
    """Check what was done in an attempt's life."""
    # 2. One end, one slot.
    assert sum(isinstance(action, Finish | Requeue) for action in done) == 1, done
    assert [type(action) for action in done if isinstance(action, TakeSlot | FreeSlot)] == [TakeSlot, FreeSlot], done
    assert done.index(FreeSlot()) < len(done) - 1

    def precedes(entry: JournalEntry, effect: Callable[[Any], bool]) -> None:
        entries = [at for at, action in enumerate(done) if isinstance(action, WriteRecord) and action.entry is entry]
        for at, action in enumerate(done):
            if effect(action):
                assert entries, (entry, done)
                assert entries[0] < at, (entry, done)

    # 1. The journal first. 3. No user code before the proof.
    precedes(JournalEntry.STARTED, lambda action: isinstance(action, Launch))
    precedes(JournalEntry.LAUNCHED, lambda action: isinstance(action, VerifyHello))
    precedes(JournalEntry.PROVEN, lambda action: action in (Reply("go", CHILD), Reply("go", STRANGER)))
    precedes(JournalEntry.STOPPED, lambda action: action in (TERM, KILL))
    precedes(JournalEntry.OUTCOME, lambda action: isinstance(action, OpenOutcome))
    precedes(JournalEntry.REQUEUED, lambda action: isinstance(action, Requeue))
    left = CloseProcess(leave=True) in done
    if not left:
        precedes(JournalEntry.ENDED, lambda action: isinstance(action, Finish))
        finish_of(done) if isinstance(done[-1], Finish) else None


def test_invariant_8_the_module_imports_no_clock_socket_process_or_thread():
    allowed = {"__future__", "enum", "signal", "collections.abc", "typing", "msgspec"}
    allowed |= {"doorman.errors", "doorman.launcher", "doorman.states"}
    imported = set()
    for node in _tree().body:
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    assert imported <= allowed
    assert "doorman.process" not in sys.modules or not hasattr(lifecycle, "Process")
