"""Launchers: real processes, real signals: what a child gets, and what is told of it."""

from __future__ import annotations

import errno
import itertools
import json
import os
import select
import signal
import subprocess

import pytest
from injection import call_with, interrupt
from launching import (
    commands,
    exit_of,
    launched,
    order,
    until_over,
)

from doorman.errors import LaunchRefused
from doorman.launcher import Exited, Launched, LaunchFailed
from doorman.launcher.zygote_process import own_children


def test_launched_precedes_exited(zygote):
    zygote.launch(order("a", "noop"))
    assert [type(event) for event in until_over(zygote)] == [Launched, Exited]


def test_a_launcher_is_readable_until_poll_has_returned_its_events_at_whatever_line_it_is_interrupted(launcher):
    for line in itertools.count(1):
        launcher.launch(order(f"a{line}", "noop", cwd="/missing"))
        outcome = call_with(interrupt, line, launcher.poll)
        if outcome.place is None:
            assert [type(event) for event in outcome.value] == [LaunchFailed]
            break
        assert select.select([launcher], [], [], 0)[0], outcome.place
        assert [type(event) for event in launcher.poll()] == [LaunchFailed]
    assert line > 4


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


def test_missing_directory_is_told(launcher, tmp_path):
    launcher.launch(order("a", "noop", cwd=str(tmp_path / "nowhere")))
    [failed] = until_over(launcher)
    assert isinstance(failed, LaunchFailed)
    assert not failed.back_pressure
    assert "nowhere" in failed.why


def test_worker_whose_pidfd_cannot_be_duplicated_is_not_left_behind(monkeypatch):
    def full(_: int) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    before = own_children()
    with commands() as launcher:
        monkeypatch.setattr(os, "dup", full)
        with pytest.raises(LaunchRefused):
            launcher.launch(order("a", "pause"))
        assert own_children() == before


def test_wrapper_that_is_missing_is_told():
    with commands("/no/such/wrapper") as launcher:
        launcher.launch(order("a", "noop"))
        [failed] = until_over(launcher)
        assert isinstance(failed, LaunchFailed)
        assert "/no/such/wrapper" in failed.why
