"""What can an application ask or declare? To be instrumented, a cascade of its own, the current hop, what is pending, service loops."""

from __future__ import annotations

import functools
import inspect
from asyncio import CancelledError, current_task
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, TypeVar, overload
from weakref import ref

from hopwatch import process as hopwatch_process
from hopwatch.ledger import Entry
from hopwatch.process import current as _current
from hopwatch.process import failed, logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from typing_extensions import Self

    from hopwatch.ledger import Note

F = TypeVar("F", bound="Callable[..., Any]")


@dataclass(frozen=True)
class Pending:
    """One unit of work that this process has not ended.

    Attributes:
        kind: `request`, `execution`, `send`, `push`, `webhook`, `task`, `event` or `lock`; `service` for a service loop whose
            owner has ended, which is no cascade's work and will never end by itself.
        name: what it is called. Items in queues that are only counted are one `event` for each hop.
        cascade: 32 hex digits; that of the hop that it counts on, where it is not visible itself.
        hop: 16 hex digits, or None where it is not visible outside this process.
        started: when it began; of items that are only counted, when their hop did; of a `service`, when its owner ended.
        done: whether its own work is over, and only what it started goes on.
        waits_on: what it waits on, as in the collector's `waits_on` and with the seconds that a wait lasts still (`left`), or
            None where that is not known.
        location: `file:line function`: of an execution where it is defined, of a task where it was made, or None.
        owner: of a `service`, who its owner was and how it ended; else None.
    """

    kind: str
    name: str
    cascade: str
    hop: str | None
    started: datetime
    done: bool
    waits_on: dict[str, Any] | None
    location: str | None = None
    owner: str | None = None

    @property
    def age(self) -> float:
        """Seconds since it began."""
        return (datetime.now(tz=timezone.utc) - self.started).total_seconds()


@dataclass(frozen=True)
class Hop:
    """The hop that the running code works for: `cascade` (32 hex digits), `id` (16), `kind` and `name`."""

    cascade: str
    id: str
    kind: str
    name: str


def instrument(url: str | None = None, *, service_name: str | None = None) -> None:
    """Put hopwatch in front of this program, which was started without a launcher.

    Call it once, early. It does not matter whether the libraries are imported before or after, and it imports none of them. A second call changes
    nothing, nor does one in a program that `hopwatch run` or `opentelemetry-instrument` has started. `OTEL_PYTHON_DISABLED_INSTRUMENTATIONS` is obeyed.
    In a sub-interpreter it does nothing, and logs a warning.

    Args:
        url: the collector, as `http://127.0.0.1:4318`. Then OpenTelemetry's SDK is set up, with exporters over HTTP to it and the token that
            `HOPWATCH_TOKEN_FILE` names. A program that has set up the SDK already keeps its own, and a warning is logged. None: records go wherever
            the program itself has its providers send them; these may also be set later.
        service_name: what this agent is called, with `url`. By default that of `OTEL_SERVICE_NAME` or `OTEL_RESOURCE_ATTRIBUTES`, or else of its
            script or module.

    Raises:
        ValueError: the URL or the name is none, or the token's file cannot be used.
        ModuleNotFoundError: a URL is given, and there are no exporters: they come with `pip install 'hopwatch[otlp]'`.
    """
    from hopwatch import starting  # noqa: PLC0415 - importing hopwatch costs nothing before

    starting.instrument(url, service_name)


_told_of: set[str] = set()


def _tell_what_is_uncounted(use: str) -> None:
    """Log once for each use that an answer of ours is not all of it here."""
    lacking = hopwatch_process.uncounted()
    if lacking and use not in _told_of:
        _told_of.add(use)
        logger.warning(
            "hopwatch: %s is used where not in place: %s. What that counts is not in the account. "
            "Start the program with `hopwatch run` or `opentelemetry-instrument`, or call hopwatch.instrument() first.",
            use,
            lacking.replace(",", ", "),
        )


class cascade:  # noqa: N801 - used as a function: `with hopwatch.cascade("nightly"):`
    """Declare a root: what is done inside, here and at every agent that it calls, is one cascade.

    Use it with `with` or `async with`. Inside another hop it is a hop of that cascade.

    Args:
        name: what the root is called.

    Attributes:
        id: the cascade's id (32 hex digits), once entered; empty where the ledger is full.
    """

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or not name:
            raise ValueError(f"a cascade's name is a text of at least one character, not {name!r}")
        self._name = name
        self._entry: Entry | None = None
        self._within: Any = None
        self.id = ""

    def __enter__(self) -> Self:
        try:
            if hopwatch_process.refused_here():
                return self
            _tell_what_is_uncounted("hopwatch.cascade")
            from hopwatch.telemetry import begin, within  # noqa: PLC0415 - importing hopwatch costs nothing before

            try:
                task = current_task()
            except RuntimeError:
                task = None
            parent = _current.get()
            runner = ref(task) if task is not None else None
            self._entry = begin(hopwatch_process.here(), "task", self._name, parent, runner=runner)
            if self._entry is not None:
                if not self._entry.visible:
                    self._entry.ledger.reveal(self._entry)
                self.id = self._entry.cascade
                self._within = within(self._entry)
                self._within.__enter__()
        except Exception:  # noqa: BLE001 - the application goes on without us
            failed("cascade.enter")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._within is not None:
                self._within.__exit__(None, None, None)
            if self._entry is not None:
                if error is None:
                    self._entry.finish()
                elif isinstance(error, CancelledError):
                    self._entry.finish("cancelled")
                else:
                    self._entry.finish("failed", type(error).__name__)
        except Exception:  # noqa: BLE001
            failed("cascade.exit")

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)


def current() -> Hop | None:
    """The hop that the running code works for, or None outside any."""
    entry = _current.get()
    return None if entry is None else Hop(entry.cascade, entry.id, entry.kind, entry.name)


def pending(cascade: str | None = None) -> list[Pending]:
    """What this process has not ended, oldest first; service loops are not among it, but for those whose owner has ended.

    Args:
        cascade: only what belongs to this cascade (32 hex digits).
    """
    _tell_what_is_uncounted("hopwatch.pending")
    ledger = hopwatch_process.here().ledger
    entries = sorted([*ledger.open_hops(), *ledger.invisible()], key=lambda each: each.started)
    return [*_as_pending(entries, cascade), *(_orphans() if cascade is None else ())]


def _orphans() -> list[Pending]:
    from hopwatch import hop_waits, orphans, waits  # noqa: PLC0415

    out = []
    for loop in orphans.now():
        started = datetime.fromtimestamp(loop.since / 1e9, tz=timezone.utc)
        waiting = waits.with_times(hop_waits.look_at(loop.task).as_dict())
        out.append(Pending("service", loop.name, "", None, started, False, waiting, owner=loop.owner))
    return out


def _as_pending(entries: Iterable[Entry | Note], cascade: str | None) -> list[Pending]:
    from hopwatch import exits  # noqa: PLC0415

    out: list[Pending] = []
    for entry in entries:
        # What is not visible itself belongs to the cascade of the hop that it counts on.
        hop = entry if isinstance(entry, Entry) and entry.visible else entry.parent
        of = hop.cascade if hop is not None else ""
        if cascade is not None and of != cascade:
            continue
        started = datetime.fromtimestamp(entry.started / 1e9, tz=timezone.utc)
        out.append(
            Pending(
                entry.kind,
                entry.name,
                of,
                hop.id if hop is not None and hop is entry else None,
                started,
                entry.done is not None,
                exits.sample(entry),
                exits.location_of(entry),
            )
        )
        if hop is not None and hop is entry and hop.held > 0:
            told = exits.held_told(hop)
            if told is not None:
                out.append(Pending("event", exits.held_by(hop), of, None, started, False, told))
    return out


async def drain(timeout: float | None = None, *, cascade: str | None = None) -> list[Pending]:
    """Wait until this process has nothing pending any more, also of what begins meanwhile.

    What the caller itself is in the middle of does not count: the hop that it works for, the hops above that one, and its own
    task. Service loops do not count either.

    Args:
        timeout: seconds; None for as long as it takes.
        cascade: only what belongs to this cascade (32 hex digits).

    Returns:
        What is left when the time is over, oldest first; nothing where all of it has ended.

    Raises:
        ValueError: the timeout is negative.
    """
    if timeout is not None and not timeout >= 0:
        raise ValueError(f"the timeout is {timeout!r}; it is 0 seconds or more, or None")
    _tell_what_is_uncounted("hopwatch.drain")
    from hopwatch import draining  # noqa: PLC0415

    found = await draining.drain(timeout, cascade)
    return _as_pending(sorted(found, key=lambda each: each.started), cascade)


class _Service:
    """Tasks made inside the `with` block are service loops."""

    def __init__(self) -> None:
        self._token: Any = None
        self._mark: Any = None

    def __enter__(self) -> Self:
        self._token = _current.set(None)
        self._mark = hopwatch_process.unwatched.set(True)
        return self

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)
        hopwatch_process.unwatched.reset(self._mark)


@overload
def service() -> _Service: ...
@overload
def service(function: F) -> F: ...
def service(function: F | None = None) -> F | _Service:
    """Declare a service loop: a task that lives as long as its owner, and is not work of the cascade that started it.

    As a decorator, of a coroutine function that is such a loop; or `with hopwatch.service():`, for the tasks that are
    made inside. Without it a loop that some request started holds that request's cascade open, for doubt counts as
    work.

    Raises:
        TypeError: what is decorated is no function.
    """
    if function is None:
        return _Service()
    target: Any = function
    while isinstance(target, functools.partial):
        target = target.func
    target = inspect.unwrap(target)
    code = getattr(target, "__code__", None)
    if code is None:
        raise TypeError(f"hopwatch.service decorates a coroutine function, not {function!r}")
    from hopwatch.instrumentation import service as table  # noqa: PLC0415

    table.declare(code)
    return function
