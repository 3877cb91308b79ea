"""Command line: real processes that list, listen and emit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from distributions import TRANSPORT, distribution
from labour import start_worker
from waiting import wait_until

from remit import Client, Location, __version__
from remit.cli import main

REMIT = (sys.executable, "-m", "remit")
DEADLINE = 30.0
"""Seconds for a command that is to end."""


@contextmanager
def listening(location: Location, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], Location]]:
    """Run ``remit listen``; yield the process and where it listens."""
    command = [*REMIT, "listen", location.url, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            words, _, where = process.stderr.readline().strip().rpartition(" ")
            assert words == "listening on"
            yield process, Location(where)
        finally:
            process.kill()


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **environment}
    return subprocess.run(
        [*REMIT, *arguments], capture_output=True, text=True, timeout=DEADLINE, env=environment, check=False
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, list[dict[str, object]], str]:
    output, errors = process.communicate(timeout=DEADLINE)
    return process.returncode, [json.loads(line) for line in output.splitlines()], errors


def test_what_is_emitted_is_printed_where_it_is_listened_for(crossing_location: Location) -> None:
    with listening(crossing_location, "--count", "2") as (process, location):
        assert run("emit", location.url, "job.done", "7", '"text"', '{"a": [null]}').returncode == 0
        assert run("emit", location.url, "job.failed").returncode == 0
        code, events, errors = finish(process)
    assert (code, errors) == (0, "")
    assert [(event["name"], event["args"]) for event in events] == [
        ("job.done", [7, "text", {"a": [None]}]),
        ("job.failed", []),
    ]
    assert all(len(str(event["sender"])) == 32 for event in events)


def test_only_what_fits_the_pattern_is_printed(short_path: Path) -> None:
    with listening(Location(f"unix://{short_path}/a.sock"), "job.*") as (process, location):
        with Client(location) as client:
            for name in ("other", "job.a", "jobs", "job.b"):
                client.emit(name, who=name)
        process.terminate()
        code, events, _ = finish(process)
    assert code == 0
    assert [(event["name"], event["kwargs"]) for event in events] == [
        ("job.a", {"who": "job.a"}),
        ("job.b", {"who": "job.b"}),
    ]


def test_events_beyond_the_count_are_not_taken(short_path: Path) -> None:
    location = Location(f"unix://{short_path}/a.sock")
    with Client(location) as client:
        client.emit("before")
        for number in range(10):
            client.emit("count", number)
        shown = []
        for count in ("4", "7"):
            with listening(location, "-n", count) as (process, _):
                code, events, _ = finish(process)
            assert code == 0
            shown += events
    assert [event["args"] for event in shown] == [[], *([number] for number in range(10))]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_listening_cleanly(short_path: Path, number: signal.Signals) -> None:
    with listening(Location(f"unix://{short_path}/a.sock")) as (process, location):
        assert run("emit", location.url, "one").returncode == 0
        process.send_signal(number)
        code, events, errors = finish(process)
    assert (code, errors, len(events)) == (130 if number == signal.SIGINT else 0, "", 1)
    assert not Path(location.path).exists()


def test_listening_ends_when_nobody_reads_any_more(short_path: Path) -> None:
    with listening(Location(f"unix://{short_path}/a.sock")) as (process, location):
        assert process.stdout is not None
        process.stdout.close()
        assert run("emit", location.url, "one").returncode == 0
        wait_until(lambda: process.poll() is not None)
        assert process.stderr is not None
        assert (process.returncode, process.stderr.read()) == (0, "")


# -- transports ------------------------------------------------------------------------------------------------


def test_transports_are_listed_with_what_keeps_any_from_use(tmp_path: Path) -> None:
    for name in ("first", "second"):
        distribution(tmp_path, f"{name}-claim", {"twice": f"{name}_claim"}, version="2.0")
    distribution(tmp_path, "rotten", {"rotten": "rotten_plugin"}, {"rotten_plugin": "1 / 0"}, version="6.6")
    distribution(tmp_path, "intruder", {"unix": "intruder"}, {"intruder": "raise SystemExit"})
    distribution(tmp_path, "good", {"good": "good_plugin", "blocked": "good_plugin"}, {"good_plugin": TRANSPORT})
    done = run("transports", PYTHONPATH=str(tmp_path), REMIT_BLOCK="blocked")
    assert (done.returncode, done.stderr) == (0, "")
    head, *lines = [line.split(maxsplit=3) for line in done.stdout.splitlines()]
    assert head == ["SCHEME", "DISTRIBUTION", "VERSION", "STATE"]
    states = {(scheme, name): (version, state) for scheme, name, version, state in lines}
    assert states["memory", "remit"][1] == states["unix", "remit"][1] == "ready"
    assert states["good", "good"] == ("1.0", "ready")
    assert states["blocked", "good"] == ("1.0", "blocked by REMIT_BLOCK")
    assert states["unix", "intruder"] == ("1.0", "not used: remit itself claims 'unix'")
    assert states["twice", "first-claim"] == ("2.0", "claimed twice: also by second-claim 2.0")
    assert states["twice", "second-claim"] == ("2.0", "claimed twice: also by first-claim 2.0")
    assert states["rotten", "rotten"][1].startswith("broken: ")
    assert "ZeroDivisionError: division by zero" in states["rotten", "rotten"][1]


# -- errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["emit", "carrierpigeon://a", "name"], "no transport for 'carrierpigeon' is installed"),
        (["emit", "no-such-name", "name"], "no location is named 'no-such-name'"),
        (["emit", "unix://host/path", "name"], "unix"),
        (["emit", "unix:///a?lingr=1", "name"], "did you mean 'linger'?"),
        (["listen", "unix:///no/such/folder/a.sock"], "/no/such/folder/a.sock"),
        (["conformance", "--table", "--into", "/no/such/page.md"], "name a page that exists"),
    ],
)
def test_an_error_is_told_in_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("remit: ")
    assert words in shown.err
    assert len(shown.err.splitlines()) == 1


def test_what_nobody_takes_is_told(short_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["emit", f"unix://{short_path}/nobody.sock", "name", "--linger", "0.05"]) == 2
    assert "1 event undelivered" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["emit", "memory://a", "name", "text"], "'text' is not JSON; for a text write '\"text\"'"),
        (["listen", "memory://a", "--count", "0"], "not a positive whole number"),
        (["emit", "memory://a", "name", "--linger", "-1"], "'-1' is not a number of seconds"),
        (["request", "memory://a", "name", "--timeout", "nan"], "'nan' is not a number of seconds"),
        (["request", "memory://a", "name", "--timeout", "soon"], "'soon' is not a number of seconds"),
        (["broker", "memory://a", "--lease", "0"], "above 0"),
        (["conformance", "memory://a", "--deadline", "-1"], "'-1' is not a number of seconds"),
        (["conformance", "memory://a", "--deadline", "0"], "above 0"),
        (["dance"], "invalid choice: 'dance'"),
        ([], "COMMAND"),
    ],
)
def test_a_wrong_command_line_is_refused(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_the_command_and_the_module_are_one() -> None:
    command = Path(sys.executable).with_name("remit")
    helps = [
        subprocess.run([*each, "--help"], capture_output=True, text=True, timeout=DEADLINE, check=True).stdout
        for each in (REMIT, (str(command),))
    ]
    assert helps[0] == helps[1]
    assert helps[0].startswith("usage: remit ")


def test_a_broker_gives_requests_to_workers_until_it_is_told_to_end(
    crossing_location: Location, tmp_path: Path
) -> None:
    command = [*REMIT, "broker", crossing_location.url]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as broker:
        try:
            assert broker.stderr is not None
            words, _, where = broker.stderr.readline().strip().rpartition(" ")
            assert words == "broker on"
            worker = start_worker(where, tmp_path)
            try:
                asked = run("request", where, "add", "20", "22", "--timeout", "20")
                assert (asked.returncode, asked.stdout) == (0, "42\n")
                failed = run("request", where, "divide", "1", "0")
                assert failed.returncode == 2
                assert "ZeroDivisionError" in failed.stderr
                broker.send_signal(signal.SIGTERM)
                told = broker.stderr.read()
                assert broker.wait(DEADLINE) == 0
                assert "submitted=2 done=2" in told
            finally:
                worker.kill()
                worker.wait()
        finally:
            broker.kill()


def test_a_request_that_nobody_answers_ends_in_time(short_path: Path) -> None:
    asked = run("request", f"unix://{short_path}/nobody", "add", "--timeout", "0.2")
    assert asked.returncode == 2
    assert "is a server there?" in asked.stderr


def test_it_says_which_version_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"remit {__version__}\n"
