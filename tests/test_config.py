"""Config: argument before environment before file before default, and errors that say where to look."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from remit import Location, configfile
from remit.config import private_location, resolve
from remit.errors import BadLocation, LocationError, TransportNotInstalled, UnknownLocation, UnknownOption
from remit.plugins import register_transport, unregister_transport
from remit.transport import Capabilities
from remit.transports.memory import MemoryTransport


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, with nothing configured anywhere and a session folder of its own."""
    for name in [name for name in os.environ if name.startswith("REMIT_")]:
        monkeypatch.delenv(name)
    session = tmp_path / "session"
    session.mkdir(mode=0o700)
    # Pytest's folder may be too deep for a socket.
    monkeypatch.setattr("remit.places.LONGEST_FOLDER", 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(session))
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


class Wide(MemoryTransport):
    """A transport that reaches other hosts, and keeps its users apart by prefixes."""

    capabilities = Capabilities(max_frame=1024, crosses_hosts=True)
    options = {"prefix": str}


@pytest.fixture(autouse=True)
def transports() -> Iterator[None]:
    """The schemes of three backends: one with carriers, one with hosts and ports only, one with a prefix."""
    names = ("pipes+tcp", "pipes+ipc", "wires+tcp", "wide")
    for name in names:
        register_transport(name, Wide())
    yield
    for name in names:
        unregister_transport(name)


# -- precedence ------------------------------------------------------------------------------------------------

ARGUMENT, ENVIRONMENT, OWN_FILE, PROJECT_FILE, PARENT = (
    "argument",
    "environment",
    "remit.toml",
    "pyproject.toml",
    "parent",
)
ORDER = (ARGUMENT, ENVIRONMENT, OWN_FILE, PROJECT_FILE, PARENT)
"""The sources, first the one that counts most."""


def define(source: str, project: Path, monkeypatch: pytest.MonkeyPatch, *, variable: str, own: str, tool: str) -> None:
    """Let one source say where to go."""
    if source == ENVIRONMENT:
        monkeypatch.setenv(variable, f"memory://{source}")
    elif source == OWN_FILE:
        (project / "remit.toml").write_text(own.format(url=f"memory://{source}"))
    elif source == PROJECT_FILE:
        (project / "pyproject.toml").write_text(tool.format(url=f"memory://{source}"))
    elif source == PARENT:
        (project.parent / "remit.toml").write_text(own.format(url=f"memory://{source}"))


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(ORDER, 2)))
def test_the_unnamed_location_comes_from_the_first_source(
    first: str, second: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for source in (second, first):
        define(
            source, project, monkeypatch, variable="REMIT_URL", own='url = "{url}"', tool='[tool.remit]\nurl = "{url}"'
        )
    assert resolve("memory://argument" if first == ARGUMENT else None) == Location(f"memory://{first}")


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(ORDER[1:], 2)))
def test_a_named_location_comes_from_the_first_source(
    first: str, second: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for source in (second, first):
        define(
            source,
            project,
            monkeypatch,
            variable="REMIT_BIG_EVENTS_2_URL",
            own='[locations]\n"big-events.2" = "{url}"',
            tool='[tool.remit.locations."big-events.2"]\nurl = "{url}"',
        )
    assert resolve("big-events.2") == Location(f"memory://{first}")


@pytest.mark.parametrize("source", ORDER[1:])
def test_every_source_goes_before_the_defaults(source: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    define(source, project, monkeypatch, variable="REMIT_URL", own='url = "{url}"', tool='[tool.remit]\nurl = "{url}"')
    assert resolve(default="memory://callers") == resolve() == Location(f"memory://{source}")


def test_the_callers_default_goes_before_remits_own(project: Path) -> None:
    assert resolve(default="memory://callers") == Location("memory://callers")
    assert resolve().scheme == "unix"


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(("environment", "file", "default"), 2)))
def test_the_transport_of_host_and_port_comes_from_the_first_source(
    first: str, second: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "environment" in (first, second):
        monkeypatch.setenv("REMIT_TRANSPORT", "wires")
    if "file" in (first, second):
        (project / "remit.toml").write_text('transport = "pipes"')
    scheme = {"environment": "wires+tcp", "file": "pipes+tcp"}[first]
    assert resolve(Location("127.0.0.1", 5555)) == resolve("127.0.0.1:5555") == Location(f"{scheme}://127.0.0.1:5555")


def test_a_project_without_a_remit_table_is_passed_over(project: Path) -> None:
    (project.parent / "pyproject.toml").write_text('[tool.remit]\nurl = "memory://above"')
    for without in ('[tool.other]\nurl = "memory://other"', "tool = 5", ""):
        (project / "pyproject.toml").write_text(without)
        assert resolve() == Location("memory://above")


def test_a_working_directory_that_is_gone_has_no_file(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = project / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert resolve("127.0.0.1:5555").port == 5555


def test_of_two_folders_above_the_nearer_one_counts(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.parent / "remit.toml").write_text('url = "memory://far"')
    (project / "pyproject.toml").write_text('[tool.remit]\nurl = "memory://near"')
    below = project / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert resolve() == Location("memory://near")


def test_an_empty_variable_counts_as_none(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMIT_URL", "")
    (project / "remit.toml").write_text('url = "memory://file"')
    assert resolve() == Location("memory://file")


# -- what is given ---------------------------------------------------------------------------------------------


def test_a_location_with_a_scheme_is_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMIT_URL", "memory://other")
    location = Location("whatever+tcp://host:1?option=2")
    assert resolve(location) is location


@pytest.mark.parametrize(
    ("transport", "scheme"), [("", "zmq+tcp"), ("pipes", "pipes+tcp"), ("wide", "wide"), ("pipes+tcp", "pipes+tcp")]
)
def test_host_and_port_get_the_configured_transport(
    transport: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMIT_TRANSPORT", transport)
    assert resolve(Location("10.0.0.7", 5555, linger="2s")).url == f"{scheme}://10.0.0.7:5555?linger=2s"
    assert resolve("[::1]:5555").url == f"{scheme}://[::1]:5555"


@pytest.mark.parametrize("transport", ["unix", "memory"])
def test_a_transport_without_hosts_refuses_host_and_port(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMIT_TRANSPORT", transport)
    with pytest.raises(BadLocation, match=f"'{transport}' has no hosts and ports"):
        resolve("127.0.0.1:5555")


@pytest.mark.parametrize("text", ["", "two words", "unix:path", "/tmp/a.sock", "a/b"])
def test_what_is_neither_url_nor_name_is_refused(text: str) -> None:
    with pytest.raises(BadLocation, match="neither a URL"):
        resolve(text)


def test_an_unknown_name_is_refused_with_those_known_and_the_three_places(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "remit.toml").write_text('locations.events = "memory://a"')
    monkeypatch.setenv("REMIT_JOBS_URL", "memory://b")
    with pytest.raises(UnknownLocation) as caught:
        resolve("evnts")
    for words in (
        "'evnts'",
        "events, jobs",
        "did you mean 'events'?",
        "REMIT_EVNTS_URL",
        "remit.toml",
        "pyproject.toml",
    ):
        assert words in str(caught.value)


# -- files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "url"),
    [
        ('url = "memory://a?x=1"\ny = 2', "memory://a?x=1&y=2"),
        ('host = "10.0.0.7"\nport = 5555', "zmq+tcp://10.0.0.7:5555"),
        (
            'host = "10.0.0.7"\nport = 5555\ntransport = "wide"\nprefix = "p"\nflag = true',
            "wide://10.0.0.7:5555?flag=true&prefix=p",
        ),
        ('url = "10.0.0.7:5555"', "zmq+tcp://10.0.0.7:5555"),
    ],
)
def test_a_named_location_may_be_a_table(table: str, url: str, project: Path) -> None:
    (project / "remit.toml").write_text(f"[locations.events]\n{table}")
    assert resolve("events").url == url


BAD_FILES = {
    "not TOML": ("url = ", BadLocation, "cannot read"),
    "not a table": ("locations = 3", BadLocation, "table of names"),
    "not a text": ("url = 3", BadLocation, "'url'"),
    "empty": ('transport = " "', BadLocation, "'transport'"),
    "a typing error": ('transprot = "zmq"', UnknownOption, "unknown key 'transprot'; did you mean 'transport'?"),
    "an unknown key": ("colour = 1", UnknownOption, "(known: locations, transport, url)"),
    "no address": ("locations.events = {linger = 2}", BadLocation, "either a 'url', or a 'host'"),
    "two addresses": (
        'locations.events = {url = "memory://a", host = "b"}',
        BadLocation,
        "either a 'url', or a 'host'",
    ),
    "no port": ('locations.events = {host = "b"}', BadLocation, "'port'"),
    "two ports": ('locations.events = {url = "a:1", port = 2}', BadLocation, "port in its 'url'"),
    "two transports": ('locations.events = {url = "a:1", transport = "b"}', BadLocation, "transport in its 'url'"),
    "a bad port": ('locations.events = {host = "b", port = 70000}', BadLocation, "70000"),
    "a port as text": ('locations.events = {host = "b", port = "1"}', BadLocation, "whole number"),
    "a table in a table": ('locations.events = {url = "a:1", x = {y = 1}}', BadLocation, "'x'"),
    "a number": ("locations.events = 5", BadLocation, "a URL or a table"),
    "no URL": ('locations.events = "nowhere"', BadLocation, "neither a URL nor host:port"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_with_its_path(case: str, project: Path) -> None:
    content, kind, words = BAD_FILES[case]
    (project / "remit.toml").write_text(content)
    with pytest.raises(kind) as caught:
        resolve("events")
    assert words in str(caught.value)
    assert str(project / "remit.toml") in str(caught.value)


def test_a_reference_is_filled_from_the_environment(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "remit.toml").write_text(
        'url = "wide://user:${SECRET}@${HOST}:${PORT}/0"\nlocations.all = "${WHOLE}"\n'
        '[locations.table]\nurl = "memory://a"\nx = "${SECRET}"'
    )
    for name, value in (("SECRET", "p@ss/w:rd#%"), ("HOST", "db"), ("PORT", "6379"), ("WHOLE", "memory://whole")):
        monkeypatch.setenv(name, value)
    location = resolve()
    assert (location.password, location.host, location.port) == ("p@ss/w:rd#%", "db", 6379)
    assert resolve("all") == Location("memory://whole")
    assert dict(resolve("table").options) == {"x": "p@ss/w:rd#%"}


def test_a_reference_to_nothing_is_refused(project: Path) -> None:
    (project / "remit.toml").write_text('url = "wide://user:${SECRET_OF_TEST}@db"')
    with pytest.raises(BadLocation, match=r"'url' in .*remit.toml refers to \$\{SECRET_OF_TEST\}, which is not set"):
        resolve()


@pytest.mark.parametrize("source", ["environment", "file"])
def test_a_password_is_not_told_in_errors(source: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "wide://user:hunter2@db:port"
    if source == "environment":
        monkeypatch.setenv("REMIT_URL", url)
    else:
        (project / "remit.toml").write_text(f'url = "{url}"')
    with pytest.raises(LocationError) as caught:
        resolve()
    assert "hunter2" not in str(caught.value)
    assert "REMIT_URL" in str(caught.value) or "remit.toml" in str(caught.value)


def test_a_file_is_read_once_and_again_when_it_has_changed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = project / "remit.toml"
    path.write_text('url = "memory://first"')
    reads: list[Path] = []
    read = configfile._read

    def counting(path: Path) -> object:
        reads.append(path)
        return read(path)

    monkeypatch.setattr(configfile, "_read", counting)
    assert resolve() == resolve() == Location("memory://first")
    assert reads.count(path) == 1
    path.write_text('url = "memory://second one"')
    assert resolve() == Location("memory://second one")
    assert reads.count(path) == 2


# -- defaults and private locations ----------------------------------------------------------------------------


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
        (a_link, "is not a folder"),
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


def test_a_path_is_fresh_even_where_process_numbers_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    # As in two containers that share the folder.
    monkeypatch.setattr("remit.places._numbers", itertools.repeat(1))
    assert private_location() != private_location()
