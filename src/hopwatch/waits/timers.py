"""Which timer ends a wait, and when?"""

from __future__ import annotations

import asyncio
import functools
import gc
import time
import types
from collections import deque
from contextvars import Context
from operator import is_
from typing import TYPE_CHECKING, Any, Final

from hopwatch.waits.objects import (
    FUTURES,
    PLAIN,
    TIMEOUT,
    cells_of,
    content,
    field_of,
    is_a,
    is_chain_link,
    module_of,
    mro,
    namespace_of,
    raw_referents,
    referents,
    type_name,
)
from hopwatch.waits.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from hopwatch.waits.chain import Frame

REACHED: Final = 256
"""How many objects are looked at for a deadline that hides behind context managers."""
INSIDE: Final = 256
"""How large a container may be, that a timer's function closes over, for what is in it to be looked at."""
_CONTAINERS: Final = (list, tuple, set, dict, deque)
TIMERS: Final = 1000
"""How many timers a loop may have for them to be searched."""


class Timers:
    """What the timers and the ready callbacks of each loop act on: read once, asked by many questions.

    Make one a tick, hand it to every `of_task` of that tick, and drop it, for it keeps the handles that it has read. A
    timer that is made meanwhile is seen; one that fires meanwhile counts as about to fire. It is for one thread.
    """

    __slots__ = ("_loops", "shared", "threads")

    def __init__(self) -> None:
        self._loops: dict[int, HandlesOfLoop] = {}
        self.threads = Threads()
        """What the threads do, read once as well."""
        self.shared: dict[str, Any] = {}
        """What else who asks wants to find out only once a tick."""

    def of(self, loop: object) -> HandlesOfLoop:
        """Return what is known of a loop's handles; they are read when a loop is first asked for."""
        found = self._loops.get(id(loop))
        if found is None:
            found = self._loops[id(loop)] = HandlesOfLoop(loop)
        return found


class HandlesOfLoop:
    """The handles of one loop, by the objects that they act on."""

    __slots__ = (
        "_acting",
        "_closures",
        "_known",
        "_last",
        "_loop",
        "_names",
        "_uvloop",
        "_whole",
        "complete",
    )

    def __init__(self, loop: object) -> None:
        self._loop = loop  # kept, as are the handles, so that no id becomes another's
        self._known: dict[int, Any] = {}
        self._last: dict[str, list[Any]] = {}
        self._acting: dict[int, list[Any]] = {}
        self._names = [name for name in ("_ready", "_scheduled") if field_of(loop, name) is not None]
        self._whole = len(self._names) == 2 and module_of(type(loop)).startswith("asyncio.")
        self._uvloop = not self._names and module_of(type(loop)).partition(".")[0] == "uvloop"
        self._closures: list[Any] = []  # what these act on may change at any time
        self.complete = False
        """Whether every timer of the loop has been read: it is asyncio's own, and has not too many."""
        self.read()

    def read(self) -> None:
        """Read the handles that have come since the last time."""
        complete = self._whole
        if len(self._known) > 4 * TIMERS:
            for kept in (self._known, self._last, self._acting, self._closures):
                kept.clear()
        for name, handles in self._kept():
            if type(handles) not in (list, deque, set) or len(handles) > TIMERS:
                complete = False
                continue
            now = list(handles)  # one step under the GIL
            last = self._last.get(name, [])
            if len(now) == len(last) and all(map(is_, now, last)):
                continue
            self._last[name] = now
            for handle in now:
                if id(handle) not in self._known:
                    self._known[id(handle)] = handle
                    self._learn(handle)
        self.complete = complete

    def _kept(self) -> list[tuple[str, Any]]:
        """Where the loop has its handles. uvloop shows only its collector of garbage, and that without names."""
        if not self._uvloop:
            return [(name, field_of(self._loop, name)) for name in self._names]
        return [
            (str(at), thing)
            for at, thing in enumerate(gc.get_referents(self._loop))
            if type(thing) in (set, deque) and 0 < len(thing) <= TIMERS and _is_of_uvloop(thing)
        ]

    def _learn(self, handle: Any) -> None:
        acted_on, fixed = _acted_on(handle)
        if not fixed:
            self._closures.append(handle)
            return
        acting = self._acting
        for one in acted_on:
            if one in acting:
                acting[one].append(handle)
            else:
                acting[one] = [handle]

    def ending(self, wanted: Collection[int], but: Collection[int] = ()) -> tuple[bool, float | None]:
        """Tell whether a handle is about to act on an object with one of these ids, and when the first timer does.

        Handles with an id in `but` do not count.
        """
        found = [
            handle for one in wanted for handle in self._acting.get(one, ()) if not _is_cancelled(handle)
        ]
        found.extend(
            handle for handle in self._closures if any(one in wanted for one in _acted_on(handle)[0])
        )
        if but:
            found = [handle for handle in found if id(handle) not in but]
        times = [when for handle in found if (when := _when(handle)) is not None]
        return bool(found), min(times, default=None)


WRAPPING: Final[set[type]] = set()
"""Types of callables that stand for another one, which they have as `callback`: what a timer was given is inside."""
_UVLOOP: Final = "uvloop.loop"

# Methods of C that know their class are of a type below the second.
_BOUND: Final = (types.MethodType, types.BuiltinMethodType)


def _acted_on(handle: Any) -> tuple[list[int], bool]:
    """Return the ids of what a callback of the loop acts on, as far as one step shows, and whether that is for good."""
    callback, args = _called_by(handle)
    cls = type(callback)
    if cls in WRAPPING:
        callback = callback.callback
        cls = type(callback)
    if cls is functools.partial:
        args = (*callback.args, *(args or ()))
        callback = callback.func
        cls = type(callback)
    things: list[Any] = []
    if issubclass(cls, _BOUND):
        things.append(callback.__self__)
    elif cls is types.FunctionType and callback.__closure__:
        things = cells_of(callback)
        # `lambda: tasks[0].cancel()`
        things += [
            one
            for each in things
            if type(each) in _CONTAINERS and len(each) <= INSIDE
            for one in gc.get_referents(each)
        ]
    fixed = not things or cls is not types.FunctionType
    if args:
        things.extend(args[:8])
    found = []
    for thing in things:
        cls = type(thing)
        if issubclass(cls, _BOUND):
            found.append(id(thing.__self__))
        elif id(cls) not in PLAIN:
            found.append(id(thing))
            if type_name(cls) in _DEADLINES and (fields := _fields_of_deadline(thing)) is not None:
                found.append(id(field_of(thing, fields[1])))
    return found, fixed


def _called_by(handle: Any) -> tuple[Any, tuple[Any, ...] | None]:
    """Return what a handle will call, and with what; None and None where it will not."""
    cls = type(handle)
    if cls is asyncio.TimerHandle or cls is asyncio.Handle:
        return (None, None) if handle._cancelled else (handle._callback, handle._args)  # noqa: SLF001
    if module_of(cls) != _UVLOOP:
        return None, None
    callback, args = None, None
    for thing in gc.get_referents(
        handle
    ):  # in no order: beside these two the loop, its own timer, the context
        cls = type(thing)
        if cls is tuple:
            args = args or thing
        elif cls is not Context and callback is None and callable(thing) and module_of(cls) != _UVLOOP:
            callback = thing
    return callback, args


def _is_cancelled(handle: Any) -> bool:
    return bool(handle.cancelled())  # of asyncio's handles and of uvloop's, which are all that are known


def _is_of_uvloop(handles: Any) -> bool:
    try:
        return module_of(type(next(iter(handles)))) == _UVLOOP
    except (StopIteration, RuntimeError):  # another thread took the last one just now
        return False


def _when(handle: object) -> float | None:
    """Return when a timer of the loop will fire, on the loop's clock; None if it is no timer or will not."""
    cls = type(handle)
    if cls is asyncio.TimerHandle:
        # Not in the heap any more: it has fired. `wait_for` keeps its handle while it waits for what it cancelled.
        return None if handle._cancelled or not handle._scheduled else handle._when  # type: ignore[attr-defined]  # noqa: SLF001
    if type_name(cls) == "TimerHandle" and module_of(cls) == _UVLOOP:
        return None if handle.cancelled() else handle.when()  # type: ignore[attr-defined]
    return None


_DEADLINES: Final = frozenset({"CancelScope", "Timeout"})
_TIMERS_BY_NAME: Final = frozenset({"TimerHandle", *_DEADLINES})


def _fields_of_deadline(thing: object) -> tuple[str, str, str] | None:
    """Return the names under which a timeout keeps its timer, the task that it cancels, and when."""
    cls = type(thing)
    if cls is TIMEOUT:  # its timer is dropped when it fires and when the block is left
        return "_timeout_handler", "_task", "_when"
    if type_name(cls) == "CancelScope" and module_of(cls) == "anyio._backends._asyncio":
        return "_timeout_handle", "_host_task", "_deadline"
    if type_name(cls) == "Timeout" and module_of(cls) == "async_timeout":
        return "_timeout_handler", "_task", "_deadline"
    return None


def _deadline(thing: object, task: object) -> float | None:
    """Return when this object cancels `task`, on the loop's clock; None if it does not."""
    fields = _fields_of_deadline(thing)
    if fields is None:
        return None
    timer, owner, when = fields
    if field_of(thing, owner) is not task or field_of(thing, timer) is None:
        return None
    found = field_of(thing, when)
    return float(found) if type(found) in (int, float) else None


def unix(when: float) -> float | None:
    """Return a time of the loop's clock in Unix seconds, None where it cannot be one."""
    # The clock of asyncio's and uvloop's loops is `time.monotonic`; a loop with another would have to be asked, and
    # that is code of the application.
    left = when - time.monotonic()
    # To a hundredth: the two clocks are read one after the other, and what has not changed has to read the same.
    return round(time.time() + left, 2) if -3600 < left < 1e9 else None


def clock(until: float | None) -> str:
    """Return the words for a time in Unix seconds."""
    if until is None:
        return ""
    form = "%H:%M:%SZ" if until - time.time() < 43_200 else "%Y-%m-%dT%H:%M:%SZ"
    return f" until {time.strftime(form, time.gmtime(until))}"


def delay_of(frame: Frame) -> float | None:
    """Return the seconds that `asyncio.sleep` was called with: its first local that is a number."""
    return next(
        (float(thing) for thing in raw_referents(frame.awaitable) if type(thing) in (int, float)), None
    )


def with_times(told: dict[str, Any], now: float | None = None) -> dict[str, Any]:
    """Return a wait as it was told (`Wait.as_dict`) with how long it lasts still, and has lasted.

    Apart from that form, for these change all the time: `left` beside each `until`, and `age` beside each `since`.

    Args:
        told: The wait.
        now: Unix seconds; by default the present.
    """
    now = time.time() if now is None else now
    out = dict(told)
    if "until" in told:
        out["left"] = round(max(0.0, told["until"] - now), 1)
    if "send" in told:
        out["send"] = {**told["send"], "age": round(max(0.0, now - told["send"]["since"]), 1)}
    if "of" in told:
        out["of"] = [with_times(each, now) for each in told["of"]]
    return out


def when_of(handle: object) -> float | None:
    """Return when a timer of a loop will fire, in Unix seconds; None if it is no timer or will not."""
    when = _when(handle)
    return None if when is None else unix(when)


def handles_in(frame: Frame) -> list[int]:
    """Return the ids of the timers of a `wait_for`: its own, or that of the timeout that it is in the middle of."""
    found = []
    for thing, name in _timers_of(frame):
        if name == "TimerHandle":
            found.append(id(thing))
        elif (fields := _fields_of_deadline(thing)) is not None:
            found.append(id(field_of(thing, fields[0])))
    return found


def _timers_of(frame: Frame) -> Iterator[tuple[Any, str]]:
    """What a frame keeps in its locals or on its stack and is called as a timer or a timeout is, with that name."""
    for thing in raw_referents(frame.awaitable):
        cls = type(thing)
        if cls is types.CellType:
            thing = content(thing)  # noqa: PLW2901
            cls = type(thing)
        if cls is types.MethodType:
            thing = thing.__self__  # a context manager's `__aexit__`, waiting on the stack  # noqa: PLW2901
            cls = type(thing)
        if id(cls) not in PLAIN and (name := type_name(cls)) in _TIMERS_BY_NAME:
            yield thing, name


def timer_in(frames: list[Frame], task: object) -> float | None:
    """Return the first deadline that the frames of a chain keep in their locals or on their stack."""
    first: float | None = None
    for index, frame in enumerate(frames):
        if (
            frame.name == "wait_for"
            and index + 1 < len(frames)
            and frames[index + 1].name == "_cancel_and_wait"
        ):
            continue  # 3.10 and 3.11: its time is over. uvloop's handle does not tell that it has fired
        for thing, _ in _timers_of(frame):
            when = _when(thing)
            if when is None:
                when = _deadline(thing, task)
            if when is not None and (first is None or when < first):
                first = when
    return first


_NOT_ENTERED: Final = (
    type, types.ModuleType, types.CodeType, types.BuiltinFunctionType, str, bytes, int, float, type(None),
    asyncio.AbstractEventLoop, asyncio.Lock, asyncio.Semaphore, asyncio.Condition, *FUTURES,
)  # fmt: skip


def _is_manager(cls: type) -> bool:
    return any("__exit__" in space or "__aexit__" in space for space in map(namespace_of, mro(cls)))


def hidden_timer(frames: list[Frame], task: object) -> float | None:
    """Return a deadline that lies behind the context managers of a chain, for loops that do not show their timers.

    `async with limited():` leaves on the stack an `__aexit__` whose object has a generator whose stack has the timeout;
    an exit stack has a deque of them. What is found is sure: a timeout knows its task.
    """
    waiting: deque[tuple[Any, int]] = deque()
    for frame in frames:
        for thing in referents(frame.awaitable):
            # A bound `__aexit__`; from 3.14 the object itself.
            manager = thing.__self__ if type(thing) is types.MethodType else thing
            if _is_manager(type(manager)):
                waiting.append((manager, 0))
    seen: set[int] = set()
    while waiting and len(seen) < REACHED:
        thing, depth = waiting.popleft()
        if id(thing) in seen or is_a(thing, _NOT_ENTERED):
            continue
        seen.add(id(thing))
        when = _deadline(thing, task)
        if when is not None:
            return when
        if depth < 12 and not (type(thing) is dict and len(thing) > 64):
            if type(thing) is types.FunctionType:
                inside = cells_of(thing)
            else:
                inside = raw_referents(thing) if is_chain_link(type(thing)) else gc.get_referents(thing)
            waiting.extend((found, depth + 1) for found in inside[:64])
    return None
