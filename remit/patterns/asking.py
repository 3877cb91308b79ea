"""Asking: a client's side of request and reply: futures for answers that are under way."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from remit.codec import Codec, Wire
from remit.endpoint import Clock
from remit.errors import (
    CodecError,
    DeadLetter,
    LinkClosed,
    NoListener,
    PeerLost,
    RequestError,
    RequestFailed,
    RequestTimeout,
)
from remit.patterns.envelope import seal, unseal
from remit.patterns.waiters import Eventually, Waiter
from remit.protocol.outbox import Outbox
from remit.protocol.requests import Request, Requests

__all__ = ["PROGRESS", "REPLY", "REQUEST", "Asking", "OnProgress"]

REQUEST: Final = "remit.request"
"""An event that asks: id, milliseconds left or None, may it run twice, the sealed question."""
REPLY: Final = "remit.reply"
"""An event that answers: id, what became of it, the sealed answer."""
PROGRESS: Final = "remit.progress"
"""An event that tells how far a request has come: id, done, total."""
LONGEST: Final = 1e9
"""Seconds above which a request has all the time in the world."""
OnProgress: TypeAlias = Callable[[Any, Any], None]


class _Waiting(NamedTuple):
    who: Waiter
    on_progress: OnProgress | None


_Asked: TypeAlias = Request[_Waiting]


class Asking:
    """The open requests of one client. Any thread asks; answers come in on the thread that serves the link.

    ``post`` queues an encoded event; ``cancel`` tells the server that nobody waits for a request any more.
    """

    def __init__(
        self,
        codec: Codec,
        outbox: Outbox,
        post: Callable[[str, bytes], bool],
        cancel: Callable[[int], None],
        clock: Clock = time.monotonic,
    ) -> None:
        self._codec = codec
        self._outbox = outbox
        self._post = post
        self._cancel = cancel
        self._clock = clock
        self._requests: Requests[_Waiting] = Requests()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def due(self) -> float:
        """The monotonic moment of the next deadline."""
        return self._requests.due

    # -- asking ------------------------------------------------------------------------------------------------

    def ask(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        timeout: float,
        idempotent: bool,
        on_progress: OnProgress | None,
    ) -> Future[Any]:
        """Ask, and return the future of the answer; to cancel that is to tell the server that nobody waits.

        Raises as `pose`.
        """
        waiter = Eventually()
        asked = self.pose(waiter, name, args, kwargs, timeout=timeout, idempotent=idempotent, on_progress=on_progress)
        waiter.future.add_done_callback(lambda done: self._gave_up(asked) if done.cancelled() else None)
        return waiter.future

    def pose(
        self,
        waiter: Waiter,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        timeout: float,
        idempotent: bool,
        on_progress: OnProgress | None,
    ) -> _Asked:
        """Ask for one who waits.

        Raises CodecError, FrameTooLarge, EmitError, and TypeError or ValueError for what cannot be asked so.
        """
        _check(timeout, on_progress)
        sealed = seal(self._codec, name, args, kwargs)
        with self._lock:
            deadline = self._clock() + timeout
            request = self._requests.ask(name, _Waiting(waiter, on_progress), deadline, idempotent=idempotent)
        left = None if timeout > LONGEST else int(timeout * 1000)
        request.data = self._codec.encode(REQUEST, (request.id, left, idempotent, sealed), {}, {})
        try:
            posted = self._post(name, request.data)
        except BaseException:
            self._requests.take(request.id)
            raise
        request.posted = posted
        if not posted:
            self._fail(request, RequestError(f"{name!r} was dropped: the queue is full"))
        return request

    def _gave_up(self, request: _Asked) -> None:
        """Nobody waits any more: take the question back, or tell the server."""
        self._requests.take(request.id)
        # Another thread may be sending it at this moment; then the cancellation follows it.
        with contextlib.suppress(ValueError, IndexError):
            self._outbox.pending.remove(request.data)
            return
        self._cancel(request.id)

    # -- being told --------------------------------------------------------------------------------------------

    def heard(self, wire: Wire) -> None:
        """Take an answer. Raises msgspec.ValidationError, CodecError: it cannot be read."""
        identifier, outcome, sealed = msgspec.convert(wire.args, tuple[int, str, bytes])
        request = self._requests.take(identifier)
        if request is not None:
            self._answered(request, outcome, sealed)

    def _answered(self, request: _Asked, outcome: str, sealed: bytes) -> None:
        try:
            answer = unseal(self._codec, sealed)
        except CodecError as error:
            self._fail(request, RequestError(f"the answer to {request.name!r} cannot be read: {error}"))
            raise
        if outcome == "done":
            request.waiter.who.give(answer.args[0] if answer.args else None)
        else:
            self._fail(request, _error(request.name, outcome, answer.args))

    def progressed(self, wire: Wire) -> Wire | None:
        """Find out whom to tell how far a request has come, while it is still open; tell it in the listeners' turn.

        Raises msgspec.ValidationError.
        """
        identifier, done, total = msgspec.convert(wire.args, tuple[int, Any, Any])
        request = self._requests.named(identifier)
        if request is None or request.waiter.on_progress is None:
            return None
        return Wire(PROGRESS, (request.waiter.on_progress, done, total))

    def lost(self, why: str) -> None:
        """The connection is gone: fail what was sent and may not be sent again."""
        for request in self._requests.lost(self._outbox.kept(sent=False)):
            self._fail(request, PeerLost(f"{why} before {request.name!r} was answered; it may have run, or may yet"))

    def renewed(self) -> None:
        """A server began anew: ask it what the one before has not answered, where that may run twice; fail the rest."""
        for request in self._requests.lost(self._outbox.kept(marked=False)):
            self._fail(
                request, PeerLost(f"the server began anew before {request.name!r} was answered; it may have run")
            )
        self._outbox.pending.extend(each.data for each in self._requests.unanswered(self._outbox.kept()))

    def refused(self, why: Exception) -> None:
        """The server will not continue this session: nobody is going to answer."""
        for request in self._requests.close():
            self._fail(request, why)

    def expire(self, now: float) -> None:
        """Fail what is late."""
        for request in self._requests.late(now):
            sent = request.posted and id(request.data) not in self._outbox.kept(sent=False)
            how = "it was sent, and not answered" if sent else "it was never sent: is a server there?"
            self._gave_up(request)
            self._fail(request, RequestTimeout(f"no answer to {request.name!r} in time: {how}"))

    def close(self) -> None:
        """Fail all that is open."""
        for request in self._requests.close():
            self._fail(request, LinkClosed(f"the client was closed before {request.name!r} was answered"))

    def _fail(self, request: _Asked, error: BaseException) -> None:
        self._requests.take(request.id)
        request.waiter.who.fail(error)


def _check(timeout: object, on_progress: object) -> None:
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"the timeout of a request is a number of seconds, not {timeout!r}")
    if math.isnan(timeout):  # No deadline would ever be reached.
        raise ValueError("the timeout of a request is a number of seconds, not nan")
    if on_progress is not None and not callable(on_progress):
        raise TypeError(f"on_progress is called with how far it is, but {on_progress!r} cannot be")


def _error(name: str, outcome: str, args: Sequence[Any]) -> RequestError:
    texts = [str(each) for each in args]
    if outcome == "unheard":
        return NoListener(f"nobody listens for {name!r} there")
    if outcome == "late":
        return RequestTimeout(f"{name!r} came to its listener after its deadline")
    if outcome == "refused":
        return RequestError(f"{name!r} was refused: {' '.join(texts)}")
    kind = DeadLetter if outcome == "dead" else RequestFailed
    return kind(*[*texts, "", "", ""][:3])
