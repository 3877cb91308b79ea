"""The identity of a task's process: the process claims it in a signed hello, and the manager asks the kernel."""

from __future__ import annotations

import functools
import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import FileIO
from typing import TYPE_CHECKING, Any

from doorman.errors import IdentityRefused, Refusal
from doorman.process import Process, find_process, own_pid_namespace, pidfd_inode, require_alive, start_time

if TYPE_CHECKING:
    from remit.transport import Credentials

__all__ = ["NODE_ID", "Credential", "Identity", "Refusal", "hello", "own_identity", "verify"]

SECRET_BYTES = 32
NODE_ID = secrets.token_hex(16)
"""Identifies the program that verifies. Random, because host names, pids and boot ids repeat across containers."""

_CLAIMS: dict[str, type | tuple[type, ...]] = {
    "task": str,
    "attempt": str,
    "boot": str,
    "namespace": str,
    "pid": int,
    "inode": (int, type(None)),
    "started": (int, type(None)),
    "proof": str,
}


@dataclass(frozen=True, slots=True)
class Identity:
    """Identifies the process of one attempt of a task, also after its end and after the reuse of its pid."""

    node_id: str
    """The `NODE_ID` of the program that verified the identity."""
    boot_id: str
    pid_namespace: str
    pid: int
    """The pid in the PID namespace of the manager; `pid_inside` is the pid in the process's own namespace."""
    inode: int | None
    """The inode of the pidfd, unique for the whole boot; None before Linux 6.9."""
    start_time: int | None
    """Clock ticks from boot to the start. Not unique together with the pid, because a tick is 10 ms."""
    attempt: str
    strength: str = "pidfd-inode"
    """The verified facts: ``pidfd-inode`` (unique in the kernel), ``peer-pidfd`` (the kernel attested the sender, and
    the start time agrees), ``start-time`` (pid and start time agree), ``secret`` (only the secret).
    """
    pid_inside: int = 0

    @property
    def here(self) -> bool:
        """Whether the process is or was on this host since its last boot."""
        return self.boot_id == boot_id()

    def open(self) -> Process:
        """Open the process of this identity. Raises IdentityRefused if it has ended or is on another host."""
        if not self.here:
            raise IdentityRefused(Refusal.ELSEWHERE, f"attempt {self.attempt} is on another host")
        process = find_process(self.pid, self.inode, self.start_time, self.pid_namespace, self.pid_inside or self.pid)
        return require_alive(process)


@dataclass(slots=True, weakref_slot=True)
class Credential:
    """The secret of one attempt, valid for one process. The manager and the worker process each have a copy."""

    attempt: str
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(SECRET_BYTES), repr=False)
    task: str = ""
    confirmed: Identity | None = field(default=None, init=False)
    """The identity that was verified with this credential."""
    revoked: bool = field(default=False, init=False)
    """True if each later hello is late: the attempt has expired, was cancelled or has finished."""

    def sign(self, data: bytes) -> bytes:
        """Return this attempt's signature of ``data``. Raises ValueError after `drop_secret`."""
        return self._keyed(b"doorman.frame", _framed(self.task, self.attempt) + data).digest()

    def check(self, data: bytes, signature: bytes) -> bool:
        """Return whether ``signature`` is what `sign` returns for ``data``, in constant time."""
        return hmac.compare_digest(self.sign(data), signature)

    def proof(self, claims: Mapping[str, Any]) -> str:
        """Return the MAC of the claims of a hello."""
        values = _framed(*(str(claims[name]) for name in _CLAIMS if name != "proof"))
        return self._keyed(b"doorman.hello", values).hexdigest()

    def drop_secret(self) -> None:
        """Drop the secret in a fork of the worker process, which is not the attempt's process."""
        self.secret = b""

    def _keyed(self, purpose: bytes, data: bytes) -> hashlib.blake2b:
        if not self.secret:
            raise ValueError(f"a fork has no secret of attempt {self.attempt}: sign in the attempt's own process")
        # ``person`` separates the purposes, so that the signature of a frame is never valid as the proof of a hello.
        return hashlib.blake2b(data, key=self.secret, digest_size=32, person=purpose)


def hello(credential: Credential) -> dict[str, Any]:
    """Return a hello: facts about this process and the attempt, with their proof. All values are str, int or None."""
    # Without a `Process`, because each object that a child creates or reads for the first time may copy a page.
    with next(map(FileIO, map(os.pidfd_open, (os.getpid(),)))) as pidfd:
        own = pidfd_inode(pidfd.fileno())
    claims: dict[str, Any] = {
        "task": credential.task,
        "attempt": credential.attempt,
        "boot": boot_id(),
        "namespace": own_pid_namespace(),
        "pid": os.getpid(),
        "inode": own,
        # Only without an inode, which is stronger, because reading /proc writes to pages shared with the zygote.
        "started": start_time() if own is None else None,
    }
    return claims | {"proof": credential.proof(claims)}


def verify(
    hello: Mapping[str, Any],
    credential: Credential,
    process: Process | None,
    *,
    peer_credentials: Credentials | None = None,
    descendant: bool = True,
    elsewhere: bool = False,
) -> Identity:
    """Return the identity that a hello proves. The same process may repeat its hello and gets the same identity.

    process -- the launched process: the worker or its wrapper; None if it is unknown
    descendant -- False for a wrapper that lets a daemon start the worker
    elsewhere -- True for a wrapper that reaches another host

    Raises IdentityRefused, whose ``reason`` names the case.
    """
    _check_claims(hello, credential)
    # A repeated hello is normal: an answer may be lost, and a restarted server receives events again.
    known = credential.confirmed
    if known is not None:
        if not _is_same_process(hello, known):
            raise IdentityRefused(Refusal.REPLAYED, f"pid {hello['pid']} claims {known.attempt}, proven by {known.pid}")
        _check_peer(hello, known.pid, peer_credentials)
        return known
    if hello["boot"] != boot_id():
        if not elsewhere:
            raise IdentityRefused(Refusal.ELSEWHERE, "allow it for wrappers that reach other hosts")
        credential.confirmed = _identity(hello, hello["pid"], hello["started"], "secret")
        return credential.confirmed
    pid, started = _check_process(hello, process, descendant=descendant)
    _check_peer(hello, pid, peer_credentials)
    strength = "pidfd-inode" if hello["inode"] is not None else "peer-pidfd" if peer_credentials else "start-time"
    credential.confirmed = _identity(hello, pid, started, strength)
    return credential.confirmed


def own_identity(attempt: str) -> Identity:
    """Return the identity of the calling process, as the process of an attempt. Raises PidfdUnavailable."""
    with Process.open(os.getpid()) as process:
        strength = "start-time" if process.inode is None else "pidfd-inode"
    return _identity(hello(Credential(attempt)), os.getpid(), start_time(), strength)


@functools.cache
def boot_id() -> str:
    """Return the random id that the kernel has for this boot."""
    with open("/proc/sys/kernel/random/boot_id") as file:  # noqa: PTH123 - once
        return file.read().strip()


def _framed(*texts: str) -> bytes:
    """Return texts with length prefixes, so that different texts never have the same bytes."""
    parts = [text.encode() for text in texts]
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def _check_claims(hello: Mapping[str, Any], credential: Credential) -> None:
    """Raise IdentityRefused if the hello is malformed, of another attempt, forged or late; in this order."""
    if not isinstance(hello, Mapping) or not all(isinstance(hello.get(name), kind) for name, kind in _CLAIMS.items()):
        raise IdentityRefused(Refusal.MALFORMED, f"expected {', '.join(_CLAIMS)}")
    if (hello["task"], hello["attempt"]) != (credential.task, credential.attempt):
        raise IdentityRefused(Refusal.WRONG_ATTEMPT, f"{hello['attempt']!r}, expected {credential.attempt!r}")
    if not hmac.compare_digest(credential.proof(hello).encode(), hello["proof"].encode()):
        raise IdentityRefused(Refusal.FORGED, f"pid {hello['pid']} claims {credential.attempt!r}")
    if credential.revoked:
        raise IdentityRefused(Refusal.LATE, f"pid {hello['pid']} claims {credential.attempt!r}, which is over")


def _is_same_process(hello: Mapping[str, Any], known: Identity) -> bool:
    """Return whether the known process sent the hello. Without an inode the start time must also agree."""
    own = (known.boot_id, known.pid_namespace, known.pid_inside, known.inode)
    same = own == tuple(hello[name] for name in ("boot", "namespace", "pid", "inode"))
    return same and (known.inode is not None or hello["started"] == known.start_time)


def _check_process(hello: Mapping[str, Any], process: Process | None, *, descendant: bool) -> tuple[int, int]:
    """Return pid and start time of the process that sent the hello: the launched process or a descendant of it."""
    if process is not None and _is_launched(hello, process):
        return _pid_and_start_time(process)
    with require_alive(
        find_process(hello["pid"], hello["inode"], hello["started"], hello["namespace"], hello["pid"])
    ) as found:
        # Descent is checked by pid, which is valid only while the launched process runs.
        if process is not None and descendant and not (found.descends_from(process.pid) and process.alive()):
            raise IdentityRefused(Refusal.NOT_DESCENDANT, f"pid {found.pid} is not a descendant of pid {process.pid}")
        return _pid_and_start_time(found)


def _is_launched(hello: Mapping[str, Any], process: Process) -> bool:
    if hello["inode"] is not None and process.inode is not None:
        return bool(hello["inode"] == process.inode)
    own = (own_pid_namespace(), process.pid, process.start_time)
    return own == (hello["namespace"], hello["pid"], hello["started"])


def _check_peer(hello: Mapping[str, Any], pid: int, peer: Credentials | None) -> None:
    if peer is None:
        return
    # SO_PEERPIDFD identifies the sender without a race; SO_PEERCRED has only its pid.
    both = hello["inode"] is not None and peer.inode is not None
    if (peer.inode != hello["inode"]) if both else (peer.pid != pid):
        raise IdentityRefused(Refusal.WRONG_PEER, f"pid {peer.pid} sent the hello of pid {pid}")


def _pid_and_start_time(process: Process) -> tuple[int, int]:
    """Return pid and start time as the manager reads them. The process may read others in a time namespace."""
    started = require_alive(process).start_time
    if started is None:
        raise IdentityRefused(Refusal.NO_SUCH_PROCESS, f"pid {process.pid} has ended")
    return process.pid, started


def _identity(hello: Mapping[str, Any], pid: int, started: int | None, strength: str) -> Identity:
    return Identity(
        node_id=NODE_ID,
        boot_id=hello["boot"],
        pid_namespace=hello["namespace"],
        pid=pid,
        inode=hello["inode"],
        start_time=started,
        attempt=hello["attempt"],
        strength=strength,
        pid_inside=hello["pid"],
    )
