"""Snapshots: what users, peers and old files rely on, as text. A change of it is a decision, never an accident.

`REMIT_SNAPSHOT=write pytest tests/snapshots` writes the files beside this one; review and commit what has changed.
"""

from __future__ import annotations

import ast
import difflib
import gc
import os
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
from public_api import api_of
from ticking import ticked

from doorman import Backoff, GroupManager, Identity, Rule, State, SynchronousManager, Task
from doorman.journal import records
from doorman.load import Load
from remit import Server
from remit._protocol import frames
from remit._protocol.auth import SharedKey
from remit.codec import MessagePack

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WRITES = os.environ.get("REMIT_SNAPSHOT") == "write"
DEADLINE = 60.0
"""Seconds for one command line."""
MODULES = (
    "remit",
    "remit.errors",
    "remit.hookspecs",
    "remit.location",
    "remit.plugins",
    "remit.testing",
    "remit.transport",
    "doorman",
    "doorman.control",
    "doorman.errors",
    "doorman.launcher",
    "doorman.launcher.command",
    "doorman.load",
)
"""Documented import paths."""
COMMANDS = {
    "remit": ("transports", "listen", "emit", "request", "broker", "conformance"),
    "doorman": ("run", "map", "up", "ps", "stop", "top"),
}
NAMES_OF_MODULES_TOO = {"doorman.progress", "remit.pair"}
"""Event names that are names of modules as well."""


def expect(file: str, lines: list[str]) -> None:
    """Compare lines with a file of this folder, or write them there."""
    if WRITES:
        (HERE / file).write_text("".join(f"{line}\n" for line in lines))
    before = (HERE / file).read_text().splitlines()
    changes = [line for line in difflib.unified_diff(before, lines, file, "now", n=0, lineterm="") if line[:2] != "@@"]
    assert not changes, "\n".join([*changes, f"If this is meant: {__doc__.splitlines()[2]}"])


# -- the public API --------------------------------------------------------------------------------------------


def test_public_api() -> None:
    # A finalizer that parses code within ast.parse() makes CPython 3.11 raise SystemError: collect none here.
    gc.collect()
    gc.disable()
    try:
        lines = api_of(*MODULES)
    finally:
        gc.enable()
    expect("api.txt", lines)


def test_documented_imports_are_in_the_snapshot() -> None:
    pages = "\n".join(page.read_text() for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))))
    blocks = "\n".join(re.findall(r"^```py.*?^```$", pages, re.MULTILINE | re.DOTALL))
    imports = re.findall(r"from ((?:remit|doorman)[\w.]*) import (\([^)]+\)|[^\n]+)", blocks)
    named = {f"{module}.{name}" for module, names in imports for name in re.findall(r"\w+", names)}
    known = set(re.findall(r"^(?:async |class )?([\w.]+)", (HERE / "api.txt").read_text(), re.MULTILINE))
    assert len(named) > 30
    assert named - known == set()


# -- the command line ------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="argparse words and wraps its help differently from 3.13 on")
@pytest.mark.parametrize("program", COMMANDS)
def test_help_texts(program: str, short_path: Path, tmp_path: Path) -> None:
    lines = [f"{program} --help", *(f"{program} {command} --help" for command in COMMANDS[program])]
    done = _run(lines, short_path, tmp_path)
    assert [each.returncode for each in done] == [0] * len(lines)
    text = "\n".join(f"$ {line}\n{each.stdout}" for line, each in zip(lines, done, strict=True))
    expect(f"help_{program}.txt", re.sub(r"(  -j N.*)\(\d+\)", r"\1(CORES)", text).splitlines())


@pytest.mark.parametrize("program", COMMANDS)
def test_exit_codes(program: str, short_path: Path, tmp_path: Path) -> None:
    """The file has the command lines too. HERE is a folder of sockets, where a server listens at live.sock."""
    file = f"exit_codes_{program}.txt"
    lines = [line[5:] for line in (HERE / file).read_text().splitlines()]
    (tmp_path / "ends.toml").write_text('[hello]\ncommand = "true"\nrestart = "temporary"\n')
    (tmp_path / "fails.toml").write_text('[hello]\ncommand = "false"\nintensity = 0\n')
    (tmp_path / "broken.toml").write_text("[hello\n")
    with Server(f"unix://{short_path}/live.sock") as server, ticked(server):
        server.add_listener("add", lambda a, b: a + b)
        server.add_listener("fail", lambda: 1 / 0)
        done = _run(lines, short_path, tmp_path)
    expect(file, [f"{each.returncode:<3}  {line}" for each, line in zip(done, lines, strict=True)])


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_listening_server_ends_by_a_signal(
    number: signal.Signals, exit_code: int, short_path: Path, tmp_path: Path
) -> None:
    command = _command(f"remit listen unix://{short_path}/listen.sock")
    with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=tmp_path, env=_environment(short_path)) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline().startswith(b"listening on")
            process.send_signal(number)
            assert process.wait(DEADLINE) == exit_code
        finally:
            process.kill()


def _run(lines: list[str], places: Path, folder: Path) -> list[subprocess.CompletedProcess[str]]:
    """Run command lines, two at a time, each with a registry of managers of its own."""

    def run(line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            _command(line.replace("HERE", str(places))),
            cwd=folder,
            env=_environment(Path(tempfile.mkdtemp(dir=places))),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(run, lines))


def _command(line: str) -> list[str]:
    """Return a shell that becomes the installed entry point."""
    return ["sh", "-c", f"exec {sysconfig.get_path('scripts')}/{line}"]


def _environment(runtime_dir: Path) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("REMIT_", "DOORMAN_"))}
    return {**own, "XDG_RUNTIME_DIR": str(runtime_dir), "COLUMNS": "100", "NO_COLOR": "1", "LC_ALL": "C.UTF-8"}


# -- bytes on the wire -----------------------------------------------------------------------------------------


def test_frames() -> None:
    lines = [f"{label:28} {frame.hex(' ', -4)}" for label, frame in _frames()]
    kinds = {int(kind) for line in lines for kind in re.findall(r"^\w+ (\d+)", line)}
    assert kinds == set(map(int, frames.FrameKind)), "each kind has a frame here"
    expect("frames.txt", lines)


def _frames() -> Iterator[tuple[str, bytes]]:
    """Yield a frame of each kind with fixed contents. The label begins with a name and the number of the kind."""
    codec = MessagePack()
    one = codec.encode("price", (42, 1.5, "text", b"bytes", None, [True]), {}, {})
    two = codec.encode("done", (), {"ok": True}, {"trace": "t1"})
    events = codec.join(frames.head_with_lengths(3, 7, [one, two]), [one, two])
    session, instance = bytes(range(16)), bytes(range(16, 32))
    secret, number = SharedKey(b"a key that both ends share"), bytes(range(32, 48))
    channel = secret.derive_channel(session, number, client=True)
    yield "events 1", events
    first = codec.join(frames.head_with_lengths(2, 7, [one]), [one])
    yield "events 1, redelivered", frames.with_generation(first, 3, redelivered=True)
    yield "events 1, at most once", codec.join(frames.head_with_lengths(3, 0, [one]), [one])
    yield "events 1, acknowledging", frames.with_ack(events, 9, 8)
    yield "ack 2", frames.pack_numbers(frames.FrameKind.ACK, 3, 9, 8)
    yield "resume 3", frames.pack_numbers(frames.FrameKind.RESUME, 3, 9, 8)
    yield "ping 4", frames.pack_numbers(frames.FrameKind.PING, 3, 7)
    yield "identify 5", frames.head(frames.FrameKind.IDENTIFY)
    yield "hello 6", frames.pack(frames.Hello(session, 3, instance, 5, 7, 9, "msgpack", 1 << 20, 2))
    yield "welcome 7", frames.pack(frames.Welcome(instance, 3, 7, 6, True, 1 << 20, 10.0, 1))
    yield "refuse 8", frames.pack(frames.Refuse("key", "detail", b"about"))
    yield "bye 9", frames.pack(frames.Bye("closed", 3))
    yield "cancel 10", frames.pack_numbers(frames.FrameKind.CANCEL, 3, 4)
    yield "auth_request 11", secret.sign(frames.FrameKind.AUTH_REQUEST, session)
    yield "auth_accept 12", secret.sign(frames.FrameKind.AUTH_ACCEPT, session + number)
    yield "authenticated 13", channel.wrap(frames.pack_numbers(frames.FrameKind.ACK, 3, 9, 8))
    yield "unknown_channel 14", secret.sign(frames.FrameKind.UNKNOWN_CHANNEL, session[:8])


def test_reserved_event_names() -> None:
    """They are the texts of this form that name no module, outside the tables of modules in the __init__ files."""
    found = {
        text.decode("latin1") if isinstance(text, bytes) else text
        for package in ("remit", "doorman")
        for path in (ROOT / package).rglob("[!_]*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(text := node.value, str | bytes)
    }
    names = {text for text in found if re.fullmatch(r"(remit|doorman)(\.[a-z]+)+", text) and not text.endswith(".toml")}
    expect("reserved_names.txt", sorted(name for name in names if name in NAMES_OF_MODULES_TOO or not _is_module(name)))


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # What would hold it is a module, and no package.
        return False


# -- lines of the journal --------------------------------------------------------------------------------------


def test_journal_lines() -> None:
    written = _records()
    assert {type(record) for record in written} == set(records.Record.__args__), "each type has a line here"
    lines = [records.encoded(record) for record in written]
    assert [records.decoded(line) for line in lines] == written
    expect("journal.txt", [line.decode().removesuffix("\n") for line in lines])


def _records() -> list[records.Record]:
    identity = Identity("node", "boot", "4026531836", 4711, 815, None, "1.1", pid_inside=12)
    return [
        records.JournalOpened(records.VERSION, 42, b"location"),
        records.JournalOpened(records.VERSION, 42),
        records.Added("1", "resize", (), b"policy", b"call", ("0",)),
        records.Added("2", "true", ("true", "--help"), b"policy", b""),
        records.Started("1", "1.1", 1, bytes(range(32)), False, "boot"),
        records.ProcessLaunched("1", 4711, 815),
        records.ProcessLaunched("1", 4711, None),
        records.ProcessProven("1", identity, 12.5),
        records.Stopped("1", State.CANCELLED),
        records.OutcomeReceived("1", b"outcome"),
        records.Requeued("1", 2),
        records.Ended("1", State.DONE, exit_code=0, max_rss=1 << 20, value=b"value"),
        records.Ended("2", State.FAILED, signal=9, error=b"error"),
    ]


# -- what holds a task back ------------------------------------------------------------------------------------


def test_why_a_task_waits() -> None:
    with SynchronousManager() as manager:
        causes = [*_causes_of_tasks(manager), *_causes_of_rules()]
    expect("why.txt", [f"{cause:24} {re.sub(r'task [0-9a-f]+', 'task ID', str(text))}" for cause, text in causes])


def _causes_of_tasks(manager: SynchronousManager) -> Iterator[tuple[str, str | None]]:
    manager.add_rule(Rule(processes=0, handler="never"))
    ruled = manager.add_task(Task(len, "", handler="never"))
    asked = manager.add_task(Task(len, "", can_run=lambda: False))
    names = ("first", "second", "third", "fourth", "fifth")
    before = [manager.add_task(Task(len, "", name=name, handler="never")) for name in names]
    after_one = manager.add_task(Task(len, "", after=before[:1]))
    after_many = manager.add_task(Task(len, "", after=before))
    retried = manager.add_task(Task(len, 1, retries=1, backoff=Backoff(first=30.0, jitter=0.0)))
    groups = GroupManager(manager)
    groups.add_group([Task(len, "", handler="never"), Task(len, "", handler="never")])
    groups.add_task(Task(len, ""))
    later = groups.add_task(Task(len, ""))
    free = manager.add_task(Task(len, ""))
    yield "before the first tick", manager.why(free)
    groups.tick()
    yield "ended", manager.why(free)
    yield "rule of a handler", manager.why(ruled)
    yield "can_run", manager.why(asked)
    yield "after one task", manager.why(after_one)
    yield "after many tasks", manager.why(after_many)
    yield "retry", re.sub(r"\d+\.\d s", "SECONDS s", str(manager.why(retried)))
    yield "group", groups.why(later)


def _causes_of_rules() -> Iterator[tuple[str, str | None]]:
    load = Load()
    load.add("mine", 30.4, 20.0)
    load.add("mine", 25.0, 20.0, measured=False)
    for name, rule in {
        "rule": Rule(processes=2),
        "rule, processor load": Rule(processes=1, minimum_processor_load=50),
        "rule, memory load": Rule(processes=1, minimum_memory_load=10, maximum_memory_load=50),
        "rule, sibling processor": Rule(processes=1, maximum_sibling_processor_load=60),
        "rule, sibling memory": Rule(processes=1, minimum_sibling_memory_load=40),
    }.items():
        yield name, rule.holds_back("mine", load)
