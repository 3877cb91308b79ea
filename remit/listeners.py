"""Listeners: who hears what: by name or pattern, each by itself, whatever the others raise."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import fnmatch
import functools
import inspect
import logging
import re
import threading
import typing
import uuid
from collections.abc import Awaitable, Callable, Sequence
from inspect import isawaitable, iscoroutine
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from remit._patterns.event_router import EventRouter
from remit._patterns.names import RESERVED
from remit.codec import EventMessage, invalid_name_error, shortened
from remit.event import Event, Sender

__all__ = [
    "ASYNC",
    "NAMES_CACHED",
    "ListenerRegistry",
    "OnError",
    "check_listener",
    "check_name",
    "converter",
    "matcher",
]


_SCALARS: Final = (
    datetime.datetime,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    decimal.Decimal,
    uuid.UUID,
)


def converter(listener: Callable[..., Any]) -> Callable[..., Any]:
    """Return the listener itself, or one that first converts the arguments whose annotations ask for it.

    Dataclasses, msgspec structs, TypedDicts, enums, sets, dates, UUIDs and decimals ask for it, also inside lists,
    dicts, tuples and unions. An argument that does not fit raises msgspec.ValidationError in the listener's place.
    """
    wanted = _wanted(listener)
    if not wanted:
        return listener
    signature = inspect.signature(listener)

    @functools.wraps(listener)
    def convert(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        for name, annotation in wanted.items():
            if name in bound.arguments:
                bound.arguments[name] = msgspec.convert(bound.arguments[name], annotation)
        return listener(*bound.args, **bound.kwargs)

    return convert


def _wanted(listener: Callable[..., Any]) -> dict[str, Any]:
    """Return the parameters to convert. A listener whose annotations cannot be read converts nothing."""
    try:
        hints = typing.get_type_hints(listener)
        parameters = inspect.signature(listener).parameters.values()
    except (NameError, TypeError, ValueError, AttributeError):
        return {}
    single = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )
    return {
        parameter.name: hints[parameter.name]
        for parameter in parameters
        if parameter.kind in single and parameter.name in hints and _asks(hints[parameter.name])
    }


def _asks(annotation: Any) -> bool:
    if typing.get_args(annotation):
        inner = any(_asks(part) for part in typing.get_args(annotation))
        return inner or typing.get_origin(annotation) in (set, frozenset)
    if not isinstance(annotation, type):
        return False
    return (
        dataclasses.is_dataclass(annotation)
        or typing.is_typeddict(annotation)
        or issubclass(annotation, (msgspec.Struct, enum.Enum, set, frozenset, *_SCALARS))
    )


logger = logging.getLogger("remit")

Function = TypeVar("Function", bound=Callable[..., Any])
OnError = Callable[[Event, Exception], None]
"""Called with the event and what a listener raised on it."""

NAMES_CACHED: Final = 4096
"""Event names whose listeners are remembered; a stranger that invents names cannot fill the memory."""
ASYNC: Final = "an async listener needs an event loop: use AsyncServer, AsyncClient or `await server.serve()`"

_WILD: Final = re.compile(r"[*?\[]")
"""What makes a pattern of a name."""


class _Entry(NamedTuple):
    pattern: str
    matches: Callable[[str], object]
    function: Callable[..., Any]
    call: Callable[..., Any]
    pass_event: bool
    once: bool
    internal: bool = False


class ListenerRegistry:
    """What a server and a client share: adding and removing listeners, and dispatch to them."""

    def __init__(self, on_error: OnError | None = None) -> None:
        if on_error is not None and not callable(on_error):
            raise TypeError(f"on_error is called with an event and an error, but {on_error!r} cannot be")
        self._entries: tuple[_Entry, ...] = ()
        self._cache: dict[str, tuple[_Entry, ...]] = {}
        self._entries_lock = threading.Lock()
        self._on_error = on_error
        self._router = EventRouter(self._reset_cache)
        self._awaitables: list[tuple[Event, Awaitable[Any]]] | None = None
        """What async listeners have returned, while an event loop awaits it; None without one."""
        self._unheard = 0
        self._errors = 0
        self._dispatched = 0

    def add_listener(
        self, name: str, listener: Callable[..., Any], *, pass_event: bool = False, once: bool = False
    ) -> None:
        """Call ``listener(*args, **kwargs)`` for each event of this name, or whose name fits a pattern.

        In a pattern ``*`` stands for any characters, ``?`` for one, ``[abc]`` for one of these. Several
        listeners are called in the order in which they were added. Parameters annotated with dataclasses,
        msgspec structs, enums, dates and the like are converted. With ``pass_event`` the listener gets the
        `Event` alone.
        """
        check_listener(name, listener)
        call = listener if pass_event else converter(listener)
        entry = _Entry(name, matcher(name), listener, call, pass_event, once)
        with self._entries_lock:
            self._entries += (entry,)
            self._cache = {}

    def once(self, name: str, listener: Callable[..., Any], *, pass_event: bool = False) -> None:
        """Like `add_listener`, for the first such event only."""
        self.add_listener(name, listener, pass_event=pass_event, once=True)

    def on(self, name: str, *, pass_event: bool = False) -> Callable[[Function], Function]:
        """Decorate a listener: ``@server.on("job.*")``."""

        def add(listener: Function) -> Function:
            self.add_listener(name, listener, pass_event=pass_event)
            return listener

        return add

    def remove_listener(self, name: str, listener: Callable[..., Any] | None = None) -> bool:
        """Take off the newest such listener, or with no listener given all of that name; False if none was there."""
        with self._entries_lock:
            found = [
                entry
                for entry in self._entries
                if entry.pattern == name and (listener is None or entry.function == listener)
            ]
            gone = found if listener is None else found[-1:]
            self._drop(gone)
        return bool(gone)

    def _drop(self, gone: Sequence[_Entry]) -> None:
        kept = list(self._entries)
        for entry in gone:
            position = next((place for place, other in enumerate(kept) if other is entry), None)
            if position is not None:
                del kept[position]
        self._entries, self._cache = tuple(kept), {}

    def _dispatch(self, wires: Sequence[EventMessage], sender: Sender | None, redelivered: bool) -> None:
        """Give each event to its listeners, in order. Only what is no Exception gets out."""
        for wire in wires:
            # Looked up each time: a listener may have changed who listens.
            entries = self._cache.get(wire.name)
            if entries is None:
                entries = self._resolve(wire.name)
            if not entries:
                self._unheard += 1
            for entry in entries:
                try:
                    if entry.pass_event or entry.once:
                        value = self._call(entry, wire, sender, redelivered)
                    else:
                        value = entry.call(*wire.args, **wire.kwargs)
                    if value is not None and isawaitable(value):
                        self._put_off(wire.event(sender=sender, redelivered=redelivered), value)
                except Exception as error:  # noqa: BLE001 - one listener must not stop the others
                    self._failed(wire.event(sender=sender, redelivered=redelivered), error)
        self._dispatched += len(wires)

    def _put_off(self, event: Event, value: Awaitable[Any]) -> None:
        """Have it awaited, or say that nobody does. Raises TypeError: what is not awaited has not run."""
        if self._awaitables is not None:
            self._awaitables.append((event, value))
        elif iscoroutine(value):
            value.close()
            raise TypeError(ASYNC)

    def _call_listeners(self, wire: EventMessage, sender: Sender | None) -> tuple[bool, Any]:
        """Call all listeners of a request; return whether there are any, and what the first one returned or raised."""
        entries = self._cache.get(wire.name)
        if entries is None:
            entries = self._resolve(wire.name)
        if not entries or wire.name.startswith(RESERVED):
            return False, None
        value = self._value(entries[0], wire, sender)
        for entry in entries[1:]:
            try:
                also = self._value(entry, wire, sender)
                if also is not None and isawaitable(also):
                    self._put_off(wire.event(sender=sender), also)
            except Exception as error:  # noqa: BLE001 - one listener must not stop the others
                self._failed(wire.event(sender=sender), error)
        return True, value

    def _value(self, entry: _Entry, wire: EventMessage, sender: Sender | None) -> Any:
        if entry.once:
            self.remove_listener(entry.pattern, entry.function)
        return entry.call(wire.event(sender=sender)) if entry.pass_event else entry.call(*wire.args, **wire.kwargs)

    def _call(self, entry: _Entry, wire: EventMessage, sender: Sender | None, redelivered: bool) -> Any:
        if entry.once:
            with self._entries_lock:
                if not any(entry is other for other in self._entries):
                    return None
                self._drop([entry])
        if entry.internal:
            return entry.call(wire, sender, redelivered)
        if entry.pass_event:
            return entry.call(wire.event(sender=sender, redelivered=redelivered))
        return entry.call(*wire.args, **wire.kwargs)

    def _resolve(self, name: str) -> tuple[_Entry, ...]:
        with self._entries_lock:
            if name.startswith(RESERVED):
                handlers = self._router.handlers.get(name, ())
                entries = tuple(_Entry(name, bool, each, each, True, False, internal=True) for each in handlers)
            else:
                entries = tuple(entry for entry in self._entries if entry.matches(name))
            if len(self._cache) >= NAMES_CACHED:
                self._cache = {}
            self._cache[name] = entries
        return entries

    def _reset_cache(self) -> None:
        with self._entries_lock:
            self._cache = {}

    def _renew_lock(self) -> None:
        """In a forked child: a thread that is not here may have held it."""
        self._entries_lock = threading.Lock()

    def _failed(self, event: Event, error: Exception) -> None:
        self._errors += 1
        if self._on_error is None:
            logger.error("a listener of %r raised", event.name, exc_info=error)
            return
        try:
            self._on_error(event, error)
        except Exception:
            logger.exception("on_error raised for %r", event.name)


def check_listener(name: object, listener: object) -> None:
    """Raise TypeError or ValueError for a name or pattern, or a listener, that cannot be one."""
    if not isinstance(name, str) or not name:
        raise TypeError(f"a listener's name is a non-empty text, not {name!r}")
    check_name(name)
    if not callable(listener):
        raise TypeError(f"a listener is called, but {listener!r} cannot be")


def check_name(name: str) -> None:
    """Raise ValueError for a name of Remit's own, TypeError for what is no name."""
    if not isinstance(name, str):
        raise invalid_name_error(name)
    if name.startswith(RESERVED):
        raise ValueError(
            f"{shortened(name)} is Remit's own: give your events names that do not begin with {RESERVED!r}"
        )


def matcher(name: str) -> Callable[[str], object]:
    """Return what says whether an event's name is this name, or fits this pattern."""
    if _WILD.search(name):
        return re.compile(fnmatch.translate(name)).match
    return name.__eq__
