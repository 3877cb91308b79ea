"""Both ends of request and reply: the open requests of a client, and the server that answers them.

| outcome | meaning                                     | raised at the client |
|---------|---------------------------------------------|----------------------|
| done    | the listener returned a value               |                      |
| failed  | the listener raised                         | RequestFailed        |
| unheard | there is no listener                        | NoListener           |
| late    | the deadline passed before the listener ran | RequestTimeout       |
| refused | a broker is full or drains                  | RequestError         |
| dead    | a broker gave up after several attempts     | DeadLetter           |
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import math
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from types import GeneratorType
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from remit._patterns.event_router import EventRouter
from remit._patterns.names import PROGRESS, REPLY, REQUEST
from remit._protocol.outbox import Outbox, TrackedEvent
from remit._protocol.requests import OpenRequests, Request
from remit._protocol.session import Session
from remit.codec import Codec, EventMessage, decode_event, printable, shortened
from remit.errors import (
    CodecError,
    DeadLetter,
    EmitError,
    FrameTooLarge,
    LinkClosed,
    NoListener,
    PeerLost,
    QueueFull,
    RemitError,
    RequestError,
    RequestFailed,
    RequestTimeout,
)
from remit.event import Event, Sender
from remit.listeners import ASYNC, is_foreign

logger = logging.getLogger("remit")

OnProgress: TypeAlias = Callable[[Any, Any], None]
SHORT_TEXT: Final = 1000
"""Characters that are left of the message and of the traceback if an exception exceeds a frame."""
MAX_ERROR_CHARS: Final = 16 * 1024
"""Longest message, and longest traceback, of a remote exception; the middle of a longer one is omitted."""
MAX_TIMEOUT_S: Final = 1e9
"""Longer timeouts are sent as none, so that the milliseconds fit an integer of any codec."""


class InlineResult:
    """Result for a caller that drives the I/O itself until it is `finished`."""

    # No lock and no condition, unlike a Future: the thread that sets the result is the thread that waits for it.

    __slots__ = ("_error", "_value", "finished")

    def __init__(self) -> None:
        self.finished = False
        self._value: Any = None
        self._error: BaseException | None = None

    def set_result(self, value: Any) -> None:
        """Set the value of the reply."""
        if not self.finished:
            self._value, self.finished = value, True

    def set_exception(self, error: BaseException) -> None:
        """Set the error that ends the request."""
        if not self.finished:
            self._error, self.finished = error, True

    def result(self) -> Any:
        """Return the value or raise the error. Raises LinkClosed if the client was closed without a result."""
        if self._error is not None:
            raise self._error
        if not self.finished:
            raise LinkClosed("the client was closed before the request was answered")
        return self._value


class FutureResult(Future[Any]):
    """Result for a caller in any thread. It is dropped if the future was cancelled."""

    # `Future` logs an Exception of a callback. SystemExit and the like would end the I/O thread, or the wait of another
    # caller. In the main thread they may come from a signal handler, and are raised.

    def set_result(self, value: Any) -> None:
        """Set the value of the reply."""
        self._end(super().set_result, value)

    def set_exception(self, error: BaseException | None) -> None:
        """Set the error that ends the request, unless it has ended."""
        self._end(super().set_exception, error)

    def _end(self, set_outcome: Callable[[Any], None], outcome: Any) -> None:
        # A running future cannot be cancelled: no cancel() of another thread can occur between check and result.
        if self.done() or not (self.running() or self.set_running_or_notify_cancel()):
            return
        try:
            set_outcome(outcome)
        except BaseException:
            if threading.current_thread() is threading.main_thread():
                raise
            logger.exception("a callback of a future raised an exception that is no Exception")


ResultSink: TypeAlias = InlineResult | FutureResult


class _Caller(NamedTuple):
    sink: ResultSink
    on_progress: OnProgress | None


_Request: TypeAlias = Request[_Caller]


class RequestClient:
    """Open requests of one client. Any thread sends; the ``on_`` methods run on the thread that owns the link."""

    # `post` returns False for an event that was dropped.

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
        self.open: OpenRequests[_Caller] = OpenRequests()
        self.why: Callable[[], str] = lambda: ""
        """Returns why there is no connection; empty if there is one."""

    def submit(self, *call: Any, **options: Any) -> Future[Any]:
        """Send a request as `send`; return the future of its result. Cancelling the future cancels the request."""
        future = FutureResult()
        try:
            request = self.send(future, *call, **options)
            # Without the request itself: it refers to the future, and the cycle would be left to the collector.
            cancel = functools.partial(self._cancel_request, request.id, request.data)
            future.add_done_callback(lambda done: cancel() if done.cancelled() else None)
        except BaseException:
            self.withdraw(future)
            raise
        return future

    def withdraw(self, sink: ResultSink) -> None:
        """Cancel the request that ``sink`` waits for, if there is one: an interrupt has ended the call."""
        for request in self.open.snapshot():
            if request.waiter.sink is sink:
                self._cancel_request(request.id, request.data)

    def send(
        self,
        sink: ResultSink,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        headers: Mapping[str, Any],
        *,
        timeout: float,
        idempotent: bool,
        on_progress: OnProgress | None,
    ) -> _Request:
        """Send a request. Raises CodecError, FrameTooLarge, EmitError, TypeError, ValueError."""
        _check_options(timeout, on_progress)
        call = self._codec.encode(name, args, kwargs, headers)
        deadline = self._clock() + timeout
        request = self.open.add(name, _Caller(sink, on_progress), deadline, idempotent=idempotent)
        remaining_ms = None if timeout > MAX_TIMEOUT_S else int(timeout * 1000)
        request.data = TrackedEvent(self._codec.encode(REQUEST, (request.id, remaining_ms, idempotent, call), {}, {}))
        request.data.request_id = request.id
        try:
            queued = self._post(name, request.data)
        except Exception:
            self.open.pop(request.id)
            raise
        if not queued:
            self._fail(request, RequestError(f"{name!r} was dropped: the queue is full"))
        return request

    def _cancel_request(self, identifier: int, data: TrackedEvent) -> None:
        self.open.pop(identifier)
        # A queued request is withdrawn. A request that the owner of the link has framed is followed by CANCEL.
        if not self._outbox.withdraw(data):
            self._cancel(identifier)

    def on_reply(self, message: EventMessage) -> None:
        """Set the result of a request. Raises msgspec.ValidationError, CodecError."""
        identifier, outcome, data = msgspec.convert(message.args, tuple[int, str, bytes])
        request = self.open.get(identifier)
        if request is None:
            return
        try:
            result = decode_event(self._codec, data)
        except CodecError as error:
            self._fail(request, RequestError(f"the reply to {request.name!r} cannot be decoded: {error}"))
            raise
        if outcome == "done":
            request.waiter.sink.set_result(result.args[0] if result.args else None)
            self.open.pop(identifier)
        else:
            self._fail(request, _error(request.name, outcome, result.args, request.note))

    def on_undecodable(self, message: EventMessage) -> EventMessage | None:
        """Fail the request whose reply could not be decoded. Return the event for the dispatch thread."""
        name, first, reason = msgspec.convert(message.args, tuple[str, Any, str])
        request = self.open.get(first) if name == REPLY and isinstance(first, int) else None
        if request is None:
            return message
        self._fail(request, RequestError(f"the reply to {request.name!r} cannot be decoded: {reason}"))
        return None

    def on_progress(self, message: EventMessage) -> EventMessage | None:
        """Return the event that calls on_progress on the dispatch thread, or None. Raises msgspec.ValidationError."""
        identifier, done, total = msgspec.convert(message.args, tuple[int, Any, Any])
        request = self.open.get(identifier)
        if request is None or request.waiter.on_progress is None:
            return None
        return EventMessage(PROGRESS, (request.waiter.on_progress, done, total))

    def on_note(self, message: EventMessage) -> None:
        """Store why a request waits. Raises msgspec.ValidationError."""
        identifier, note = msgspec.convert(message.args, tuple[int, str])
        request = self.open.get(identifier)
        if request is not None:
            request.note = note

    def on_disconnect(self, why: str) -> None:
        """Fail the requests that were sent and must not run twice."""
        for request in self.open.lost(lambda event: event.sent):
            self._fail(request, PeerLost(f"{why} before {request.name!r} was answered; it may have run, or may yet"))

    def on_server_restart(self) -> None:
        """Resend the idempotent requests that the last server has not answered; fail the others."""
        for request in self.open.lost(self._outbox.may_have_run_before):
            self._fail(request, PeerLost(f"the server restarted before {request.name!r} was answered; it may have run"))
        self._outbox.queue_again(each.data for each in self.open.resendable(self._outbox.is_done))

    def on_session_refused(self, error: Exception) -> None:
        """Fail all requests."""
        for request in self.open.snapshot():
            self._fail(request, error)

    def expire(self, now: float) -> None:
        """Fail the requests whose deadline has passed."""
        for request in self.open.expired(now):
            sent = request.data.sent
            if sent:
                how = request.note or f"it was sent, and not answered{self._how_far(request.data)}"
            else:
                how = f"it was never sent: {self.why() or 'earlier events fill the window: is the server ticked?'}"
            self._fail(request, RequestTimeout(f"no answer to {request.name!r} in time: {how}"))
            self._cancel_request(request.id, request.data)

    def _how_far(self, event: TrackedEvent) -> str:
        if why := self.why():
            return f"; {why}"
        if event.number > self._outbox.received:
            return "; the server has not received it: is its process stopped?"
        if event.number > self._outbox.done:
            return "; the server has received it, and not handled it: is it ticked?"
        return ""

    def close(self) -> None:
        """Fail all requests: the client is closed."""
        for request in self.open.snapshot():
            self._fail(request, LinkClosed(f"the client was closed before {request.name!r} was answered"))

    def _fail(self, request: _Request, error: BaseException) -> None:
        request.waiter.sink.set_exception(error)
        self.open.pop(request.id)


def _check_options(timeout: object, on_progress: object) -> None:
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"timeout of a request must be a number of seconds, not {timeout!r}")
    if math.isnan(timeout):  # No comparison with it is true: the request would never expire.
        raise ValueError("timeout of a request must be a number of seconds, not nan")
    if on_progress is not None and not callable(on_progress):
        raise TypeError(f"on_progress must be callable, not {on_progress!r}")


def _error(name: str, outcome: str, args: Sequence[Any], note: str) -> RequestError:
    texts = [str(each) for each in args]
    if outcome == "unheard":
        return NoListener(f"the server has no listener for {name!r}")
    if outcome == "late":
        return RequestTimeout(f"no answer to {name!r} in time: {note or 'its deadline passed before it could start'}")
    if outcome == "refused":
        return RequestError(f"{name!r} was refused: {' '.join(texts)}")
    # A newer peer may use an outcome that is unknown here: it is shown as a failure, not dropped.
    kind = DeadLetter if outcome == "dead" else RequestFailed
    return kind(*[*texts, "", "", ""][:3])


Post: TypeAlias = Callable[[Session, str, tuple[Any, ...]], None]
"""Sends an event to a client. Unbounded: a reply must be sent, and there is at most one for each request."""
Reply: TypeAlias = tuple[str, bytes]
"""Outcome and encoded result."""


class IncomingRequest(msgspec.Struct, array_like=True, frozen=True):
    """A request as received by a server."""

    id: int
    remaining_ms: int | None
    """Milliseconds until its deadline; None without one."""
    idempotent: bool
    body: bytes


class RequestServer:
    """Answers the requests to one server. ``ask`` calls the listeners and returns whether one exists, and its value.

    ``report`` is called with the event of a request and the exception that its listener raised.
    """

    def __init__(
        self,
        router: EventRouter,
        ask: Callable[[EventMessage, Sender | None], tuple[bool, Any]],
        post: Post,
        report: Callable[[Event, Exception], None] = lambda *_: None,
    ) -> None:
        router.register(REQUEST, self.handle_request, repeatable=True)
        self._services = router.request_handlers
        self.answer_later: Callable[[Session, IncomingRequest, Awaitable[Any]], None] | None = None
        """Sends the reply when an async listener has finished; None without an event loop."""
        self.skipped = 0
        """Requests that were cancelled, or redelivered without being idempotent."""
        self.failed = 0
        """Requests whose listener raised."""
        self._ask = ask
        self._post = post
        self._report = report
        self.may_repeat: Callable[[], bool] = lambda: False
        """Whether no listener of the request that is being handled has started."""

    def handle_request(self, message: EventMessage, sender: Sender | None, redelivered: bool) -> None:
        """Call the listener of a request and send its reply. Raises msgspec.ValidationError."""
        request = msgspec.convert(message.args, IncomingRequest)
        session = session_of(sender)
        if not self.should_answer(session, request, redelivered):
            return
        reply = None
        try:
            reply = self._answer(session, request, sender)
            if reply is not None:
                send_reply(self._post, session, request.id, reply)
        except BaseException as error:
            if reply is None and self.may_repeat():
                raise  # No listener has started: the event is dispatched again.
            # Else the event counts as handled, so no later tick answers it. The client ignores a second reply.
            with contextlib.suppress(RemitError):
                send_reply(self._post, session, request.id, reply or error_reply(session.codec, error))
            raise

    def should_answer(self, session: Session, request: IncomingRequest, redelivered: bool) -> bool:
        """Return whether a request is to be answered, and count it as skipped if not."""
        if request.id in session.cancelled_requests or (redelivered and not request.idempotent):
            self.skipped += 1
            return False
        return True

    def _answer(self, session: Session, request: IncomingRequest, sender: Sender | None) -> Reply | None:
        """Return the reply to a request, or None if it is sent later."""
        codec = session.codec
        try:
            call = decode_event(codec, request.body)
            service = self._services.get(call.name)
            found, value = self._ask(call, sender) if service is None else (True, service(session, *call.args))
            # First what is fast: isawaitable() costs 1 us.
            if (hasattr(value, "__await__") or isinstance(value, GeneratorType)) and inspect.isawaitable(value):
                if self.answer_later is not None:
                    self.answer_later(session, request, value)
                    return None
                if inspect.iscoroutine(value):
                    value.close()
                raise TypeError(ASYNC)
            return value_reply(codec, value) if found else make_reply(codec, "unheard")
        except Exception as error:
            if self.may_repeat() and is_foreign(error):
                raise
            self.report_failure(session, request, error)
            return error_reply(codec, error)

    def report_failure(self, session: Session, request: IncomingRequest, error: Exception) -> None:
        """Report the exception of a listener also at this end. The client gets it, but may no longer wait."""
        with contextlib.suppress(CodecError):
            call = decode_event(session.codec, request.body)
            if call.name not in self._services:
                self.failed += 1
                self._report(call.event(sender=session.sender), error)


def session_of(sender: Sender | None) -> Session:
    """Return the session of a client. Raises EmitError for an event that was not received from a client."""
    if sender is None:
        raise EmitError("a reserved event must be received from a client")
    return sender.session


def make_reply(codec: Codec, outcome: str, *values: Any) -> Reply:
    """Return a reply with an outcome and its values. Raises CodecError."""
    return outcome, codec.encode("", values, {}, {})


def value_reply(codec: Codec, value: Any) -> Reply:
    """Return the reply for a value; an error reply if it cannot be encoded."""
    try:
        return make_reply(codec, "done", value)
    except CodecError as error:
        return error_reply(codec, error)


def error_reply(codec: Codec, error: BaseException) -> Reply:
    """Return the reply for an exception: its type name, its message and its traceback. Never raises."""
    kind = type(error)
    name = _text(lambda: f"{kind.__module__}.{kind.__qualname__}", shortened(kind))
    text = _text(lambda: str(error), f"<str() of {name} failed>")
    trace = _text(lambda: "".join(traceback.format_exception(error)), f"{name}: {text}")
    return make_reply(codec, "failed", name, text, trace)


def _text(make: Callable[[], str], fallback: str) -> str:
    """Return a text that any codec encodes and any frame holds. ``make`` runs code of the user, which may raise."""
    try:
        text = make()
    except (Exception, SystemExit, GeneratorExit):  # noqa: BLE001 - KeyboardInterrupt, raised by Ctrl-C, must pass
        text = fallback
    return printable(_shortened(text, MAX_ERROR_CHARS))


def _shortened(text: str, limit: int) -> str:
    half = limit // 2
    return text if len(text) <= limit else f"{text[:half]} ... {len(text) - limit} characters ... {text[-half:]}"


def send_reply(post: Post, session: Session, request_id: int, reply: Reply) -> None:
    """Send a reply; send a shorter one if it is too large for a frame. Drop it if the session has ended."""
    try:
        post(session, REPLY, (request_id, *reply))
    except FrameTooLarge as error:
        # The max_frame of the client may be too small even for the error, and its queue too full.
        with contextlib.suppress(FrameTooLarge, EmitError):
            post(session, REPLY, (request_id, *shorter_reply(session.codec, reply, error)))
    except QueueFull:
        text = "it has run, but its reply found no room: replies wait for this client, see queue_bytes of the server"
        with contextlib.suppress(FrameTooLarge, EmitError):
            post(session, REPLY, (request_id, *make_reply(session.codec, "refused", text)))
    except EmitError:
        return


def shorter_reply(codec: Codec, reply: Reply, error: FrameTooLarge) -> Reply:
    """Return the reply to send instead of one that exceeds a frame: an exception with shorter texts, or ``error``."""
    outcome, result = reply
    if outcome != "failed":
        return error_reply(codec, error)
    texts = [_shortened(str(text), SHORT_TEXT) for text in decode_event(codec, result).args]
    return make_reply(codec, outcome, *texts)
