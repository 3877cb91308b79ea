"""What the tasks of these tests call travels by value: a child cannot import a test module."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cloudpickle
import pytest
from launching import commands, exit_of, order, zygote_of
from namespaces import needs_inodes

from doorman import GroupManager, ProcessManager, SynchronousManager
from doorman.launcher.command import CommandLauncher
from doorman.launcher.zygote import ZygoteLauncher


@pytest.fixture(autouse=True)
def by_value(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have functions of the test's own module pickled whole."""
    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)


@pytest.fixture(autouse=True)
def kernel(request: pytest.FixtureRequest) -> None:
    """The catalogue of identity failures is forced, and told apart, by what recent kernels give."""
    if request.path.name.startswith("test_identity"):
        needs_inodes()


@pytest.fixture
def runtime_folder(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime folder of the test's own, in which managers are found by no other test."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_path))
    return short_path


@pytest.fixture(params=["processes", "synchronous"])
def groups(request: pytest.FixtureRequest) -> Iterator[GroupManager]:
    """A group manager over each kind of manager."""
    if request.param == "synchronous":
        inner = SynchronousManager()
    else:
        inner = ProcessManager(f"unix://{request.getfixturevalue('short_path')}/m")
    with GroupManager(inner) as groups:
        yield groups


@pytest.fixture
def processes(short_path) -> Iterator[GroupManager]:
    with GroupManager(ProcessManager(f"unix://{short_path}/m")) as groups:
        yield groups


@pytest.fixture
def local(short_path) -> Iterator[ProcessManager]:
    """A manager over a Unix socket, for what has nothing to do with the transport."""
    with ProcessManager(f"unix://{short_path}/manager", grace=1.0) as manager:
        yield manager


@pytest.fixture
def speak() -> Callable[[str], None]:
    """What a task may call: a line on each of its streams."""

    def speak(word: str) -> None:
        print(f"{word} out")
        print(f"{word} err", file=sys.stderr)

    return speak


# -- launchers of `entries` ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def _warm() -> Iterator[ZygoteLauncher]:
    with zygote_of() as launcher:
        exit_of(launcher, order("first", "noop"))
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
