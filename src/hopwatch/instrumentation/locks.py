"""Who waits for a lock, for how long, and who holds it? `asyncio`'s Lock, Semaphore, Condition, Event and Barrier.

What is taken without waiting costs a note on the lock of who took it; only a wait is an entry. How long a lock is held
is measured with detail `all` only: a second clock reading and a wrapped `release` would cost as much as the lock itself.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import sys
from collections import deque
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from hopwatch import attributes as names
from hopwatch import process as hopwatch_process
from hopwatch.process import current, failed

if TYPE_CHECKING:
    from hopwatch.instrumentation import Patches
    from hopwatch.ledger import Entry, Outcome

_get = current.get


def _running_task_before_312() -> Any:
    """The running task. `asyncio.current_task` asks the kernel for the process id each time, until Python 3.12."""
    running = asyncio.tasks._current_tasks  # type: ignore[attr-defined]  # noqa: SLF001
    if len(running) == 1:
        for task in running.values():
            return task
    return asyncio.current_task()


current_task = asyncio.current_task if sys.version_info >= (3, 12) else _running_task_before_312
MAX_HOLDERS: Final = 64
"""How many of a semaphore's holders are known."""
_numbers = itertools.count()
holds: deque[int] = deque(maxlen=512)
"""How long locks were held lately, in nanoseconds, for a histogram."""


def _acquiring(original: Any) -> Any:
    """`Lock.acquire`: a plain function that hands on the coroutine, for a wrapping coroutine would cost twice as much."""

    @functools.wraps(original)
    def acquire(self: Any) -> Any:
        hop = _get()
        if hop is None:
            try:
                self._hopwatch_held = None  # to look first would cost ten times as much where it is not there
            except AttributeError:  # a class that takes no attribute but its own, as below
                pass
            except Exception:  # noqa: BLE001
                failed("lock.acquire")
            return original(self)
        try:
            if self._locked or self._waiters:
                return _wait(original, self, hop, "Lock", _running())
            # Who takes it without waiting is noted before the coroutine runs, which it does at once where it is awaited.
            self._hopwatch_held = ref(current_task())
        except (RuntimeError, TypeError):  # no task runs: whoever awaits it takes it
            vars(self).pop("_hopwatch_held", None)
        except AttributeError:
            pass
        except Exception:  # noqa: BLE001
            failed("lock.acquire")
        return original(self)

    return acquire


def _acquiring_timed(original: Any) -> Any:
    """The same with the time, for `release` to say how long the lock was held: detail `all`."""
    noting = _acquiring(original)

    @functools.wraps(original)
    def acquire(self: Any) -> Any:
        if _get() is None:
            self._hopwatch_since = 0
        elif not (self._locked or self._waiters):
            self._hopwatch_since = monotonic_ns()
        return noting(self)

    return acquire


def _releasing_timed(original: Any) -> Any:
    @functools.wraps(original)
    def release(self: Any) -> Any:
        since = self._hopwatch_since
        original(self)
        if since:
            self._hopwatch_since = 0
            holds.append(monotonic_ns() - since)

    return release


def _acquiring_semaphore(original: Any) -> Any:
    @functools.wraps(original)
    def acquire(self: Any) -> Any:
        hop = _get()
        if hop is None:
            return original(self)
        try:
            if self.locked():
                return _wait(original, self, hop, "Semaphore", _running(), many=True)
            _hold_one(self, _running())
        except Exception:  # noqa: BLE001
            failed("semaphore.acquire")
        return original(self)

    return acquire


def _running() -> Any:
    """Weak reference to the running task, or None where no task runs."""
    try:
        task = current_task()
    except RuntimeError:
        return None
    return None if task is None else ref(task)


def _hold_one(semaphore: Any, holder: Any) -> None:
    if holder is None:
        return
    held = semaphore._hopwatch_held  # noqa: SLF001
    if held is None:
        held = {}
        try:
            semaphore._hopwatch_held = held  # noqa: SLF001
        except AttributeError:
            return
    if len(held) < MAX_HOLDERS:
        held[next(_numbers)] = holder


def _releasing_semaphore(original: Any) -> Any:
    @functools.wraps(original)
    def release(self: Any) -> Any:
        held = self._hopwatch_held
        if held:
            try:
                task = _running()
                for key, holder in held.items():
                    if holder is task:  # there is one weak reference to a task without a callback
                        del held[key]
                        break
                else:
                    # Released by another task than took it: the one that has held it longest is the best guess.
                    held.pop(next(iter(held)))
            except Exception:  # noqa: BLE001
                failed("semaphore.release")
        return original(self)

    return release


def _waiting(kind: str, ready: Any) -> Any:
    """`wait` of an Event, Condition or Barrier: an entry while it does not come back at once."""

    def make(original: Any) -> Any:
        @functools.wraps(original)
        def wait(self: Any) -> Any:
            hop = _get()
            try:
                if hop is not None and not ready(self):
                    return _wait(original, self, hop, kind, None)
            except Exception:  # noqa: BLE001
                failed("lock.wait")
            return original(self)

        return wait

    return make


def _wait(original: Any, lock: Any, hop: Entry, kind: str, holder: Any, *, many: bool = False) -> Any:
    """The coroutine of a wait that counts; it goes by the name of what it stands for."""
    coro: Any = _waited_for(original, lock, hop, kind, holder, many)
    coro.__name__, coro.__qualname__ = original.__name__, original.__qualname__
    return coro


async def _waited_for(original: Any, lock: Any, hop: Entry, kind: str, holder: Any, many: bool) -> Any:
    entry = _open(lock, hop, kind)
    try:
        result = await original(lock)
    except (asyncio.CancelledError, GeneratorExit):
        _close(entry, "cancelled", None)
        raise
    except BaseException as error:
        _close(entry, "failed", type(error).__name__)
        raise
    _close(entry, "finished", None)
    try:
        # Who asked for it holds it, also where wait_for (before Python 3.12) acquires it by a task of its own.
        if many:
            _hold_one(lock, holder)
        elif kind == "Lock":
            lock._hopwatch_held = holder  # noqa: SLF001
            lock._hopwatch_since = monotonic_ns()  # noqa: SLF001
    except AttributeError:
        pass
    except Exception:  # noqa: BLE001
        failed("lock.hold")
    return result


def _close(entry: Entry | None, outcome: Outcome, reason: str | None) -> None:
    if entry is None:
        return
    try:
        entry.finish(outcome, reason)
    except Exception:  # noqa: BLE001
        failed("lock.wait")


def _open(lock: Any, hop: Entry, kind: str) -> Entry | None:
    try:
        task = current_task()

        def prepare(entry: Entry) -> None:
            entry.runner = ref(task) if task is not None else None
            entry.attributes = {names.LOCK_NAME: f"{kind} {id(lock):#x}"}

        return hop.ledger.open("lock", f"wait for {kind}", hop, prepare=prepare)
    except Exception:  # noqa: BLE001
        failed("lock.wait")
        return None  # the task that waits is counted by itself


def look(_: int) -> None:
    """Put how long locks were held into a histogram. Called by the ticker."""
    histogram = hopwatch_process.here().telemetry.lock_hold
    while holds:
        histogram.record(holds.popleft() / 1e9)


def instrument(patches: Patches, *, timed: bool) -> None:
    """Replace the methods that wait, and with `timed` (detail `all`) the one that lets go of a lock."""
    probe = asyncio.Lock.__new__(asyncio.Lock)
    asyncio.Lock.__init__(probe)
    if hasattr(probe, "_locked") and hasattr(probe, "_waiters"):  # both since 3.4; the short path reads them
        probe._hopwatch_held = None  # type: ignore[attr-defined]  # noqa: SLF001 - see takers.instrument
        patches.add(asyncio.Lock, "_hopwatch_since", 0)
        patches.replace(asyncio.Lock, "acquire", _acquiring_timed if timed else _acquiring)
        if timed:
            patches.replace(asyncio.Lock, "release", _releasing_timed)
            hopwatch_process.on_tick(look)
    patches.add(asyncio.Semaphore, "_hopwatch_held", None)
    patches.replace(asyncio.Semaphore, "acquire", _acquiring_semaphore)
    patches.replace(asyncio.Semaphore, "release", _releasing_semaphore)
    patches.replace(asyncio.Event, "wait", _waiting("Event", lambda event: event.is_set()))
    patches.replace(asyncio.Condition, "wait", _waiting("Condition", lambda _: False))
    if hasattr(asyncio, "Barrier"):
        patches.replace(asyncio.Barrier, "wait", _waiting("Barrier", lambda _: False))
