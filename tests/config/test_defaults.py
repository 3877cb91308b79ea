"""Defaults, and private locations: in folders that nobody else can use."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from remit import Location
from remit.config import private_location, resolve
from remit.errors import BadLocation, TransportNotInstalled, UnknownLocation


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_default_lies_in_the_session_folder(project: Path) -> None:
    location = resolve()
    assert location == resolve() == Location(f"unix://{project.parent}/session/remit/default.sock")
    assert mode(Path(location.path).parent) == 0o700


def temporary(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr("tempfile.tempdir", str(project))
    return project / f"remit-{os.geteuid()}"


def test_without_a_session_folder_the_default_lies_in_a_folder_of_this_users(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = temporary(project, monkeypatch)
    assert resolve() == Location(f"unix://{folder}/default.sock")
    assert mode(folder) == 0o700


def open_to_others(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o755)


def somebody_elses(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, -1)


def a_link(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(folder.parent / "elsewhere")


NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")


@pytest.mark.parametrize(
    ("lay", "fault"),
    [
        (open_to_others, "is open to other users"),
        pytest.param(somebody_elses, "belongs to user 12345", marks=NEEDS_ROOT),
        (a_link, "is not a directory"),
    ],
)
def test_a_folder_that_others_may_use_is_refused(
    lay: Callable[[Path], None], fault: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(temporary(project, monkeypatch))
    with pytest.raises(BadLocation, match=f"{fault}: remove it, or set XDG_RUNTIME_DIR"):
        resolve()


def test_a_session_folder_that_is_not_ours_is_not_used(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(project))
    (project.parent / "session").chmod(0o755)
    assert resolve().path.startswith(str(project))


@pytest.mark.parametrize("temporary", ["{project}", "/proc"])
def test_where_no_folder_can_be_made_the_next_one_is_used_and_none_is_named(
    temporary: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/proc/self/fd")  # Of this user alone, and not writable.
    monkeypatch.setattr("tempfile.tempdir", temporary.format(project=project))
    if temporary == "/proc":
        with pytest.raises(BadLocation, match=r"/proc/self/fd/remit.*/proc/remit-.*: set XDG_RUNTIME_DIR or TMPDIR"):
            private_location()
    else:
        assert private_location().path.startswith(f"{project}/remit-{os.geteuid()}/")


@pytest.mark.parametrize(
    ("url", "transport", "start"),
    [
        ("", "", "unix://{session}/remit/shop-"),
        ("", "unix", "unix://{session}/remit/shop-"),
        ("", "pipes", "pipes+ipc://{session}/remit/shop-"),
        ("", "pipes+tcp", "pipes+ipc://{session}/remit/shop-"),
        ("", "wires", "wires+tcp://127.0.0.1:0"),
        ("unix:///run/a.sock?linger=2s", "", "unix://{session}/remit/shop-"),
        ("pipes+tcp://10.0.0.7:5555", "", "pipes+ipc://{session}/remit/shop-"),
        ("wires+tcp://10.0.0.7:5555?linger=2s", "", "wires+tcp://127.0.0.1:0?linger=2s"),
        ("wide://user:secret@db:6379/0", "", "wide://user:secret@db:6379/0?prefix=shop-"),
        ("wide://user:secret@db:6379/0?prefix=a", "unix", "wide://user:secret@db:6379/0?prefix=shop-"),
    ],
)
def test_a_private_location_is_fresh_and_on_the_configured_transport(
    url: str, transport: str, start: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMIT_URL", url)
    monkeypatch.setenv("REMIT_TRANSPORT", transport)
    one, other = private_location("shop"), private_location("shop")
    assert one.url.startswith(start.format(session=project.parent / "session"))
    assert one != other or one.port == 0
    assert dict(one.options).get("linger") == dict(Location(url).options if url else {}).get("linger")


@pytest.mark.parametrize("url", ["memory://within"])
def test_where_no_private_location_can_be_made_one_is_asked_for(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMIT_URL", url)
    with pytest.raises(UnknownLocation, match="pass one that child processes can reach"):
        private_location()


def test_a_transport_that_has_no_default_location_asks_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMIT_TRANSPORT", "wide")
    with pytest.raises(UnknownLocation, match=r"set REMIT_URL, or put 'url' into remit\.toml"):
        resolve()


@pytest.mark.parametrize("call", [resolve, private_location])
def test_a_configured_transport_that_is_not_installed_is_told(
    call: Callable[[], Location], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMIT_TRANSPORT", "carrierpigeon")
    with pytest.raises(TransportNotInstalled, match="'carrierpigeon'"):
        call()


def test_a_hint_becomes_a_part_of_a_file_name(project: Path) -> None:
    name = Path(private_location("../a b/ü-very-long-name-indeed").path).name
    assert name.startswith("ab-very-long-nam-")
    assert Path(private_location("").path).name.startswith("private-")


def test_a_path_is_fresh_even_where_process_numbers_repeat() -> None:
    # As in two containers that share the folder: each interpreter calls it for the first time.
    code = "import os; os.getpid = lambda: 1; from remit.config import private_location; print(private_location())"
    first, second = (subprocess.check_output([sys.executable, "-c", code], text=True) for _ in range(2))
    assert "-1-1-" in first
    assert "-1-1-" in second
    assert first != second
