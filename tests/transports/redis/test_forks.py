"""Processes over Redis: one that forks, and one that only imports."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import warnings

import pytest
from redis_ends import arrive, pair, until, works
from redis_server import Redis

from remit.errors import ForkedLinkError
from remit.transport import SERVER, Down


def test_importing_the_plugin_imports_no_backend() -> None:
    """A program that uses another transport does not pay for this one."""
    code = "import remit_redis, sys; print(sorted({'redis', 'hiredis', 'ssl'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_forked_child_touches_nothing(redis: Redis) -> None:
    """It may close, forget or keep its copies: the parent's connection stays, and ends when the parent says so."""
    server, client, peer = pair(redis.location)
    descriptors = [link.connection.fileno() for link in (server, client)]
    reader, writer = os.pipe()
    done_reader, done_writer = os.pipe()
    with warnings.catch_warnings():  # the child only closes and exits
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            for descriptor in descriptors:
                with pytest.raises(OSError):
                    os.fstat(descriptor)
            for link in (server, client):
                with pytest.raises(ForkedLinkError):
                    link.receive()
                with pytest.raises(ForkedLinkError):
                    link.send(SERVER, b"")
                link.close(1)
            del link, server, client
            status = 0
        os.write(done_writer, b"x")
        os.close(writer)
        os.read(reader, 1)
        os._exit(status)
    os.close(reader)
    os.close(done_writer)
    os.read(done_reader, 1)
    os.close(done_reader)
    works(server, client, peer)
    client.close(1)
    assert arrive(server, Down)[0].peer == peer
    server.close(1)
    until(lambda: b" name=remit " not in redis.say("CLIENT", "LIST"))
    os.write(writer, b"x")
    os.close(writer)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
