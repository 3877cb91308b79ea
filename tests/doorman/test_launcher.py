"""Launchers: real processes, real signals."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import (
    DEADLINE,
    SUPPORT,
    abandoned,
    commands,
    ended,
    exit_of,
    fifo,
    hear,
    launched,
    opened,
    order,
    until_over,
    zygote_of,
)

from doorman.errors import LaunchRefused, PreloadFailed
from doorman.launcher import Event, Exited, Launched, LaunchFailed, Order
from doorman.launcher.command import CommandLauncher
from doorman.launcher.zygote import ZygoteLauncher
from doorman.process import Process


@pytest.fixture(scope="module")
def _warm() -> Iterator[ZygoteLauncher]:
    with zygote_of() as launcher:
        assert launcher.wait_ready(DEADLINE)
        yield launcher


@pytest.fixture
def zygote(_warm: ZygoteLauncher) -> ZygoteLauncher:
    return _warm


@pytest.fixture(params=["zygote", "command", "stdin"])
def launcher(request: pytest.FixtureRequest) -> Iterator[ZygoteLauncher | CommandLauncher]:
    if request.param == "zygote":
        yield request.getfixturevalue("zygote")
    else:
        with commands(inherits=request.param == "command") as launcher:
            yield launcher


def test_pid_and_inode_are_the_childs_own_at_mass_start(zygote, tmp_path):
    """200 children started at once: the process reported for each is the one that wrote its file."""
    waiting = [order(f"a{n}", "report", path=str(tmp_path / f"a{n}")) for n in range(200)]
    heard: list[Event] = []

    def go_on(_: object) -> bool:
        while waiting:
            try:
                zygote.launch(waiting[-1])
            except LaunchRefused:
                break
            waiting.pop()
        return False

    def done(new: list[Event]) -> bool:
        go_on(None)
        return sum(isinstance(event, Exited) for event in new) == 200

    heard = hear(zygote, done)
    processes = {event.attempt: event.process for event in heard if isinstance(event, Launched)}
    assert len(processes) == 200
    for attempt, process in processes.items():
        facts = json.loads((tmp_path / attempt).read_text())
        assert (facts["pid"], facts["inode"], facts["attempt"]) == (process.pid, process.inode, attempt)
    assert {event[1:3] for event in heard if isinstance(event, Exited)} == {(0, None)}


def test_launched_precedes_exited(zygote):
    zygote.launch(order("a", "noop"))
    assert [type(event) for event in until_over(zygote)] == [Launched, Exited]


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_exit_code_is_reported(launcher, code):
    assert exit_of(launcher, order("a", "leave", code=code))[:3] == ("a", code, None)


@pytest.mark.parametrize(("argument", "code"), [(None, 0), (3, 3), ("a text", 1)])
def test_sys_exit_means_what_it_means_elsewhere(zygote, argument, code):
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as sink:
        assert exit_of(zygote, order("a", "leave_by_exit", code=argument, stderr=sink.stdin.fileno()))[1] == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
def test_signal_is_reported(launcher, number):
    assert exit_of(launcher, order("a", "die", number=number))[:3] == ("a", None, number)


def test_cost_is_reported(launcher):
    exited = exit_of(launcher, order("a", "noop"))
    assert exited.max_rss > 1 << 20
    assert exited.cpu > 0


def test_exception_ends_with_traceback_and_code_1(zygote, tmp_path):
    with (tmp_path / "err").open("wb") as file:
        exited = exit_of(zygote, order("a", "fail", stderr=file.fileno()))
    assert exited[1:3] == (1, None)
    assert (tmp_path / "err").read_text().endswith("RuntimeError: broken on purpose\n")


def test_standard_output_and_error_go_where_the_order_says(launcher, tmp_path):
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        environment = {**os.environ, "WORD": "there"}
        exit_of(launcher, order("a", "speak", stdout=out.fileno(), stderr=err.fileno(), env=environment))
    assert ((tmp_path / "out").read_text(), (tmp_path / "err").read_text()) == ("out there\n", "err\n")


def test_output_before_a_kill_is_not_lost(zygote):
    reader, writer = os.pipe()
    with os.fdopen(reader) as output:
        zygote.launch(order("a", "speak_and_pause", stdout=writer))
        os.close(writer)
        with launched(zygote) as process:
            assert output.readline() == "before the end\n"
            assert process.signal(signal.SIGKILL)
            until_over(zygote)


def test_child_starts_as_a_fresh_program_would(zygote, tmp_path):
    """Own group, nothing blocked or ignored, no descriptor of the zygote, the order's directory and environment."""
    exit_of(zygote, order("a", "report", path=str(tmp_path / "a"), cwd=str(tmp_path), env={"ONLY": "this"}))
    facts = json.loads((tmp_path / "a").read_text())
    assert facts["group"] == facts["pid"]
    assert (facts["parent"], facts["cwd"], facts["env"]) == (zygote.pid, str(tmp_path), {"ONLY": "this"})
    assert facts["blocked"] == []
    assert set(facts["ignored"]) <= {signal.SIGPIPE, signal.SIGXFSZ}
    assert facts["descriptors"][0] == "/dev/null"
    assert not [name for name in facts["descriptors"] if "eventpoll" in name or "pidfd" in name or "memfd" in name]


def test_secret_is_in_no_argument_and_no_environment(launcher, tmp_path):
    exit_of(launcher, order("a", "report", path=str(tmp_path / "a")))
    facts = json.loads((tmp_path / "a").read_text())
    assert facts["secret"] == (b"s" * 32).hex()
    assert "s" * 32 not in json.dumps([facts["argv"], facts["env"]])


def test_payload_of_five_megabytes_arrives(launcher, tmp_path):
    exit_of(launcher, order("a", "measure", path=str(tmp_path / "a"), filler="x" * 5_000_000))
    assert (tmp_path / "a").read_text() == "5000000"


def test_exit_hooks_and_threads_of_the_child_run(zygote, tmp_path):
    exit_of(zygote, order("a", "hook", path=str(tmp_path / "a")))
    assert ((tmp_path / "a").read_text(), (tmp_path / "a.thread").read_text()) == ("ran", "ran")


def test_exit_hooks_of_a_preloaded_module_run_once_and_in_the_zygote(tmp_path):
    (tmp_path / "hooked.py").write_text(
        f"import atexit, os\natexit.register(lambda: os.write(os.open({str(tmp_path / 'log')!r}, 1 | 64 | 1024), b'!'))"
    )
    with zygote_of(str(tmp_path), preload=["hooked"]) as launcher:
        for n in range(3):
            exit_of(launcher, order(f"a{n}", "noop"))
    assert (tmp_path / "log").read_bytes() == b"!"


def test_missing_directory_is_told(launcher, tmp_path):
    launcher.launch(order("a", "noop", cwd=str(tmp_path / "nowhere")))
    [failed] = until_over(launcher)
    assert isinstance(failed, LaunchFailed)
    assert not failed.back_pressure
    assert "nowhere" in failed.why


def test_attempt_in_hand_cannot_be_launched_again(zygote):
    zygote.launch(order("a", "noop"))
    with pytest.raises(ValueError, match="already"):
        zygote.launch(order("a", "noop"))
    until_over(zygote)


def test_preload_that_fails_says_so():
    with zygote_of(preload=["json", "no_such_module"]) as launcher:
        with pytest.raises(PreloadFailed, match="No module named 'no_such_module'"):
            launcher.wait_ready(DEADLINE)
        launcher.launch(order("a", "noop"))
        [failed] = until_over(launcher)
        assert "no_such_module" in failed.why


def test_order_given_before_a_preload_fails_is_told_of_it():
    with zygote_of(preload=["no_such_module"]) as launcher:
        launcher.launch(order("a", "noop"))
        [failed] = until_over(launcher)
        assert isinstance(failed, LaunchFailed)
        assert "No module named 'no_such_module'" in failed.why


def test_preload_that_starts_a_thread_is_refused(tmp_path):
    (tmp_path / "threaded.py").write_text("import threading\nthreading.Thread(target=threading.Event().wait).start()\n")
    with (
        zygote_of(str(tmp_path), preload=["threaded"]) as launcher,
        pytest.raises(PreloadFailed, match="started threads"),
    ):
        launcher.wait_ready(DEADLINE)


@pytest.mark.parametrize("leave", [False, True], ids=["killed", "ended by itself"])
def test_nothing_of_a_task_is_left(zygote, tmp_path, leave):
    """Its group and its daemons end with it, whether it is killed or ends."""
    with fifo(tmp_path / "held") as reader:
        zygote.launch(order("a", "family", path=str(tmp_path / "held"), leave=leave))
        with launched(zygote) as process:
            assert opened(reader)
            if not leave:
                process.signal(signal.SIGKILL)
            assert abandoned(reader)
        until_over(zygote)


def test_orphans_of_one_task_do_not_end_with_another(zygote, tmp_path):
    with fifo(tmp_path / "held") as reader:
        zygote.launch(order("a", "family", path=str(tmp_path / "held"), leave=False))
        with launched(zygote) as process:
            assert opened(reader)
            exit_of(zygote, order("b", "noop"))
            poll = select.poll()
            poll.register(reader, 0)
            assert not poll.poll(0)
            process.signal(signal.SIGKILL)
            until_over(zygote)
            assert abandoned(reader)


def test_group_signal_reaches_the_group_through_the_pidfd(zygote, tmp_path):
    with fifo(tmp_path / "held") as reader:
        zygote.launch(order("a", "family", path=str(tmp_path / "held"), leave=False))
        with launched(zygote) as process:
            assert opened(reader)
            assert process.signal_group(signal.SIGTERM)
            assert abandoned(reader)
        assert until_over(zygote)[-1][:3] == ("a", None, signal.SIGTERM)


MANAGER = """
    import os, signal, sys
    sys.path.insert(0, {support!r})
    from launching import *
    launcher = {make}
    for n in range(3):
        launcher.launch(order(f"a{{n}}", {do!r}, path=sys.argv[1], detach=n == 0 and {detach}))
        print(launched(launcher).pid, flush=True)
    print(getattr(launcher, "pid", 0), flush=True)
    signal.pause()
"""


def manager_of(
    make: str, held: Path, *, do: str = "family", detach: bool = False
) -> tuple[subprocess.Popen[str], list[Process]]:
    """Start a manager in a process of its own, with three tasks; return it and its processes, zygote last."""
    script = textwrap.dedent(MANAGER.format(support=SUPPORT, make=make, do=do, detach=detach))
    manager = subprocess.Popen([sys.executable, "-c", script, str(held)], stdout=subprocess.PIPE, text=True)
    pids = [int(manager.stdout.readline()) for _ in range(4)]
    return manager, [Process.open(pid) for pid in pids if pid]


def test_all_ends_when_the_manager_is_killed(tmp_path):
    """Children, their groups, their daemons and the zygote."""
    with fifo(tmp_path / "held") as reader:
        manager, processes = manager_of("zygote_of()", tmp_path / "held")
        with manager:
            assert [opened(reader) for _ in range(3)] == [True] * 3
            manager.kill()
        assert [ended(process) for process in processes] == [True] * 4
        assert abandoned(reader)


def test_detached_child_outlives_its_manager_and_its_zygote_stays_with_it(tmp_path):
    with fifo(tmp_path / "held") as reader:
        manager, (detached, *others, zygote) = manager_of("zygote_of()", tmp_path / "held", detach=True)
        with manager:
            assert [opened(reader) for _ in range(3)] == [True] * 3
            manager.kill()
        assert [ended(process) for process in others] == [True] * 2
        assert detached.alive()
        assert zygote.alive()
        detached.signal(signal.SIGKILL)
        assert ended(zygote)
        assert abandoned(reader)


def test_zygote_that_is_killed_takes_its_children_along_and_is_replaced(tmp_path):
    with zygote_of() as launcher, fifo(tmp_path / "held") as reader:
        launcher.launch(order("a", "family", path=str(tmp_path / "held"), leave=False))
        with launched(launcher) as process, Process.open(launcher.pid) as zygote:
            assert opened(reader)
            launcher.launch(order("b", "pause"))
            zygote.signal(signal.SIGSTOP)
            launcher.launch(order("c", "pause"))
            zygote.signal(signal.SIGKILL)
            heard = until_over(launcher, 3)
            assert ended(process)
        last = {event.attempt: event for event in heard if not isinstance(event, Launched)}
        assert last["a"] == Exited("a", None, None)
        assert isinstance(last["c"], LaunchFailed)
        assert exit_of(launcher, order("d", "leave", code=4)).exit_code == 4
        [alive] = [pid for pid in [launcher.pid] if pid is not None]
        assert alive != zygote.pid


def test_message_that_is_none_is_survived(zygote):
    channel = zygote._zygote.channel
    for noise in (b"\xc1", b"\x00", b"x" * 200_000, b"\x92\xa4Fork\x01"):
        channel.send(noise)
    assert exit_of(zygote, order("a", "leave", code=5)).exit_code == 5


def test_manager_that_does_not_poll_is_waited_for(zygote):
    """More is launched than the channel holds: the launcher refuses, and nothing is lost or run twice."""
    accepted = 0

    def launch_on() -> None:
        nonlocal accepted
        for accepted in range(5000):
            zygote.launch(Order(f"a{accepted}", b"s" * 32, b'{"do": "noop"}' + b" " * 20_000))

    with pytest.raises(LaunchRefused):
        launch_on()
    heard = until_over(zygote, accepted)
    assert sorted(event.attempt for event in heard if isinstance(event, Exited)) == sorted(
        f"a{n}" for n in range(accepted)
    )


def test_fork_that_fails_is_back_pressure(tmp_path):
    (tmp_path / "limited.py").write_text(
        "import os, resource\n"
        "if os.geteuid() == 0: os.setresuid(12345, 12345, 12345)  # The limit is not for root.\n"
        "resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))\n"
    )
    with zygote_of(str(tmp_path), preload=["entries", "limited"]) as launcher:
        launcher.launch(order("a", "noop"))
        [failed] = until_over(launcher)
        assert isinstance(failed, LaunchFailed)
        assert failed.back_pressure


def test_manager_out_of_descriptors_refuses_or_fails_but_does_not_break(tmp_path):
    script = textwrap.dedent(f"""
        import os, resource, sys
        sys.path.insert(0, {SUPPORT!r})
        import select
        from launching import *
        with zygote_of() as launcher:
            launcher.wait_ready(DEADLINE)
            launcher.launch(order("a", "pause"))
            select.select([launcher], [], [])
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            [failed] = until_over(launcher)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            print(failed.back_pressure, exit_of(launcher, order("b", "leave", code=3)).exit_code)
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=DEADLINE)
    assert done.stdout == "True 3\n", done.stderr


def test_launcher_of_a_fork_belongs_to_the_parent(zygote):
    child = os.fork()
    if child == 0:
        try:
            zygote.launch(order("x", "noop"))
        except ValueError:
            zygote.close()
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert exit_of(zygote, order("a", "leave", code=6)).exit_code == 6


def test_closing_ends_what_runs_and_may_be_done_twice(tmp_path):
    with zygote_of() as launcher:
        launcher.launch(order("a", "pause"))
        process = launched(launcher)
        launcher.close()
        assert ended(process)
        launcher.close()
        with pytest.raises(ValueError, match="closed"):
            launcher.launch(order("b", "noop"))


def test_closing_kills_a_zygote_that_does_not_answer():
    with zygote_of() as launcher:
        launcher.wait_ready(DEADLINE)
        with Process.open(launcher.pid) as zygote:
            zygote.signal(signal.SIGSTOP)
            launcher.close(grace=0.0)
            assert ended(zygote)


def test_wrapper_that_is_missing_is_told():
    with commands("/no/such/wrapper") as launcher:
        launcher.launch(order("a", "noop"))
        [failed] = until_over(launcher)
        assert isinstance(failed, LaunchFailed)
        assert "/no/such/wrapper" in failed.why


@pytest.mark.parametrize("inherits", [True, False])
def test_worker_of_its_own_sees_the_end_of_its_manager(tmp_path, inherits):
    with fifo(tmp_path / "held") as reader:
        manager, processes = manager_of(f"commands(inherits={inherits})", tmp_path / "held", do="until_end")
        with manager:
            assert [opened(reader) for _ in range(3)] == [True] * 3
            manager.kill()
        assert [ended(process) for process in processes] == [True] * 3
        assert abandoned(reader)


def test_wrapper_that_is_killed_takes_its_worker_along(tmp_path):
    with commands("sh", "-c", '"$@"; true', "sh") as launcher, fifo(tmp_path / "held") as reader:
        launcher.launch(order("a", "pause", path=str(tmp_path / "held")))
        with launched(launcher) as wrapper:
            assert opened(reader)
            wrapper.signal(signal.SIGKILL)
            assert until_over(launcher)[-1][:3] == ("a", None, signal.SIGKILL)
            assert abandoned(reader)


def test_exit_that_another_reaper_took_is_unknown_and_never_zero():
    with commands() as launcher:
        launcher.launch(order("a", "leave", code=3))
        with launched(launcher) as process:
            assert ended(process)
            os.waitpid(process.pid, 0)
            assert until_over(launcher)[-1] == Exited("a", None, None)


def test_ignored_sigchld_is_told(tmp_path):
    script = textwrap.dedent(f"""
        import signal, sys
        sys.path.insert(0, {SUPPORT!r})
        from launching import *
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        with zygote_of() as launcher:
            print(exit_of(launcher, order("a", "leave", code=3)).exit_code)
        with commands("true", "--") as launcher:
            launcher.launch(order("a", "noop"))
            print(until_over(launcher))
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=DEADLINE)
    assert done.stdout.startswith("3\n"), done.stderr
    assert (
        "Exited('a', None, None" in done.stdout.replace("exit_code=", "").replace("signal=", "").replace("attempt=", "")
        or "SIGCHLD" in done.stdout
    )
