"""Messages between launcher and zygote, and the encoding of orders.

An order travels by descriptor, never in argv or the environment, because it contains the attempt's secret.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import msgspec

from doorman.launcher import Order
from doorman.launcher.main_module import Script
from doorman.process import Descriptors, absolute_folders

MAX_INLINE_ORDER = 64 * 1024
"""Bytes of the longest order that travels in a message; a longer one goes through a memfd."""
OUT_OF_RESOURCES = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
"""Errors of a start that pass by waiting. Any other error would come again."""
_MAX_MESSAGE_BYTES = 2 * MAX_INLINE_ORDER
_ANCILLARY_BYTES = socket.CMSG_SPACE(4 * 3)  # three descriptors: the order, standard output, standard error
_Received: TypeAlias = tuple[bytes, list[tuple[int, int, bytes]], int, Any]
"""What `recvmsg` returns."""
_MAGIC = b"doorman1"
_LENGTH = 8  # bytes


class MessageError(ValueError):
    """Raised when a message cannot be read; the descriptors that came with it are closed."""


class _Message(msgspec.Struct, array_like=True, gc=False, tag=True):
    """A message. Its fields travel without names: both ends have the same version."""


class Start(_Message):
    """First message to the zygote: the modules to import. Carries the manager's pidfd and perhaps a control group."""

    sys_path: list[bytes]
    """As bytes, because the name of a folder may be invalid UTF-8."""
    cwd: bytes
    preload: list[str]
    entry: str
    argv: list[bytes]


class Fork(_Message):
    """To the zygote: fork a child. Carries a memfd if ``order`` is None, then stdout and stderr if they are True."""

    attempt: str
    order: bytes | None
    stdout: bool
    stderr: bool


class ForkZygote(_Message):
    """To the zygote: fork a zygote that imports the user's script. Carries the other end of its channel."""

    script: Script


class Kill(_Message):
    """To the zygote: kill a child and all its descendants, also those left by an exited child."""

    attempt: str


class OrphansLeft(_Message):
    """From the zygote: a child has exited, and descendants of it run. They do until they exit, or until a `Kill`."""

    attempt: str


class Shutdown(_Message):
    """Last message to the zygote: exit. The launcher waits for the exit and removes the control group."""


class Ready(_Message):
    """From a zygote: all modules are imported, or the user's script."""


class StartFailed(_Message):
    """Last message from the zygote: an import failed."""

    why: str


class Forked(_Message):
    """From the zygote: a child exists. Carries its pidfd."""

    attempt: str
    pid: int


class ForkFailed(_Message):
    """From the zygote: no child could be forked."""

    attempt: str
    why: str
    back_pressure: bool


class ChildExited(_Message):
    """From the zygote: a child has exited and is reaped."""

    attempt: str
    exit_code: int | None
    signal: int | None
    max_rss: int
    cpu: float


# fmt: off
Message: TypeAlias = (
    Start | Fork | ForkZygote | Kill | OrphansLeft | Shutdown | Ready | StartFailed | Forked | ForkFailed | ChildExited
)
# fmt: on

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode
_Texts: TypeAlias = tuple[tuple[bytes, ...], tuple[tuple[bytes, bytes], ...] | None, bytes | None, bytes | None]
_decode_order = msgspec.msgpack.Decoder(tuple[str, bytes, bytes, bool, float, int | None, _Texts]).decode
_decode_packed = msgspec.msgpack.Decoder(tuple[bytes, list[bytes], list[bytes]]).decode


def send(channel: socket.socket, message: Message, descriptors: Sequence[int] = ()) -> None:
    """Send a message. Raises BlockingIOError if the socket is full, ConnectionError if the other end is closed."""
    # SOCK_SEQPACKET sends a message whole or not at all, together with its descriptors.
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
    try:
        channel.sendmsg([_encode(message)], ancillary, socket.MSG_NOSIGNAL)
    except OSError as error:
        # ENOBUFS, and ETOOMANYREFS (too many descriptors of this user in flight), last until the receiver reads.
        if error.errno in {errno.ENOBUFS, errno.ETOOMANYREFS}:
            raise BlockingIOError(error.errno, str(error)) from error
        raise


def receive(channel: socket.socket, *, keep: bool = False) -> tuple[Message | None, Descriptors]:
    """Return a message and its descriptors; None at the end of the channel.

    With ``keep`` the next call returns the message again, until `skip` removes it.

    Raises BlockingIOError if no message has arrived, MessageError if it is invalid.
    """
    # Close-on-exec from the start, because another thread may exec a program at any time.
    flags = socket.MSG_CMSG_CLOEXEC | (socket.MSG_PEEK if keep else 0)
    descriptors, received = Descriptors(), list[_Received]()
    try:
        # Received and stored by one call of C: see Descriptors.
        received.extend(map(channel.recvmsg, (_MAX_MESSAGE_BYTES,), (_ANCILLARY_BYTES,), (flags,)))
        descriptors[:] = _descriptors_in(received)
    except BaseException:
        descriptors[:] = _descriptors_in(received)
        raise
    [(data, _, found, _)] = received
    try:
        if found & socket.MSG_TRUNC:
            raise MessageError(f"a message of over {_MAX_MESSAGE_BYTES} bytes")
        return _decode(data) if data else None, descriptors
    except ValueError as error:
        descriptors.close()
        raise MessageError(f"invalid message of {len(data)} bytes: {error}") from error


def _descriptors_in(received: list[_Received]) -> array[int]:
    # Descriptors are the only ancillary data: the socket passes no credentials.
    return array("i", b"".join(numbers for _, ancillary, _, _ in received for _, _, numbers in ancillary))


def skip(channel: socket.socket) -> None:
    """Remove the message that `receive` has kept. The kernel closes the descriptors in it."""
    channel.recv(1)


def encode_order(order: Order) -> bytes:
    """Return an order as bytes, without its descriptors."""
    texts = _converted(os.fsencode, order.command, order.env and order.env.items(), order.cwd, order.record)
    return _encode((order.attempt, order.secret, order.payload, order.detach, order.grace, order.open_files, texts))


def decode_order(data: bytes) -> Order:
    """Return the order that `encode_order` has encoded. Raises MessageError."""
    try:
        attempt, secret, payload, detach, grace, open_files, texts = _decode_order(data)
    except ValueError as error:
        raise MessageError(f"invalid order of {len(data)} bytes: {error}") from error
    command, env, cwd, record = _converted(os.fsdecode, *texts)
    env = None if env is None else dict(env)
    return Order(
        attempt, secret, payload, command, env, cwd, detach=detach, grace=grace, open_files=open_files, record=record
    )


def _converted(convert: Callable[[Any], Any], command: Any, env: Any, cwd: Any, record: Any) -> tuple[Any, ...]:
    """Convert paths, arguments and variables, which may be invalid UTF-8, to bytes or back."""
    pairs = None if env is None else tuple((convert(name), convert(text)) for name, text in env)
    paths = (None if path is None else convert(path) for path in (cwd, record))
    return tuple(map(convert, command)), pairs, *paths


def write_memfd(data: bytes) -> Descriptors:
    """Return a memfd that holds ``data``. Raises OSError."""
    memory = Descriptors(map(os.memfd_create, ("doorman-order",), (os.MFD_CLOEXEC,)))
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(memory[0], rest) :]
    return memory


def read_memfd(memory: int) -> bytes:
    """Return the content of a memfd."""
    # pread(), because the sender shares the offset and has left it at the end. Linux reads less than 2 GiB a call.
    size = os.fstat(memory).st_size
    return b"".join(os.pread(memory, 1 << 30, at) for at in range(0, size, 1 << 30))


def close_all(descriptors: Iterable[int]) -> None:
    """Close descriptors that came with a message."""
    for descriptor in descriptors:
        os.close(descriptor)


def pack_order(order: Order, *, sys_path: list[str] | None = None) -> bytes:
    """Return an order, the folders to import from and this program's arguments, as bytes for `read_order`."""
    content = _encode((encode_order(order), absolute_folders(sys_path or ()), [*map(os.fsencode, sys.argv)]))
    return _MAGIC + len(content).to_bytes(_LENGTH, "big") + content


def read_order(descriptor: int = 0) -> Order:
    """Read this worker's order from a descriptor, and set `sys.path` and `sys.argv` to the manager's.

    The descriptor stays open: its end of file later announces the end of the manager. Raises EOFError if it ends before
    the order is complete, MessageError if it carries other data.
    """
    with open(descriptor, "rb", closefd=False) as file:
        head = file.read(len(_MAGIC) + _LENGTH)
        if head and not head.startswith(_MAGIC):
            raise MessageError(f"expected an order on descriptor {descriptor}: is something else writing there?")
        length = int.from_bytes(head[len(_MAGIC) :], "big")
        content = file.read(length)
    if not head or len(content) < length:
        raise EOFError(f"descriptor {descriptor} ended before the order was complete: the manager has ended")
    try:
        order, sys_path, argv = _decode_packed(content)
    except ValueError as error:
        raise MessageError(f"invalid order of {len(content)} bytes: {error}") from error
    sys.path[:] = map(os.fsdecode, sys_path) if sys_path else sys.path
    sys.argv[:] = map(os.fsdecode, argv)
    return decode_order(order)


def interpreter_flags() -> list[str]:
    """Return the flags that give another interpreter the settings of this one: ``-I``, ``-W``, ``-X`` and so on."""
    module: Any = subprocess  # A private name, but multiprocessing has used it since Python 3.4.
    return list(module._args_from_interpreter_flags())
