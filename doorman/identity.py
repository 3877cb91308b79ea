"""Identity: which process a task really has, said by the process itself and checked against the kernel."""

from __future__ import annotations

import functools
import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from doorman.errors import IdentityRefused, Refusal
from doorman.process import Process, find_process, own_pid_namespace, pidfd_inode, require_alive, start_time

if TYPE_CHECKING:
    from remit.transport import Credentials

__all__ = ["NODE_ID", "Credential", "Identity", "Refusal", "hello", "verify"]

SECRET_BYTES = 32
NODE_ID = secrets.token_hex(16)
"""Names the host's agent that checks identities. Random: host names, pids and boot ids repeat across containers."""

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
    """The process of one attempt of a task: true for ever, even after its number is used again."""

    node_id: str
    """Which host's agent checked it: only that one may signal it."""
    boot_id: str
    pid_namespace: str
    """The PID namespace that the process lives in."""
    pid: int
    """Its number where its manager lives; inside a nested namespace it calls itself `pid_inside`."""
    inode: int | None
    """The inode of its pidfd, unique for the whole boot; None before Linux 6.9."""
    start_time: int | None
    """Clock ticks from boot to its start. Not unique together with the pid: ticks are 10 ms."""
    attempt: str
    strength: str = "pidfd-inode"
    """What was checked: ``pidfd-inode`` (the kernel's own unique name), ``peer-pidfd`` (the kernel attested the sender
    and the start time agrees), ``start-time`` (number and start time agree), ``secret`` (its word and the secret only).
    """
    pid_inside: int = 0

    @property
    def here(self) -> bool:
        """Whether the process is, or was, on this host since its last boot: only then does a number here mean it."""
        return self.boot_id == boot_id()

    def open(self) -> Process:
        """Hold the process that this identity means. Raises IdentityRefused if it is gone or not on this host."""
        if not self.here:
            raise IdentityRefused(Refusal.ELSEWHERE, f"attempt {self.attempt} is on another host: ask its agent")
        process = find_process(self.pid, self.inode, self.start_time, self.pid_namespace, self.pid_inside or self.pid)
        return require_alive(process)


@dataclass(slots=True, weakref_slot=True)
class Credential:
    """One attempt's secret, good for one process. The manager and the child each hold one."""

    attempt: str
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(SECRET_BYTES), repr=False)
    task: str = ""
    confirmed: Identity | None = field(default=None, init=False)
    """The identity that was proven with it."""
    revoked: bool = field(default=False, init=False)

    def sign(self, data: bytes) -> bytes:
        """Return the signature under which this attempt sends ``data``. Raises ValueError after `forget`."""
        return self._keyed(b"doorman.frame", _framed(self.task, self.attempt) + data).digest()

    def check(self, data: bytes, signature: bytes) -> bool:
        """Tell whether ``signature`` was made by `sign` for ``data`` with this attempt's secret."""
        return hmac.compare_digest(self.sign(data), signature)

    def proof(self, claims: Mapping[str, Any]) -> str:
        """Return the text that proves a hello's claims."""
        values = _framed(*(str(claims[name]) for name in _CLAIMS if name != "proof"))
        return self._keyed(b"doorman.hello", values).hexdigest()

    def revoke(self) -> None:
        """Make every later hello late: the attempt has expired, was cancelled or is over."""
        self.revoked = True

    def drop_secret(self) -> None:
        """Drop the secret. A child calls this in its own forks: they are not the attempt's process."""
        self.secret = b""

    def _keyed(self, purpose: bytes, data: bytes) -> hashlib.blake2b:
        if not self.secret:
            raise ValueError(f"the secret of attempt {self.attempt} is forgotten here: only its own process has it")
        return hashlib.blake2b(data, key=self.secret, digest_size=32, person=purpose)


def hello(credential: Credential) -> dict[str, Any]:
    """Return this process's claim to be the attempt's process; plain texts and numbers, fit for any codec."""
    own = _own_inode()
    claims: dict[str, Any] = {
        "task": credential.task,
        "attempt": credential.attempt,
        "boot": boot_id(),
        "namespace": own_pid_namespace(),
        "pid": os.getpid(),
        "inode": own,
        # To read it copies pages that the process shares with its zygote; beside an inode it says nothing more.
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
    """Return the identity that a hello proves. The same process may say it again and gets the same answer.

    ``process`` is what was launched: the process itself or a wrapper it descends from; None if nothing is known.
    ``descendant=False`` is for wrappers that hand over to a daemon, ``elsewhere=True`` for those that reach
    another host. Raises IdentityRefused, whose ``reason`` names the case.
    """
    _check_claims(hello, credential)
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


@functools.cache
def boot_id() -> str:
    """Return the kernel's random name for this boot."""
    with open("/proc/sys/kernel/random/boot_id") as file:  # noqa: PTH123 - as in process.py
        return file.read().strip()


def _framed(*texts: str) -> bytes:
    """Return texts as bytes that no other texts give, wherever one ends and the next begins."""
    parts = [text.encode() for text in texts]
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def _check_claims(hello: Mapping[str, Any], credential: Credential) -> None:
    """Four cases in this order: no hello at all; another attempt's; not signed; signed, but too late."""
    if not isinstance(hello, Mapping) or not all(isinstance(hello.get(name), kind) for name, kind in _CLAIMS.items()):
        raise IdentityRefused(Refusal.MALFORMED, f"expected {', '.join(_CLAIMS)}")
    if (hello["task"], hello["attempt"]) != (credential.task, credential.attempt):
        raise IdentityRefused(Refusal.WRONG_ATTEMPT, f"{hello['attempt']!r}, expected {credential.attempt!r}")
    if not hmac.compare_digest(credential.proof(hello).encode(), hello["proof"].encode()):
        raise IdentityRefused(Refusal.FORGED, f"pid {hello['pid']} claims {credential.attempt!r}")
    if credential.revoked:
        raise IdentityRefused(Refusal.LATE, f"pid {hello['pid']} came for {credential.attempt!r}; tell it to end")


def _is_same_process(hello: Mapping[str, Any], known: Identity) -> bool:
    """Tell whether the known process says this. Where pidfds have no inode its start time has to do as well."""
    own = (known.boot_id, known.pid_namespace, known.pid_inside, known.inode)
    same = own == tuple(hello[name] for name in ("boot", "namespace", "pid", "inode"))
    return same and (known.inode is not None or hello["started"] == known.start_time)


def _check_process(hello: Mapping[str, Any], process: Process | None, *, descendant: bool) -> tuple[int, int]:
    """Return its number and start time as they are here. Two cases: it is what was launched; it is below that."""
    if process is not None and _is_launched(hello, process):
        return _pid_and_start_time(process)
    with require_alive(
        find_process(hello["pid"], hello["inode"], hello["started"], hello["namespace"], hello["pid"])
    ) as found:
        # Descent goes by number: it holds if what was launched has its number still.
        if process is not None and descendant and not (found.descends_from(process.pid) and process.alive()):
            raise IdentityRefused(Refusal.NOT_DESCENDANT, f"pid {found.pid} is not below pid {process.pid}")
        return _pid_and_start_time(found)


def _is_launched(hello: Mapping[str, Any], process: Process) -> bool:
    if hello["inode"] is not None and process.inode is not None:
        return bool(hello["inode"] == process.inode)
    own = (own_pid_namespace(), process.pid, process.start_time)
    return own == (hello["namespace"], hello["pid"], hello["started"])


def _check_peer(hello: Mapping[str, Any], pid: int, peer: Credentials | None) -> None:
    if peer is None:
        return
    both = hello["inode"] is not None and peer.inode is not None
    if (peer.inode != hello["inode"]) if both else (peer.pid != pid):
        raise IdentityRefused(Refusal.WRONG_PEER, f"pid {peer.pid} sent the hello of pid {pid}")


def _pid_and_start_time(process: Process) -> tuple[int, int]:
    """Return its number and start time: the kernel's, since clocks in the process's own namespaces may be shifted."""
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


def _own_inode() -> int | None:
    pidfd = os.pidfd_open(os.getpid())
    try:
        return pidfd_inode(pidfd)
    finally:
        os.close(pidfd)
