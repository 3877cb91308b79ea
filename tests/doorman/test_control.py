"""A manager with a control answers authorized queries, and refuses all others."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from chores import stay
from waiting import DEADLINE, wait_until

from doorman import ProcessManager, Task
from doorman.control import registry
from doorman.control.client import Remote, find
from doorman.control.registry import Registration
from doorman.control.server import LOOK, Control, RequestAuth, sign_request
from doorman.errors import ControlRefused, ManagerNotFound, ManagerSilent, NameTaken
from remit import Location, Server
from remit.transport import Credentials, FileLock

pytestmark = pytest.mark.usefixtures("runtime_folder")


@contextmanager
def asking(manager: ProcessManager, question: Any) -> Iterator[list[Any]]:
    """Query the manager in a thread while this thread ticks it; yield a list with the answer or the error."""
    answers: list[Any] = []

    def ask() -> None:
        try:
            answers.append(question())
        except Exception as error:
            answers.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while thread.is_alive():
        manager.tick()
        manager.wait(0.02)
    yield answers


def asked(manager: ProcessManager, question: Any) -> Any:
    with asking(manager, question) as answers:
        return answers[0]


def test_a_manager_of_ones_own_is_found_and_asked(crossing_location: Location) -> None:
    with (
        ProcessManager(crossing_location, grace=1.0) as manager,
        Control(manager, name="mine", progress=lambda: "half"),
    ):
        task = manager.add_task(Task(stay, name="stays"))
        while task.identity is None:
            manager.tick()
            manager.wait(0.02)
        [remote] = find("mine")
        with remote:
            view = asked(manager, remote.look)
            assert (view.name, view.kind, view.progress, view.running) == ("mine", "manager", "half", 1)
            [seen] = view.tasks
            assert (seen.name, seen.state, seen.identity) == ("stays", "running", task.identity)
            assert seen.memory > 1 << 20
            assert asked(manager, lambda: remote.stop(seen.id, "an attempt before")) == "replaced"
            assert task.state == "running"
            assert asked(manager, lambda: remote.stop(seen.id, seen.identity.attempt)) == "stopping"
            manager.run(DEADLINE)
            assert task.state == "cancelled"
            assert asked(manager, lambda: remote.stop(seen.id, seen.identity.attempt)) == "finished"
    assert registry.entries() == []


def test_a_client_without_the_key_is_refused_on_a_transport_that_attests_no_user(short_path: Path) -> None:
    location = f"zmq+ipc://{short_path}/z"
    pytest.importorskip("zmq")
    with ProcessManager(location) as manager, Control(manager):
        for key in (b"", b"another"):
            with Remote(Location(location), key=key) as remote:
                assert isinstance(asked(manager, remote.look), ControlRefused)


def test_another_user_is_refused_on_a_transport_that_attests_users() -> None:
    auth = RequestAuth(b"key")
    challenge = auth.new_challenge()
    sender = SimpleNamespace(credentials=Credentials(1, 4711, 4711))
    event = SimpleNamespace(args=(challenge, sign_request(b"key", challenge, LOOK, ())), sender=sender)
    with pytest.raises(ControlRefused, match="from user 4711"):
        auth.check(LOOK, event)  # type: ignore[arg-type]


def test_a_signature_is_valid_once() -> None:
    auth = RequestAuth(b"key")
    challenge = auth.new_challenge()
    signature = sign_request(b"key", challenge, LOOK, ("argument",))
    unattested = SimpleNamespace(credentials=None)
    event = SimpleNamespace(args=(challenge, signature, "argument"), sender=unattested)
    assert auth.check(LOOK, event) == ("argument",)  # type: ignore[arg-type]
    with pytest.raises(ControlRefused, match="does not attest the user"):
        auth.check(LOOK, event)  # type: ignore[arg-type]


def test_a_server_without_a_control_is_reported(short_path: Path) -> None:
    location = Location(f"unix://{short_path}/s")
    with Server(location) as server, Remote(location, timeout=DEADLINE) as remote:
        thread = threading.Thread(target=server.run)
        thread.start()
        with pytest.raises(ManagerNotFound, match="not a manager with a control"):
            remote.look()
        server.stop()
        thread.join(DEADLINE)


def test_a_manager_that_is_not_ticked_is_silent(short_path: Path) -> None:
    with ProcessManager(f"unix://{short_path}/u") as manager, Control(manager, name="idle"):
        answers: list[Any] = []

        def ask() -> None:
            [remote] = find("idle", timeout=0.2)
            with remote, pytest.raises(ManagerSilent, match="ticked") as caught:
                remote.look()
            answers.append(caught.value)

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join(DEADLINE)
        assert len(answers) == 1


def test_a_name_is_one_managers(runtime_folder: Path) -> None:
    here = Location("unix:///tmp/x")
    first = Registration("web", here, kind="manager", key=b"k")
    with pytest.raises(NameTaken, match="'web' runs already"):
        Registration("web", here, kind="manager", key=b"k")
    first.close()
    first.close()
    Registration("web", here, kind="manager", key=b"k").close()
    with pytest.raises(ValueError, match="cannot name a manager"):
        Registration("../web", here, kind="manager", key=b"k")
    assert registry.entries() == []


def test_removed_files_of_an_entry_are_restored(
    runtime_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(registry, "CHECK_INTERVAL_S", 0.02)
    first = Registration("web", Location("unix:///tmp/x"), kind="manager", key=b"k")
    kept = sorted(path.name for path in registry.folder().iterdir())
    for folder in (runtime_folder / "remit", registry.folder()):
        shutil.rmtree(folder)
        wait_until(lambda: sorted(path.name for path in registry.folder().iterdir()) == kept)
    assert [entry.name for entry in registry.entries()] == ["web"]
    with pytest.raises(NameTaken):
        Registration("web", Location("unix:///tmp/x"), kind="manager", key=b"k")
    other, rest = runtime_folder / "other", registry.folder()
    other.mkdir()
    taken = FileLock(str(other / "web.json"))
    (other / "web.json.lock").rename(rest / "web.json.lock")
    wait_until(lambda: "another manager took the name 'web'" in caplog.text)
    first.close()
    assert (rest / "web.json").exists()
    taken.release()


@pytest.mark.parametrize(
    "change", [{"inode": 1}, {"boot_id": "before"}, {"pid": 1 << 22, "inode": None, "start_time": 1}]
)
def test_an_entry_of_a_process_that_is_no_more_is_stale(change: dict[str, Any], runtime_folder: Path) -> None:
    registration = Registration("web", Location("unix:///tmp/x"), kind="manager", key=b"k")
    entry = registration.entry
    registration.close()
    path = registry.folder() / "web.json"
    process = msgspec.to_builtins(entry.process) | change
    for written, left in ((msgspec.to_builtins(entry), 1), (msgspec.to_builtins(entry) | {"process": process}, 0)):
        path.write_bytes(msgspec.json.encode(written))
        assert len(registry.entries()) == left
    assert not path.exists()


def test_a_file_that_is_no_entry_is_removed(runtime_folder: Path) -> None:
    (registry.folder() / "odd.json").write_text("{")
    assert registry.entries() == []
    assert [*registry.folder().iterdir()] == []


def test_the_folder_is_this_users_alone(runtime_folder: Path) -> None:
    registration = Registration("web", Location("unix:///tmp/x"), kind="manager", key=b"k")
    modes = [path.stat().st_mode & 0o077 for path in (registry.folder(), registry.folder() / "web.json")]
    registration.close()
    assert modes == [0, 0]
