"""Registry of listeners by name or pattern, dispatch of events to them, and conversion of typed arguments."""

from __future__ import annotations

import fnmatch
import itertools
import logging
import re
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from copy import copy
from functools import partial
from inspect import isasyncgenfunction, isawaitable, iscoroutine, isgeneratorfunction
from itertools import chain, islice, starmap
from operator import attrgetter, itemgetter, length_hint
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import msgspec

from remit._limited_log import LimitedLog
from remit._patterns.event_router import EventRouter
from remit._patterns.names import RESERVED
from remit._protocol.session import Received
from remit._typed_listeners import Conversion, bind, conversion
from remit.codec import EventMessage, invalid_name_error, printable, shortened
from remit.errors import RemitError
from remit.event import Event, Sender


def _make_printable(record: logging.LogRecord) -> bool:
    """Format the traceback of a log record, so that every handler can write it."""
    if record.exc_info and record.exc_text is None:
        try:
            record.exc_text = printable(logging.Formatter().formatException(record.exc_info))
        except Exception:  # noqa: BLE001 - attributes of an exception may be code that raises
            record.exc_text = f"<the traceback of {shortened(record.exc_info[0])} cannot be formatted>"
    return True


logger = logging.getLogger("remit")
logger.addFilter(_make_printable)

Function = TypeVar("Function", bound=Callable[..., Any])
OnError = Callable[[Event, Exception], None]
"""Called with an event and the exception that a listener raised for it."""

# Size of the cache of listeners by event name: peers that send random names must not exhaust the memory.
NAMES_CACHED: Final = 4096
NAMES_LOGGED: Final = 64
"""Names of events without a listener for which one end writes a log record."""
ASYNC: Final = "an async listener needs an event loop: use AsyncServer, AsyncClient or `await server.serve()`"

_WILD: Final = re.compile(r"[*?\[]")
_numbers = itertools.count()
_OWN_ERRORS: Final = (
    RemitError,
    msgspec.MsgspecError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Errors that code of Remit may raise, given the bytes of any peer."""
_ARGUMENTS: Final = attrgetter("args")
_NOTHING: Final = attrgetter("no_args")
_FIRST: Final = itemgetter(0)


class _Entry(NamedTuple):
    number: int
    pattern: str
    matches: Callable[[str], object]
    function: Callable[..., Any]
    call: Callable[..., Any]
    pass_event: bool
    once: bool
    conversion: Conversion | None = None
    internal: bool = False
    repeatable: bool = False
    """Whether an interrupted call is repeated, and the event not removed before the call has returned."""
    no_args: tuple[()] = ()


_Pending: TypeAlias = Iterator[EventMessage | None]
_Begin: TypeAlias = Iterator[tuple[()]]
_Calls: TypeAlias = tuple[Sequence[_Entry], EventMessage, _Pending, Sender | None, bool]


class _Found(NamedTuple):
    """Listeners of one event name."""

    entries: tuple[_Entry, ...]
    only: Callable[..., Any] | None
    """The only listener, if it takes the arguments of each event and nothing else."""
    fits: Callable[..., bool] | None
    """Whether these arguments need no conversion; None if no arguments do."""
    handler: Callable[..., Any] | None
    """The handler of a reserved event, if it is the only one and may be repeated."""


class ListenerRegistry:
    """Base of `Server` and `Client`: adding and removing listeners, and dispatch to them."""

    def __init__(self, on_error: OnError | None = None) -> None:
        if on_error is not None and not callable(on_error):
            raise TypeError(f"on_error must be callable with an event and an exception, not {on_error!r}")
        # No lock: a finalizer may add a listener, and an interrupt must hold nothing. Each change is one operation on
        # the dict, which is atomic, and then replaces the cache. `_resolve` takes the cache before it reads the
        # entries, so that what it has read before a change goes into the replaced cache.
        self._entries: dict[int, _Entry] = {}
        """The listeners in the order of registration, by number."""
        self._cache: dict[str, _Found] = {}
        self._on_error = on_error
        self._router = EventRouter(self._reset_cache)
        self._defer_to: Callable[[Event, Awaitable[Any]], None] | None = None
        """Has an event loop await what an async listener has returned; None while no loop serves this end."""
        self._log = LimitedLog()
        self._begin: _Begin | None = None
        """Removes the event of a request or publication when its listener starts; None from then on."""
        self._interrupted: deque[_Calls] = deque()
        """Events of which an interrupt has left some listeners to call."""
        self._unheard = 0
        self._unheard_hint = ""
        """What to do about an event without a listener. If it is empty, such events are counted and not logged."""
        self._logged_names: set[str] = set()
        """Names of events without a listener that were logged: one record for each name."""
        self._errors = 0
        self._dispatched = 0

    def add_listener(
        self, name: str, listener: Callable[..., Any], *, pass_event: bool = False, once: bool = False
    ) -> None:
        """Call ``listener(*args, **kwargs)`` for each event with this name, or with a name that matches a pattern.

        In a pattern ``*`` matches any characters, ``?`` one character, ``[abc]`` one of these. Listeners are called in
        the order of registration. Arguments are converted to annotated types such as dataclasses, msgspec structs,
        enums and dates. With ``pass_event`` the only argument is the `Event`.
        """
        check_listener(name, listener)
        how = None if pass_event else conversion(listener)
        entry = _Entry(next(_numbers), name, matcher(name), listener, self._adapt(listener), pass_event, once, how)
        try:
            self._entries[entry.number] = entry
            self._cache = {}
        except BaseException:
            self._remove([entry])
            raise

    def _adapt(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return what to call for a callback of the user."""
        return function

    def once(self, name: str, listener: Callable[..., Any], *, pass_event: bool = False) -> None:
        """Call ``listener`` for the next such event only. Otherwise as `add_listener`."""
        self.add_listener(name, listener, pass_event=pass_event, once=True)

    def on(self, name: str, *, pass_event: bool = False) -> Callable[[Function], Function]:
        """Decorate a listener: ``@server.on("job.*")``."""

        def add(listener: Function) -> Function:
            self.add_listener(name, listener, pass_event=pass_event)
            return listener

        return add

    def remove_listener(self, name: str, listener: Callable[..., Any] | None = None) -> bool:
        """Remove the newest registration of ``listener`` under this name, or all of the name without a listener.

        Return False if there is none.
        """
        found = [entry for entry in list(self._entries.values()) if entry.pattern == name]
        if listener is not None:
            found = [entry for entry in found if entry.function == listener][-1:]
        return self._remove(found)

    def _remove(self, entries: Sequence[_Entry]) -> bool:
        """Remove entries. Return whether one of them was there: of several threads, one gets True for it."""
        try:
            removed = [self._entries.pop(entry.number, None) is not None for entry in entries]
            self._cache = {}
        except BaseException:
            self._cache = {}
            raise
        return any(removed)

    def _dispatch_frame(self, received: Received, sender: Sender | None = None, limit: int | None = None) -> int:
        """Dispatch the first ``limit`` events of a frame; after an exception, those that have begun count as handled.

        Return their number. A listener may have the rest of its frame dispatched.
        """
        received.left.clear()
        dispatched = received.mark_begun() if received.pending is not None else 0
        pending = received.pending = iter(tuple(received.events))
        received.left = left = received.events[:limit]
        try:
            self._dispatch_pending(left, pending, sender, received.redelivered)
        finally:
            dispatched += received.mark_begun()
            self._dispatched += dispatched
        return dispatched

    def _dispatch_pending(
        self, events: list[EventMessage | None], pending: _Pending, sender: Sender | None, redelivered: bool
    ) -> None:
        """Dispatch events as above. Each is taken from ``pending``, which begins with them, when a listener starts.

        Hence after an exception of a signal handler at any line ``pending`` has the events that no listener has begun.
        """
        if self._interrupted:
            self._resume()
        # Iterators in C: no signal handler can run between the removal of an event and the call of its listener.
        arguments = map(_ARGUMENTS, pending)
        cache = name = None
        for wire in events:
            if wire is None:  # It was undecodable, or is handled already.
                next(pending)
                continue
            # A listener may have added or removed listeners, which replaces the cache.
            if self._cache is not cache or wire.name != name:
                name, cache = wire.name, self._cache
                entries, only, fits, handler = cache.get(name) or self._resolve(name)
                calls = starmap(only, arguments)  # type: ignore[arg-type]
            if handler is not None:
                self._handle_reserved(handler, wire, pending, sender, redelivered)
                continue
            if only is None or wire.kwargs or (fits is not None and not fits(*wire.args)):
                self._call_all(entries, wire, pending, sender, redelivered)
                continue
            try:
                value = next(calls)
                if value is not None and isawaitable(value):
                    self._defer(wire.event(sender=sender, redelivered=redelivered), value)
            except Exception as error:
                if next(copy(pending), None) is wire:
                    raise  # The listener has not begun: a signal handler has raised it.
                self._report_error(wire.event(sender=sender, redelivered=redelivered), error)

    def _handle_reserved(
        self, call: Callable[..., Any], wire: EventMessage, pending: _Pending, sender: Sender | None, redelivered: bool
    ) -> None:
        left = length_hint(pending)
        self._begin = map(_NOTHING, pending)
        try:
            value = call(wire, sender, redelivered)
            if value is not None and isawaitable(value):
                self._defer(wire.event(sender=sender, redelivered=redelivered), value)
        except Exception as error:
            if length_hint(pending) == left and is_foreign(error):
                raise  # A signal handler has raised it: the event is handled again.
            self._report_error(wire.event(sender=sender, redelivered=redelivered), error)
        if length_hint(pending) == left:
            next(pending)

    def _resume(self) -> None:
        """Call the listeners that an interrupt has kept from their events."""
        while self._interrupted:
            calls = self._interrupted[0]
            if length_hint(calls[2]):
                self._call_all(*calls)
            if self._interrupted and self._interrupted[0] is calls:
                self._interrupted.popleft()

    def _call_all(
        self, entries: Sequence[_Entry], wire: EventMessage, pending: _Pending, sender: Sender | None, redelivered: bool
    ) -> None:
        left = length_hint(pending)
        later = iter(entries[1:])
        try:
            # In a method of its own: CPython does not handle an exception at a `try:` line that is within another.
            self._call_each(entries, later, wire, pending, sender, redelivered)
            if not entries:
                self._unheard += 1
            if length_hint(pending) == left:
                next(pending)
        except BaseException:
            if length_hint(pending) < left and length_hint(later):
                self._interrupted.append((tuple(later), wire, iter((wire,)), sender, redelivered))
            raise

    def _call_each(
        self,
        entries: Sequence[_Entry],
        later: Iterator[_Entry],
        wire: EventMessage,
        pending: _Pending,
        sender: Sender | None,
        redelivered: bool,
    ) -> None:
        # The first listener takes the event when it starts, each of the others itself.
        begin = map(_NOTHING, pending if len(entries) == 1 else chain(islice(pending, 1), later))
        for entry in entries:
            try:
                value = next(self._bind(entry, begin, wire, sender, redelivered))
                if value is not None and isawaitable(value):
                    self._defer(wire.event(sender=sender, redelivered=redelivered), value)
            except Exception as error:
                waits = next(copy(pending), None) is wire or next(copy(later), None) is entry
                if waits and (not entry.repeatable or is_foreign(error)):
                    raise  # The listener has not begun: a signal handler has raised it.
                self._report_error(wire.event(sender=sender, redelivered=redelivered), error)

    def _bind(
        self, entry: _Entry, begin: _Begin, wire: EventMessage, sender: Sender | None, redelivered: bool = False
    ) -> Iterator[Any]:
        """Return an iterator that calls a listener. It takes an element from ``begin`` as that starts, also in C."""
        call: Callable[[], Any]
        if entry.internal:
            call = partial(entry.call, wire, sender, redelivered)
            if entry.repeatable:
                self._begin = begin
                return starmap(call, ((),))
        elif entry.pass_event:
            call = partial(entry.call, wire.event(sender=sender, redelivered=redelivered))
        else:
            call = bind(entry.call, entry.conversion, wire)
        if entry.once and entry.number not in self._entries:
            call = [].clear  # Do nothing: another thread has removed and called it.
        elif entry.once:
            removed = filter(None, map(self._entries.pop, (entry.number,), (None,)))
            begin = map(_FIRST, zip(begin, removed))  # noqa: B905
            self._cache = {}
        return starmap(call, begin)

    def _defer(self, event: Event, value: Awaitable[Any]) -> None:
        """Have an event loop await ``value``. Without a loop, raise TypeError for a coroutine: it would never run."""
        if self._defer_to is not None:
            self._defer_to(event, value)
        elif iscoroutine(value):
            value.close()
            raise TypeError(ASYNC)

    def _call_listeners(self, wire: EventMessage, sender: Sender | None) -> tuple[bool, Any]:
        """Call the listeners of a request. Return whether there is one, and the first value. Raises the first error."""
        entries, only, fits, _ = self._cache.get(wire.name) or self._resolve(wire.name)
        if not entries or wire.name.startswith(RESERVED):
            return False, None
        later: _Calls = entries[1:], wire, iter((wire,)), sender, False
        value: Any = later  # Until the first listener has returned.
        try:
            begun = map(setattr, (self,), ("_begin",), (None,))
            begin = map(_FIRST, zip(self._begin or iter(((),)), begun))  # noqa: B905
            if only is None or wire.kwargs or (fits is not None and not fits(*wire.args)):
                value = next(self._bind(entries[0], begin, wire, sender))
            else:
                value = next(starmap(partial(only, *wire.args), begin))
            if later[0]:
                self._call_all(*later)
        except BaseException:
            if value is not later and later[0] and length_hint(later[2]):
                self._interrupted.append(later)
            raise
        return True, value

    def _resolve(self, name: str) -> _Found:
        cache = self._cache
        if name.startswith(RESERVED):
            handlers = self._router.handlers.get(name, ())
            repeatable = name in self._router.repeatable
            entries = tuple(_Entry(0, name, bool, each, each, True, False, None, True, repeatable) for each in handlers)
        else:
            entries = tuple(entry for entry in tuple(self._entries.values()) if entry.matches(name))
        if len(cache) >= NAMES_CACHED:
            cache.clear()
        first = entries[0] if len(entries) == 1 else None
        only = None if first is None or first.once or first.pass_event else first.call
        handler = None if first is None or not first.repeatable else first.call
        found = cache[name] = _Found(entries, only, first and first.conversion and first.conversion.fits, handler)
        known = bool(entries) or name.startswith(RESERVED) or name in self._logged_names
        if self._unheard_hint and not known and len(self._logged_names) < NAMES_LOGGED:
            self._logged_names.add(name)
            logger.warning("no listener for event %r: %s", name, self._unheard_hint)
        return found

    def _reset_cache(self) -> None:
        self._cache = {}

    def _report_failed_request(self, event: Event, error: Exception) -> None:
        """Report an exception of a listener that the client gets as well: logged at a bounded rate."""
        if self._on_error is not None:
            self._report_error(event, error)
            return
        self._errors += 1
        self._log.warning(event.name, "a listener of request %s raised", shortened(event.name), exc_info=error)

    def _report_error(self, event: Event, error: Exception) -> None:
        """Count the exception of a listener; call on_error, or log it."""
        self._errors += 1
        if self._on_error is None:
            logger.error("a listener of %r raised", event.name, exc_info=error)
            return
        try:
            self._on_error(event, error)
        except Exception:
            logger.exception("on_error raised for %s", shortened(event.name))


def is_foreign(error: Exception) -> bool:
    """Return whether a signal handler has raised an error of code that calls no listener, judged by its class."""
    return threading.current_thread() is threading.main_thread() and not isinstance(error, _OWN_ERRORS)


def check_listener(name: object, listener: object) -> None:
    """Raise TypeError or ValueError unless ``name`` is a valid name or pattern and ``listener`` is callable."""
    if not isinstance(name, str) or not name:
        raise TypeError(f"the name of a listener must be a non-empty str, not {name!r}")
    check_name(name)
    if not callable(listener):
        raise TypeError(f"a listener must be callable, not {listener!r}")
    if isgeneratorfunction(listener) or isasyncgenfunction(listener):
        raise TypeError(f"a listener must not be a generator, which nothing would run: {listener!r}")


def check_name(name: str) -> None:
    """Raise ValueError for a reserved event name, TypeError unless ``name`` is a str."""
    if not isinstance(name, str):
        raise invalid_name_error(name)
    if name.startswith(RESERVED):
        raise ValueError(f"{shortened(name)} is reserved: choose an event name that does not begin with {RESERVED!r}")


def matcher(name: str) -> Callable[[str], object]:
    """Return a predicate of event names: equal to ``name``, or matching it if it is a pattern."""
    return re.compile(fnmatch.translate(name)).match if _WILD.search(name) else name.__eq__
