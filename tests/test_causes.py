"""Causes: what keeps a peer away is in the exception, in stats(), in repr() and once in the log."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from ticking import ticked
from waiting import DEADLINE, wait_until

from remit import Client, Location, Server
from remit.errors import EmitTimeout, RequestTimeout, SessionRefused, TransportError, Undelivered


@pytest.fixture(autouse=True)
def _reported_soon(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    monkeypatch.setattr("remit._io.connection_log.GRACE_S", 0.05)
    caplog.set_level(logging.INFO, "remit")
    yield
    logging.getLogger("remit").setLevel(logging.NOTSET)


def absent(location: Location) -> Location:
    """Return a location on which no server is."""
    if location.port == 0:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return location.replace(port=free.getsockname()[1])
    return location


def records(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [record.levelname for record in caplog.records if text in record.getMessage()]


def test_an_absent_server_is_the_cause_everywhere(location: Location, caplog: pytest.LogCaptureFixture) -> None:
    client = Client(absent(location), queue=2, emit_timeout=0.1)
    with pytest.raises(RequestTimeout, match=r"it was never sent: .*is a server there\?"):
        client.request("ping", timeout=0.2)
    wait_until(lambda: records(caplog, "no connection to"))
    why = client.stats()["why"]
    assert "server" in why
    assert why in repr(client)
    client.emit("e")
    client.emit("e")
    with pytest.raises(EmitTimeout) as full:
        client.emit("e")
    with pytest.raises(Undelivered) as lost:
        client.close(0.0)
    assert "is a server there?" in str(full.value)
    assert "is a server there?" in lost.value.why
    assert records(caplog, "no connection to") == ["WARNING"]


def test_a_connection_that_is_lost_and_restored_is_logged_once(
    location: Location, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(location)
    server.add_listener("ping", lambda: "pong")
    with ticked(server):  # First: a client that waits for a tick reports that instead.
        client = Client(server.location)
        client.request("ping")
        while records(caplog, "no connection to"):  # It took a second, and the next report comes after a minute.
            client.close()
            caplog.clear()
            client = Client(server.location)
            client.request("ping")
    server.close()
    with client:
        wait_until(lambda: records(caplog, "lost the connection"))
        wait_until(lambda: client.stats()["why"])
        with Server(server.location) as next_server, ticked(next_server):
            wait_until(lambda: records(caplog, "again"))
            wait_until(lambda: not client.stats()["why"])
    assert records(caplog, "lost the connection") == ["WARNING"]
    assert records(caplog, "again") == ["INFO"]


def test_a_server_that_is_not_ticked_is_the_cause(location: Location) -> None:
    with Server(location) as server:
        server.add_listener("ping", lambda: "pong")
        client = Client(server.location)
        with ticked(server):
            client.request("ping")
        client.emit("e")
        with pytest.raises(RequestTimeout, match="is it ticked"):
            client.request("ping", timeout=1.0)
        with pytest.raises(Undelivered) as lost:
            client.close(0.1)
        assert "is it ticked" in lost.value.why


def test_a_server_without_a_thread_that_is_not_ticked_is_the_cause(crossing_location: Location) -> None:
    with Server(crossing_location, threaded=False) as server, Client(server.location) as client:
        with pytest.raises(RequestTimeout, match=r"ticked|is a server there"):
            client.request("ping", timeout=0.3)
        assert client.stats()["why"]
        with ticked(server):
            wait_until(lambda: not client.stats()["why"])


def test_another_key_is_the_cause(location: Location) -> None:
    with Server(location, key="one") as server, ticked(server), Client(server.location, key="other") as client:
        with pytest.raises(SessionRefused):
            client.request("ping", timeout=DEADLINE)
        assert "key" in client.stats()["why"]
        assert "key" in repr(client)


def test_a_refusing_file_is_the_cause(short_path: Path) -> None:
    """The path is a socket whose program ended, and then it is missing."""
    path = short_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with Client(f"unix://{path}", threaded=False) as client:
        client.tick()
        assert "connection refused" in client.stats()["why"]
        path.unlink()
        wait_until(lambda: "no such file" in client.stats()["why"], tick=client)


@pytest.mark.parametrize("scheme", ["memory", "unix", "zmq+ipc", "nng+ipc"])
def test_a_process_without_descriptors_learns_the_next_action(scheme: str, short_path: Path) -> None:
    """At whichever descriptor they run out, emit raises an error of this package, and leaves no descriptor open."""
    if scheme not in os.environ.get("REMIT_TRANSPORTS", scheme):
        pytest.skip("not among the chosen transports")
    with Server(f"{scheme}://{short_path}/s") as server:
        Client(server.location, threaded=False).close()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        failures, opened = 0, descriptors()
        for spare in range(40):
            resource.setrlimit(resource.RLIMIT_NOFILE, (opened + spare, hard))
            client = Client(server.location, threaded=False)
            try:
                with contextlib.suppress(Undelivered), client:
                    client.emit("e")
                    client.close(0.0)
            except TransportError as error:
                failures += "ulimit -n" in str(error)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            client.close(0.0)
            del client
            if scheme != "nng+ipc":  # nng 1.11 keeps a socket whose connection it could not accept.
                wait_until(lambda: descriptors() <= opened)
        assert failures


def descriptors() -> int:
    """Return the number of descriptors of this process."""
    return len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208
