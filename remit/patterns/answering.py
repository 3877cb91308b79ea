"""Answering: a server's side of request and reply: what a listener returns or raises goes back to whoever asked."""

from __future__ import annotations

import contextlib
import inspect
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import msgspec

from remit.codec import Codec, Wire
from remit.errors import CodecError, EmitError, FrameTooLarge
from remit.listeners import ASYNC
from remit.patterns.asking import REPLY
from remit.patterns.envelope import seal, unseal
from remit.protocol.session import Session
from remit.sender import Sender

__all__ = ["Answering", "Post", "Question", "late", "read_question", "reply", "send", "session_of", "told"]

Post: TypeAlias = Callable[[Session, str, tuple[Any, ...]], None]
"""Sends an event to whoever asked; what was asked must be answered, so no queue is too full for it."""


class Question(msgspec.Struct, array_like=True, frozen=True):
    """A request as it arrives."""

    id: int
    left: int | None
    """Milliseconds until nobody waits for the answer; None: for ever."""
    idempotent: bool
    sealed: bytes


class Answering:
    """Answers the requests that come to one server. ``ask`` calls the listeners, and says whether there are any."""

    def __init__(self, ask: Callable[[Wire, Sender | None], tuple[bool, Any]], post: Post) -> None:
        self.services: dict[str, Callable[..., Any]] = {}
        """What Remit itself answers, by name; called with the session and the arguments."""
        self.later: Callable[[Session, Question, Awaitable[Any]], None] | None = None
        """Has a question answered by what an async listener returned, where there is an event loop."""
        self.passed_over = 0
        """Requests that nobody waited for any more, or that may not run twice."""
        self._ask = ask
        self._post = post

    def requested(self, wire: Wire, sender: Sender | None, redelivered: bool) -> None:
        """Control: somebody asks. Raises msgspec.ValidationError."""
        question = read_question(wire)
        session = session_of(sender)
        if self.waited_for(session, question, redelivered):
            outcome = self._answer(session, question, sender)
            if outcome is not None:
                send(self._post, session, question.id, outcome)

    def waited_for(self, session: Session, question: Question, redelivered: bool) -> bool:
        """Whether a question is to be answered at all."""
        if question.id in session.cancelled or (redelivered and not question.idempotent):
            self.passed_over += 1
            return False
        return True

    def _answer(self, session: Session, question: Question, sender: Sender | None) -> tuple[str, bytes] | None:
        """Have a question answered; return the outcome, sealed. None: it comes later."""
        codec = session.codec
        try:
            wire = unseal(codec, question.sealed)
            service = self.services.get(wire.name)
            found, value = self._ask(wire, sender) if service is None else (True, service(session, *wire.args))
            if inspect.isawaitable(value):
                if self.later is not None:
                    self.later(session, question, value)
                    return None
                if inspect.iscoroutine(value):
                    value.close()
                raise TypeError(ASYNC)
            return reply(codec, value) if found else ("unheard", seal(codec, "", (), {}))
        except Exception as error:  # noqa: BLE001 - whatever a listener raises, whoever asked has to know
            return told(codec, error)


def read_question(wire: Wire) -> Question:
    """Read a request. Raises msgspec.ValidationError."""
    return msgspec.convert(wire.args, Question)


def session_of(sender: Sender | None) -> Session:
    """Return the session of a client. Raises EmitError for an event that did not come from one."""
    if sender is None or not isinstance(sender.session, Session):
        raise EmitError("an event of Remit's own has to come from a client")
    return sender.session


def reply(codec: Codec, value: Any) -> tuple[str, bytes]:
    """Return the outcome of a question that was answered with a value."""
    try:
        return "done", seal(codec, "", (value,), {})
    except CodecError as error:
        return told(codec, error)


def told(codec: Codec, error: BaseException, outcome: str = "failed") -> tuple[str, bytes]:
    """Return the outcome of a question whose listener raised."""
    kind = type(error)
    text = "".join(traceback.format_exception(error))
    return outcome, seal(codec, "", (f"{kind.__module__}.{kind.__qualname__}", str(error), text), {})


def late(codec: Codec) -> tuple[str, bytes]:
    """Return the outcome of a question that was not answered by its deadline."""
    return "late", seal(codec, "", (), {})


def send(post: Post, session: Session, question: int, outcome: tuple[str, bytes]) -> None:
    """Send an outcome; one that is too large for a frame is told as a failure. One that nobody can hear is dropped."""
    try:
        post(session, REPLY, (question, *outcome))
    except FrameTooLarge as error:
        with contextlib.suppress(FrameTooLarge, EmitError):  # It takes no frames to speak of.
            post(session, REPLY, (question, *told(session.codec, error)))
    except EmitError:
        return
