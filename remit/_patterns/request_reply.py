"""Answering: a server's side of request and reply: what a listener returns or raises goes back to whoever asked."""

from __future__ import annotations

import contextlib
import inspect
import math
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import msgspec

from remit._patterns.event_router import EventRouter
from remit._patterns.names import PROGRESS, REPLY, REQUEST
from remit._protocol.outbox import Outbox
from remit._protocol.requests import OpenRequests, Request
from remit._protocol.session import Session
from remit.codec import Codec, EventMessage
from remit.errors import (
    CodecError,
    DeadLetter,
    EmitError,
    FrameTooLarge,
    LinkClosed,
    NoListener,
    PeerLost,
    RequestError,
    RequestFailed,
    RequestTimeout,
)
from remit.event import Sender
from remit.listeners import ASYNC

__all__ = [
    "FutureResult",
    "IncomingRequest",
    "InlineResult",
    "OnProgress",
    "Pose",
    "Post",
    "RequestClient",
    "RequestServer",
    "ResultSink",
    "decode_nested",
    "encode_nested",
    "error_reply",
    "late_reply",
    "read_request",
    "send_reply",
    "session_of",
    "value_reply",
]


def encode_nested(codec: Codec, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
    """Return an event as one argument of another. Raises CodecError."""
    return codec.encode(name, args, kwargs, {})


def decode_nested(codec: Codec, sealed: bytes) -> EventMessage:
    """Return the event. Raises CodecError."""
    wires = codec.decode(codec.join(b"", [sealed]))
    if len(wires) != 1:
        raise CodecError(f"{len(wires)} events in an envelope for one")
    return wires[0]


class ResultSink(Protocol):
    """Who waits for an answer. What is said to one who is `over` already goes nowhere."""

    @property
    def finished(self) -> bool:
        """Whether it waits no more."""
        ...

    def set_result(self, value: Any) -> None:
        """Take the answer."""
        ...

    def set_exception(self, error: BaseException) -> None:
        """Take it that there is none."""
        ...


Pose: TypeAlias = Callable[[ResultSink], None]
"""Asks for somebody."""


class InlineResult:
    """What one thread waits for that serves the link itself: it needs no lock, and nobody has to be notified."""

    __slots__ = ("_error", "_value", "finished")

    def __init__(self) -> None:
        self.finished = False
        self._value: Any = None
        self._error: BaseException | None = None

    def set_result(self, value: Any) -> None:
        """Keep the answer."""
        self._value, self.finished = value, True

    def set_exception(self, error: BaseException) -> None:
        """Keep why there is none."""
        if not self.finished:
            self._error, self.finished = error, True

    def result(self) -> Any:
        """Return the answer, or raise why there is none. Raises LinkClosed if that is because the client closes."""
        if self._error is not None:
            raise self._error
        if not self.finished:
            raise LinkClosed("the client was closed before the request was answered")
        return self._value


class FutureResult:
    """Who waits is whoever has the future, in any thread."""

    __slots__ = ("future",)

    def __init__(self) -> None:
        self.future: Future[Any] = Future()

    @property
    def finished(self) -> bool:
        """Whether it has its answer, or was cancelled."""
        return self.future.done()

    def set_result(self, value: Any) -> None:
        """Pass the answer on."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(value)

    def set_exception(self, error: BaseException) -> None:
        """Pass on why there is none."""
        if not self.finished and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


LONGEST: Final = 1e9
"""Seconds above which a request has all the time in the world."""
OnProgress: TypeAlias = Callable[[Any, Any], None]


class _Waiting(NamedTuple):
    who: ResultSink
    on_progress: OnProgress | None


_Asked: TypeAlias = Request[_Waiting]


class RequestClient:
    """The open requests of one client. Any thread asks; answers come in on the thread that serves the link.

    ``post`` queues an encoded event; ``cancel`` tells the server that nobody waits for a request any more.
    """

    def __init__(
        self,
        codec: Codec,
        outbox: Outbox,
        post: Callable[[str, bytes], bool],
        cancel: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._codec = codec
        self._outbox = outbox
        self._post = post
        self._cancel = cancel
        self._clock = clock
        self._requests: OpenRequests[_Waiting] = OpenRequests()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def next_deadline(self) -> float:
        """The monotonic moment of the next deadline."""
        return self._requests.next_deadline

    # -- asking ------------------------------------------------------------------------------------------------

    def submit(
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
        waiter = FutureResult()
        asked = self.send(waiter, name, args, kwargs, timeout=timeout, idempotent=idempotent, on_progress=on_progress)
        waiter.future.add_done_callback(lambda done: self._gave_up(asked) if done.cancelled() else None)
        return waiter.future

    def send(
        self,
        waiter: ResultSink,
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
        sealed = encode_nested(self._codec, name, args, kwargs)
        with self._lock:
            deadline = self._clock() + timeout
            request = self._requests.add(name, _Waiting(waiter, on_progress), deadline, idempotent=idempotent)
        left = None if timeout > LONGEST else int(timeout * 1000)
        request.data = self._codec.encode(REQUEST, (request.id, left, idempotent, sealed), {}, {})
        try:
            posted = self._post(name, request.data)
        except BaseException:
            self._requests.pop(request.id)
            raise
        request.queued = posted
        if not posted:
            self._fail(request, RequestError(f"{name!r} was dropped: the queue is full"))
        return request

    def _gave_up(self, request: _Asked) -> None:
        """Nobody waits any more: take the question back, or tell the server."""
        self._requests.pop(request.id)
        # Another thread may be sending it at this moment; then the cancellation follows it.
        with contextlib.suppress(ValueError, IndexError):
            self._outbox.pending.remove(request.data)
            return
        self._cancel(request.id)

    # -- being told --------------------------------------------------------------------------------------------

    def on_reply(self, wire: EventMessage) -> None:
        """Take an answer. Raises msgspec.ValidationError, CodecError: it cannot be read."""
        identifier, outcome, sealed = msgspec.convert(wire.args, tuple[int, str, bytes])
        request = self._requests.pop(identifier)
        if request is not None:
            self._answered(request, outcome, sealed)

    def _answered(self, request: _Asked, outcome: str, sealed: bytes) -> None:
        try:
            answer = decode_nested(self._codec, sealed)
        except CodecError as error:
            self._fail(request, RequestError(f"the answer to {request.name!r} cannot be read: {error}"))
            raise
        if outcome == "done":
            request.waiter.who.set_result(answer.args[0] if answer.args else None)
        else:
            self._fail(request, _error(request.name, outcome, answer.args))

    def on_progress(self, wire: EventMessage) -> EventMessage | None:
        """Find out whom to tell how far a request has come, while it is still open; tell it in the listeners' turn.

        Raises msgspec.ValidationError.
        """
        identifier, done, total = msgspec.convert(wire.args, tuple[int, Any, Any])
        request = self._requests.get(identifier)
        if request is None or request.waiter.on_progress is None:
            return None
        return EventMessage(PROGRESS, (request.waiter.on_progress, done, total))

    def on_disconnect(self, why: str) -> None:
        """The connection is gone: fail what was sent and may not be sent again."""
        for request in self._requests.pop_lost(self._outbox.unfinished_ids(sent=False)):
            self._fail(request, PeerLost(f"{why} before {request.name!r} was answered; it may have run, or may yet"))

    def on_server_restart(self) -> None:
        """A server began anew: ask it what the one before has not answered, where that may run twice; fail the rest."""
        for request in self._requests.pop_lost(self._outbox.unfinished_ids(marked=False)):
            self._fail(
                request, PeerLost(f"the server began anew before {request.name!r} was answered; it may have run")
            )
        self._outbox.pending.extend(each.data for each in self._requests.resendable(self._outbox.unfinished_ids()))

    def on_session_refused(self, why: Exception) -> None:
        """The server will not continue this session: nobody is going to answer."""
        for request in self._requests.pop_all():
            self._fail(request, why)

    def expire(self, now: float) -> None:
        """Fail what is late."""
        for request in self._requests.pop_expired(now):
            sent = request.queued and id(request.data) not in self._outbox.unfinished_ids(sent=False)
            how = "it was sent, and not answered" if sent else "it was never sent: is a server there?"
            self._gave_up(request)
            self._fail(request, RequestTimeout(f"no answer to {request.name!r} in time: {how}"))

    def close(self) -> None:
        """Fail all that is open."""
        for request in self._requests.pop_all():
            self._fail(request, LinkClosed(f"the client was closed before {request.name!r} was answered"))

    def _fail(self, request: _Asked, error: BaseException) -> None:
        self._requests.pop(request.id)
        request.waiter.who.set_exception(error)


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


Post: TypeAlias = Callable[[Session, str, tuple[Any, ...]], None]
"""Sends an event to whoever asked; what was asked must be answered, so no queue is too full for it."""


class IncomingRequest(msgspec.Struct, array_like=True, frozen=True):
    """A request as it arrives."""

    id: int
    remaining_ms: int | None
    """Milliseconds until nobody waits for the answer; None: for ever."""
    idempotent: bool
    body: bytes


class RequestServer:
    """Answers the requests that come to one server. ``ask`` calls the listeners, and says whether there are any."""

    def __init__(
        self, router: EventRouter, ask: Callable[[EventMessage, Sender | None], tuple[bool, Any]], post: Post
    ) -> None:
        router.register(REQUEST, self.handle_request)
        self._services = router.request_handlers
        self.answer_later: Callable[[Session, IncomingRequest, Awaitable[Any]], None] | None = None
        """Has a question answered by what an async listener returned, where there is an event loop."""
        self.skipped = 0
        """Requests that nobody waited for any more, or that may not run twice."""
        self._ask = ask
        self._post = post

    def handle_request(self, wire: EventMessage, sender: Sender | None, redelivered: bool) -> None:
        """Control: somebody asks. Raises msgspec.ValidationError."""
        question = read_request(wire)
        session = session_of(sender)
        if self.should_answer(session, question, redelivered):
            outcome = self._answer(session, question, sender)
            if outcome is not None:
                send_reply(self._post, session, question.id, outcome)

    def should_answer(self, session: Session, question: IncomingRequest, redelivered: bool) -> bool:
        """Whether a question is to be answered at all."""
        if question.id in session.cancelled_requests or (redelivered and not question.idempotent):
            self.skipped += 1
            return False
        return True

    def _answer(self, session: Session, question: IncomingRequest, sender: Sender | None) -> tuple[str, bytes] | None:
        """Have a question answered; return the outcome, sealed. None: it comes later."""
        codec = session.codec
        try:
            wire = decode_nested(codec, question.body)
            service = self._services.get(wire.name)
            found, value = self._ask(wire, sender) if service is None else (True, service(session, *wire.args))
            if inspect.isawaitable(value):
                if self.answer_later is not None:
                    self.answer_later(session, question, value)
                    return None
                if inspect.iscoroutine(value):
                    value.close()
                raise TypeError(ASYNC)
            return value_reply(codec, value) if found else ("unheard", encode_nested(codec, "", (), {}))
        except Exception as error:  # noqa: BLE001 - whatever a listener raises, whoever asked has to know
            return error_reply(codec, error)


def read_request(wire: EventMessage) -> IncomingRequest:
    """Read a request. Raises msgspec.ValidationError."""
    return msgspec.convert(wire.args, IncomingRequest)


def session_of(sender: Sender | None) -> Session:
    """Return the session of a client. Raises EmitError for an event that did not come from one."""
    if sender is None or not isinstance(sender.session, Session):
        raise EmitError("an event of Remit's own has to come from a client")
    return sender.session


def value_reply(codec: Codec, value: Any) -> tuple[str, bytes]:
    """Return the outcome of a question that was answered with a value."""
    try:
        return "done", encode_nested(codec, "", (value,), {})
    except CodecError as error:
        return error_reply(codec, error)


def error_reply(codec: Codec, error: BaseException, outcome: str = "failed") -> tuple[str, bytes]:
    """Return the outcome of a question whose listener raised."""
    kind = type(error)
    text = "".join(traceback.format_exception(error))
    return outcome, encode_nested(codec, "", (f"{kind.__module__}.{kind.__qualname__}", str(error), text), {})


def late_reply(codec: Codec) -> tuple[str, bytes]:
    """Return the outcome of a question that was not answered by its deadline."""
    return "late", encode_nested(codec, "", (), {})


def send_reply(post: Post, session: Session, question: int, outcome: tuple[str, bytes]) -> None:
    """Send an outcome; one that is too large for a frame is told as a failure. One that nobody can hear is dropped."""
    try:
        post(session, REPLY, (question, *outcome))
    except FrameTooLarge as error:
        with contextlib.suppress(FrameTooLarge, EmitError):  # It takes no frames to speak of.
            post(session, REPLY, (question, *error_reply(session.codec, error)))
    except EmitError:
        return
