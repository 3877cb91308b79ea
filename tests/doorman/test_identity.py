"""Identity: what a process says of itself, checked against the kernel."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from launching import commands, ended, fifo, launched, opened, order
from namespaces import needs_namespaces

from doorman.errors import IdentityRefused, PidfdUnavailable
from doorman.identity import NODE_ID, Credential, Identity, Refusal, boot_id, hello, own_identity, verify
from doorman.process import Process, process_by_inode
from remit.transport import Credentials

WRAPPERS = {
    "none": (),
    "nice": ("nice",),
    "env": ("env", "-i"),
    "setsid": ("setsid", "--wait"),
    "timeout": ("timeout", "60"),
    "nohup": ("nohup",),
    "sh": ("sh", "-c", '"$@"; true', "sh"),
    "pipeline": ("sh", "-c", '"$@" | cat', "sh"),
    "sh in sh": ("sh", "-c", '"$@"; true', "sh", "sh", "-c", '"$@"; true', "sh"),
    "PID namespace": ("unshare", "--pid", "--fork", "--mount-proc"),
}
EXACT = {"none", "nice", "env", "nohup"}


@pytest.fixture
def credential() -> Credential:
    return Credential("a", task="task")


@pytest.fixture
def own() -> Iterator[Process]:
    with Process.open(os.getpid()) as process:
        yield process


def refused(*arguments: Any, **settings: Any) -> Refusal:
    with pytest.raises(IdentityRefused) as caught:
        verify(*arguments, **settings)
    return caught.value.reason


@contextmanager
def said(wrapper: tuple[str, ...], tmp_path: Path) -> Iterator[tuple[dict[str, Any], Process]]:
    """Start a worker behind a wrapper; give its hello and the wrapper's process while it lives."""
    with commands(*wrapper) as launcher, fifo(tmp_path / "held") as reader:
        launcher.launch(order("a", "say_hello", path=str(tmp_path / "hello"), held=str(tmp_path / "held")))
        with launched(launcher) as process:
            assert opened(reader)
            yield json.loads((tmp_path / "hello").read_text()), process


def worker_credential() -> Credential:
    return Credential("a", b"s" * 32, "task")


def signed(credential: Credential, **changes: Any) -> dict[str, Any]:
    """Return this process's hello with other claims, correctly signed."""
    claims = hello(credential) | changes
    return claims | {"proof": credential.proof(claims)}


def without_inode(words: dict[str, Any]) -> dict[str, Any]:
    """Return what the same process would say instead of its inode where it has none."""
    with process_by_inode(words["inode"], guess=words["pid"]) as process:
        return {"inode": None, "started": process.start_time}


def test_hello_of_the_process_itself_is_believed(credential, own):
    identity = verify(hello(credential), credential, own)
    assert identity == Identity(
        NODE_ID,
        boot_id(),
        str(Path("/proc/self/ns/pid").readlink()),
        os.getpid(),
        own.inode,
        own.start_time,
        "a",
        "pidfd-inode",
        os.getpid(),
    )
    assert credential.confirmed == identity


def test_hello_survives_json_and_hides_the_secret(credential, own):
    text = json.dumps(hello(credential))
    assert credential.secret.hex() not in text
    assert repr(credential.secret) not in repr(credential)
    assert verify(json.loads(text), credential, own)


def test_same_hello_again_gets_the_same_answer(credential, own):
    words = hello(credential)
    assert verify(words, credential, own) is verify(words, credential, own)


@pytest.mark.parametrize("claim", ["task", "attempt", "boot", "namespace", "pid", "inode", "started", "proof"])
def test_no_claim_can_be_changed(credential, own, claim):
    words = hello(credential)
    other = {"pid": 1, "inode": 1, "started": 1}
    words[claim] = other.get(claim) or words[claim][:-1] + "~"
    expected = Refusal.WRONG_ATTEMPT if claim in {"task", "attempt"} else Refusal.FORGED
    assert refused(words, credential, own) is expected


def test_claims_cannot_be_moved_across_their_borders():
    first, second = Credential("bc", b"s" * 32, "a"), Credential("c", b"s" * 32, "ab")
    assert hello(first)["proof"] != hello(second)["proof"]


def test_hello_under_another_secret_is_forged(credential, own):
    assert refused(hello(Credential("a", task="task")), credential, own) is Refusal.FORGED


@pytest.mark.parametrize("words", [{}, {"pid": 1}, None, "hello", 7])
def test_what_is_no_hello_is_malformed(credential, own, words):
    assert refused(words, credential, own) is Refusal.MALFORMED


def test_a_system_without_pidfds_has_no_identities(monkeypatch):
    monkeypatch.delattr(os, "pidfd_open")
    with pytest.raises(PidfdUnavailable):
        own_identity("a")


def test_hello_after_the_attempt_is_over_is_late(credential, own):
    credential.revoked = True
    assert refused(hello(credential), credential, own) is Refusal.LATE


def test_second_process_with_the_same_secret_is_refused(credential, own):
    verify(hello(credential), credential, own)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, json.dumps(hello(credential)).encode())
        os._exit(0)
    words = json.loads(os.read(reader, 65536))
    os.waitpid(child, 0)
    os.close(reader)
    os.close(writer)
    assert words["pid"] == child
    assert refused(words, credential, own) is Refusal.REPLAYED


def test_recorded_hello_is_refused_once_its_process_has_ended(tmp_path):
    with said((), tmp_path) as (words, process):
        process.signal(signal.SIGKILL)
        assert ended(process)
        assert refused(words, worker_credential(), process) is Refusal.NO_SUCH_PROCESS
        assert refused(words, worker_credential(), None) in {Refusal.NO_SUCH_PROCESS, Refusal.OTHER_PROCESS}


def test_number_of_another_process_is_found_out(credential, own):
    """A hello that was true of an earlier process with the same number."""
    words = signed(credential, inode=own.inode + (1 << 40))
    assert refused(words, credential, None) is Refusal.OTHER_PROCESS


def test_number_of_no_process_is_found_out(credential, own):
    words = signed(credential, inode=own.inode + (1 << 40), pid=(1 << 22) + 1)
    assert refused(words, credential, None) is Refusal.NO_SUCH_PROCESS


def test_process_that_does_not_descend_from_what_was_launched_is_refused(tmp_path):
    with (
        said((), tmp_path) as (words, _),
        subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other,
        Process.open(other.pid) as stranger,
    ):
        assert refused(words, worker_credential(), stranger) is Refusal.NOT_DESCENDANT
        assert verify(words, worker_credential(), stranger, descendant=False).pid == words["pid"]


def test_wrapper_that_hands_over_and_ends_needs_leave_to_do_so(tmp_path):
    # It ends once the worker has said hello, in a group of its own: what is still in the wrapper's ends with that one.
    hands_over = f'setsid --fork "$0" "$@"; until test -e {tmp_path}/hello; do sleep 0.01; done'
    with said(("sh", "-c", hands_over), tmp_path) as (words, wrapper):
        assert ended(wrapper)
        assert refused(words, worker_credential(), wrapper) is Refusal.NOT_DESCENDANT
        with verify(words, worker_credential(), wrapper, descendant=False).open() as process:
            assert process.signal(signal.SIGKILL)
            assert ended(process)


def test_other_host_is_refused_unless_expected(credential, own):
    words = signed(credential, boot="another")
    assert refused(words, credential, own) is Refusal.ELSEWHERE
    identity = verify(words, credential, own, elsewhere=True)
    assert (identity.strength, identity.boot_id) == ("secret", "another")
    with pytest.raises(IdentityRefused, match="another host"):
        identity.open()


def test_sender_that_the_kernel_calls_another_is_refused(credential, own):
    other = Credentials(1, 0, 0, own.inode + 1)
    assert refused(hello(credential), credential, own, peer_credentials=other) is Refusal.WRONG_PEER
    other = Credentials(1, 0, 0)
    assert refused(hello(credential), credential, own, peer_credentials=other) is Refusal.WRONG_PEER
    same = Credentials(os.getpid(), 0, 0, own.inode)
    assert verify(hello(credential), credential, own, peer_credentials=same).strength == "pidfd-inode"


def test_kernel_without_inodes_gives_less_strength(tmp_path):
    with said(WRAPPERS["sh"], tmp_path) as (words, process):

        def old() -> tuple[dict[str, Any], Credential]:
            credential = worker_credential()
            claims = words | without_inode(words)
            return claims | {"proof": credential.proof(claims)}, credential

        identity = verify(*old(), process)
        assert (identity.pid, identity.inode, identity.strength) == (words["pid"], None, "start-time")
        with identity.open() as found:
            assert found.pid == words["pid"]
        peer = Credentials(words["pid"], 0, 0)
        assert verify(*old(), process, peer_credentials=peer).strength == "peer-pidfd"


def test_kernel_without_inodes_finds_a_nested_process_too(tmp_path):
    needs_namespaces()
    with said(WRAPPERS["PID namespace"], tmp_path) as (words, process):
        credential = worker_credential()
        claims = words | without_inode(words)
        identity = verify(claims | {"proof": credential.proof(claims)}, credential, process)
        assert (words["pid"], identity.pid_inside) == (1, 1)
        assert identity.pid != 1
        with identity.open() as found:
            assert found.descends_from(process.pid)


@pytest.mark.parametrize("name", WRAPPERS)
def test_worker_behind_a_wrapper_is_known_by_its_own_word(name, tmp_path):
    """The wrapper's number is often wrong; the one in the identity is the worker's, as this host sees it."""
    if "namespace" in name:
        needs_namespaces()
    with said(WRAPPERS[name], tmp_path) as (words, wrapper):
        identity = verify(words, worker_credential(), wrapper)
        assert (identity.pid == wrapper.pid) is (name in EXACT)
        assert identity.inode == words["inode"]
        assert identity.strength == "pidfd-inode"
        with identity.open() as process:
            assert process.inode == words["inode"]
            assert process.pid == wrapper.pid or process.descends_from(wrapper.pid)
            assert process.signal(signal.SIGKILL)
            assert ended(process)
        with pytest.raises(IdentityRefused):
            identity.open()


def test_nested_process_calls_itself_1_and_is_found_by_its_inode(tmp_path):
    needs_namespaces()
    with said(WRAPPERS["PID namespace"], tmp_path) as (words, wrapper):
        assert words["pid"] == 1
        identity = verify(words, worker_credential(), wrapper)
        status = Path(f"/proc/{identity.pid}/status").read_text()
        assert f"NSpid:\t{identity.pid}\t1\n" in status
        assert identity.pid_inside == 1
        assert identity.pid_namespace != str(Path("/proc/self/ns/pid").readlink())


def test_frames_are_signed_with_the_attempts_secret(credential):
    signature = credential.sign(b"result")
    assert credential.check(b"result", signature)
    assert not credential.check(b"resulT", signature)
    assert not credential.check(b"result", b"")
    assert not Credential("a", task="task").check(b"result", signature)
    assert not Credential("b", credential.secret, "task").check(b"result", signature)


def test_forgotten_secret_signs_nothing(credential):
    credential.drop_secret()
    with pytest.raises(ValueError, match="no secret"):
        credential.sign(b"result")
    with pytest.raises(ValueError, match="no secret"):
        hello(credential)


def test_identity_cannot_be_changed(credential, own):
    identity = verify(hello(credential), credential, own)
    with pytest.raises(AttributeError):
        identity.pid = 1
