"""Wheels: what they hold, and that a stranger's transport installed from one works like ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tutorial
from distributions import TRANSPORT, distribution

if TYPE_CHECKING:
    from conftest import Environment

PACKAGES = {
    "remit": ("remit", "doorman"),
    "remit-zeromq": ("remit_zeromq",),
    "remit-redis": ("remit_redis",),
    "remit-nng": ("remit_nng",),
    "remit-plain": ("remit_plain",),
}
OURS = [name for name in PACKAGES if name != "remit-plain"]
pytestmark = pytest.mark.timeout(300)  # the first test waits for the wheels, whose tools may have to be downloaded
EVENTS = 500
SCHEME = "plain+tcp"

SERVER = f"""
import time
from remit import Server
heard = []
with Server("{SCHEME}://127.0.0.1:0") as server:
    server.add_listener("count", heard.append)
    print(server.location.url, flush=True)
    deadline = time.monotonic() + 30
    while len(heard) < {EVENTS} and time.monotonic() < deadline:
        server.tick() or server.wait(1.0)
assert heard == list(range({EVENTS})), heard
print("all", flush=True)
"""
CLIENT = f"""
import sys
from remit import Client
with Client(sys.argv[1]) as client:
    for number in range({EVENTS}):
        client.emit("count", number)
"""


# -- what they hold --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PACKAGES)
def test_a_wheel_holds_its_packages_and_nothing_else(wheels: dict[str, Path], name: str) -> None:
    with zipfile.ZipFile(wheels[name]) as wheel:
        files = wheel.namelist()
    info = f"{wheels[name].name.rpartition('-py3')[0]}.dist-info"
    assert {file.partition("/")[0] for file in files} == {*PACKAGES[name], info}
    for package in PACKAGES[name]:
        assert f"{package}/__init__.py" in files
        assert f"{package}/py.typed" in files or name not in OURS
    tests = [file for file in files if "/test_" in file or "/tests/" in file or "conftest" in file or "/." in file]
    assert tests == []


@pytest.mark.parametrize("name", OURS)
def test_a_wheel_states_what_an_index_must_know(wheels: dict[str, Path], name: str) -> None:
    with zipfile.ZipFile(wheels[name]) as wheel:
        (path,) = [file for file in wheel.namelist() if file.endswith("/METADATA")]
        metadata = Parser().parsestr(wheel.read(path).decode())
    assert metadata["Name"] == name
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata.get_payload(), "a page without a description"
    requirements = [text.partition(";")[0].strip() for text in metadata.get_all("Requires-Dist")]
    if name == "remit":
        assert metadata.get_all("Provides-Extra") == ["all", "cli", "nng", "redis", "zeromq"]
        assert {"remit-nng", "remit-redis", "remit-zeromq"} <= set(requirements)
    else:
        assert "remit" in requirements


def test_what_is_installed_is_the_wheel_and_not_this_checkout(bare: Environment) -> None:
    done = bare.run("python", "-c", "import remit, doorman; print(remit.__file__, doorman.__file__)")
    assert done.stderr == ""
    assert all(file.startswith(str(bare.folder)) for file in done.stdout.split())


# -- a stranger's transport ------------------------------------------------------------------------------------


def test_events_cross_processes_over_a_strangers_transport(equipped: Environment) -> None:
    with equipped.start("python", "-c", SERVER) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            client = equipped.run("python", "-c", CLIENT, url)
            output, errors = server.communicate(timeout=60)
        finally:
            server.kill()
    assert (client.returncode, client.stderr) == (0, "")
    assert (server.returncode, output, errors) == (0, "all\n", "")


def test_the_commands_work_over_a_strangers_transport(equipped: Environment) -> None:
    with equipped.start("remit", "listen", f"{SCHEME}://127.0.0.1:0", "--count", "1") as server:
        try:
            assert server.stderr is not None
            url = server.stderr.readline().split()[-1]
            assert equipped.run("remit", "emit", url, "greet", '"world"').returncode == 0
            output, errors = server.communicate(timeout=60)
        finally:
            server.kill()
    assert (server.returncode, errors) == (0, "")
    assert json.loads(output)["args"] == ["world"]


def test_a_strangers_transport_is_listed_like_ours(equipped: Environment) -> None:
    lines = [line.split(maxsplit=3) for line in equipped.run("remit", "transports").stdout.splitlines()]
    version = lines[1][2]
    assert lines[1:] == [
        ["memory", "remit", version, "ready"],
        [SCHEME, "remit-plain", "1.0", "ready"],
        ["unix", "remit", version, "ready"],
    ]


def test_a_strangers_transport_keeps_the_contract(wheels: dict[str, Path], tmp_path: Path) -> None:
    """By the very test file that its author is told to write."""
    with zipfile.ZipFile(wheels["remit-plain"]) as wheel:
        wheel.extractall(tmp_path / "installed")
    output = pytest_passes("tests", wheel=tmp_path / "installed", folder=tutorial.lay_out(tmp_path / "source"))
    skipped = [line for line in output.splitlines() if line.startswith("SKIPPED")]
    assert len(skipped) == 2, skipped
    assert "this harness cannot restart the backend's own server" in output
    assert "attests_peers is not declared" in output


def test_events_are_safe_over_a_strangers_transport(wheels: dict[str, Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(wheels["remit-plain"]) as wheel:
        wheel.extractall(tmp_path)
    pytest_passes("test_emit.py", wheel=tmp_path, folder=Path(__file__).parents[1])


def pytest_passes(file: str, *, wheel: Path, folder: Path) -> str:
    """Run tests of a folder, with a wheel that was unpacked beside all that is installed here; return what was said."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", file],
        env={**os.environ, "PYTHONPATH": str(wheel), "REMIT_TRANSPORTS": SCHEME},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    return done.stdout


def test_a_transport_that_is_not_installed_is_asked_for(bare: Environment) -> None:
    done = bare.run("remit", "emit", f"{SCHEME}://127.0.0.1:1", "name")
    assert done.returncode == 2
    assert "no transport for 'plain+tcp' is installed (installed: memory, unix); install a distribution" in done.stderr


@pytest.mark.parametrize(
    ("url", "extra"),
    [("redis://h", "redis"), ("rediss://h", "redis"), ("zmq+tcp://h:1", "zeromq"), ("nng://h:1", "nng")],
)
def test_a_transport_of_ours_that_is_not_installed_is_asked_for_by_its_extra(
    bare: Environment, url: str, extra: str
) -> None:
    done = bare.run("remit", "emit", url, "name")
    assert done.returncode == 2
    assert f"try: pip install 'remit[{extra}]'" in done.stderr


def test_two_claimants_are_both_named(equipped: Environment, tmp_path: Path) -> None:
    distribution(tmp_path, "copycat", {SCHEME: "copycat"}, {"copycat": TRANSPORT}, version="0.9")
    done = equipped.run("remit", "emit", f"{SCHEME}://127.0.0.1:1", "name", path=tmp_path)
    assert done.returncode == 2
    assert "'plain+tcp' is claimed by copycat 0.9 and remit-plain 1.0" in done.stderr


def test_a_broken_neighbour_does_not_disturb(equipped: Environment, tmp_path: Path) -> None:
    distribution(tmp_path, "rotten", {"rotten": "rotten"}, {"rotten": "raise SystemExit('rotten')"}, version="6.6")
    states = equipped.run("remit", "transports", path=tmp_path).stdout
    assert f"{SCHEME}" in states
    assert "broken: the transport for 'rotten', from rotten 6.6, cannot be loaded: SystemExit: rotten" in states
    code = f"from remit.plugins import find_transport; print(find_transport('{SCHEME}').capabilities.crosses_hosts)"
    done = equipped.run("python", "-c", code, path=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
