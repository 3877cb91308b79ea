"""What the tasks of these tests call travels by value: a child cannot import a test module."""

from __future__ import annotations

from collections.abc import Iterator

import cloudpickle
import pytest

from doorman import GroupManager, ProcessManager, SynchronousManager


@pytest.fixture(autouse=True)
def by_value(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have functions of the test's own module pickled whole."""
    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)


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
