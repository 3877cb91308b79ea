"""Answering: a server's side of request and reply: what a listener returns or raises goes back to whoever asked."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import msgspec

from remit.asking import REPLY
from remit.codec import Codec, Wire
from remit.envelope import seal, unseal
from remit.errors import CodecError, EmitError, FrameTooLarge
from remit.event import Event

__all__ = ["Question", "answer", "read_question", "reply", "send", "told"]

Reply: TypeAlias = Callable[[str, tuple[Any, ...]], None]
"""Sends an event to whoever asked; what was asked must be answered, so no queue is too full for it."""


class Question(msgspec.Struct, array_like=True, frozen=True):
    """A request as it arrives."""

    id: int
    left: int | None
    """Milliseconds until nobody waits for the answer; None: for ever."""
    idempotent: bool
    sealed: bytes


_ASYNC: Final = "an async listener can answer requests of an AsyncServer only"


def read_question(event: Event) -> Question:
    """Read a request. Raises msgspec.ValidationError."""
    return msgspec.convert(event.args, Question)


def answer(codec: Codec, question: Question, call: Callable[[Wire], tuple[bool, Any]]) -> tuple[str, bytes]:
    """Have a question answered by ``call``, which says whether anybody listens; return the outcome, sealed."""
    try:
        wire = unseal(codec, question.sealed)
        found, value = call(wire)
        if inspect.isawaitable(value):
            if inspect.iscoroutine(value):
                value.close()
            raise TypeError(_ASYNC)
        return reply(codec, value) if found else ("unheard", seal(codec, "", (), {}))
    except Exception as error:  # noqa: BLE001 - whatever a listener raises, whoever asked has to know
        return told(codec, error)


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


def send(codec: Codec, post: Reply, question: int, outcome: tuple[str, bytes]) -> None:
    """Send an outcome; one that is too large for a frame is told as a failure. One whose session ended is dropped."""
    try:
        post(REPLY, (question, *outcome))
    except FrameTooLarge as error:
        post(REPLY, (question, *told(codec, error)))
    except EmitError:
        return
