"""Ends over nng: forked, forgotten, or never begun."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
from links import DEADLINE
from processes import SUPPORT

pytest.importorskip("remit_nng")


def program(code: str) -> subprocess.CompletedProcess[str]:
    """Run a program that imports `links`; it must end by itself."""
    command = [
        sys.executable,
        "-W",
        "ignore::DeprecationWarning",
        "-c",
        f"import sys; sys.path.insert(0, {str(SUPPORT)!r})\n{textwrap.dedent(code)}",
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=2 * DEADLINE, check=False)


FORK = """
import gc, os, pickle
from links import Pair, frames, transport_of
from remit import Location
from remit.errors import ForkedLinkError, TransportError
from remit.transport import SERVER

def child(work):
    pid = os.fork()
    if pid == 0:
        work()
        sys.exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7

def refused(call, error, word):
    try:
        call()
    except error as refusal:
        assert word in str(refusal), refusal
        return
    raise AssertionError(call)

place = Location("nng+tcp://127.0.0.1:0")
gc.disable()
"""


def test_a_forked_child_opens_nothing_and_ends_like_any_other() -> None:
    """nng would abort it: at its first use, when what it inherited is collected, or as it ends by itself."""
    done = program(
        FORK
        + """
def inherit():
    refused(pair.client.receive, ForkedLinkError, "before a fork")
    for verb in (pair.transport.bind, pair.transport.connect):
        refused(lambda: verb(pair.location), TransportError, "spawn")
    pair.close()
    gc.collect()
    child(lambda: refused(lambda: pair.transport.bind(place), TransportError, "spawn"))

with Pair(place) as early:
    early.meet()
    for _ in range(3):  # what has ended leaves something to collect
        other = early.transport.connect(early.location)
        other.close(0.0)
        early.turn()
del early, other
pair = Pair(place)
pair.meet()
child(inherit)
child(lambda: None)
pair.to_server(b"still here")
pair.to_client(b"still there")
pair.until(lambda: frames(pair.at_server) and frames(pair.at_client))
pair.close()
child(gc.collect)
del pair
child(gc.collect)
print("ok")
"""
    )
    assert (done.stdout, done.stderr, done.returncode) == ("ok\n", "", 0)


def test_a_process_forked_before_nng_was_used_may_use_it() -> None:
    done = program(
        FORK
        + """
transport_of(place)

def use():
    with Pair(place) as pair:
        pair.meet()

child(use)
use()
print("ok")
"""
    )
    assert (done.stdout, done.stderr, done.returncode) == ("ok\n", "", 0)


@pytest.mark.parametrize("ends", ["pass", "sys.exit(0)", "del pair; gc.collect()", "pair.client.close(0.0)"])
def test_a_program_that_forgets_to_close_ends_all_the_same(ends: str) -> None:
    done = program(
        f"import gc\nfrom remit import Location\nfrom links import *\npair = Pair(Location('nng+tcp://127.0.0.1:0'))\npair.meet()\n{ends}"
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_importing_the_plugin_imports_no_backend() -> None:
    """A program that uses another transport does not pay for this one."""
    done = program("import remit_nng; print(sorted({'pynng', 'cffi'} & set(sys.modules)))")
    assert (done.stdout, done.stderr) == ("[]\n", "")
