"""Who waits for a lock, for how long, and who holds it? `asyncio`'s Lock, Semaphore, Condition, Event and Barrier.

What is taken without waiting costs a note on the lock of who took it; only a wait is an entry.
"""

from __future__ import annotations

import asyncio
import functools
from asyncio import current_task
from collections import deque
from time import monotonic_ns
from typing import TYPE_CHECKING, Any
from weakref import ref

from hopwatch import attributes as names
from hopwatch.process import current, failed

if TYPE_CHECKING:
    from hopwatch.instrument import Patches
    from hopwatch.ledger import Entry

_get = current.get
holds: deque[int] = deque(maxlen=512)
"""How long locks were held lately, in nanoseconds, for a histogram."""


def _acquiring(original: Any) -> Any:
    """`Lock.acquire`: a plain function that hands on the coroutine, for a wrapping coroutine would cost twice as much."""

    @functools.wraps(original)
    def acquire(self: Any) -> Any:
        hop = _get()
        if hop is None:
            return original(self)
        if self._locked or self._waiters:
            return _wait(original, self, hop, "Lock", hold=True)
        self._hopwatch_held = (ref(current_task()), monotonic_ns())
        return original(self)

    return acquire


def _releasing(original: Any) -> Any:
    @functools.wraps(original)
    def release(self: Any) -> Any:
        held = self._hopwatch_held
        if held is None:
            return original(self)
        original(self)
        self._hopwatch_held = None
        holds.append(monotonic_ns() - held[1])
        return None

    return release


def _acquiring_semaphore(original: Any) -> Any:
    @functools.wraps(original)
    def acquire(self: Any) -> Any:
        hop = _get()
        if hop is None:
            return original(self)
        if self.locked():
            return _wait(original, self, hop, "Semaphore", hold=True, many=True)
        _hold_one(self)
        return original(self)

    return acquire


def _hold_one(semaphore: Any) -> None:
    held = semaphore._hopwatch_held  # noqa: SLF001
    if held is None:
        held = semaphore._hopwatch_held = {}  # noqa: SLF001
    task = current_task()
    if len(held) < 64:
        held[id(task)] = (ref(task), monotonic_ns())


def _releasing_semaphore(original: Any) -> Any:
    @functools.wraps(original)
    def release(self: Any) -> Any:
        held = self._hopwatch_held
        if held:
            try:
                taken = held.pop(id(current_task()), None)
                # Released by another task than took it: the one that has held it longest is the best guess.
                if taken is None and held:
                    taken = held.pop(next(iter(held)))
                if taken is not None:
                    holds.append(monotonic_ns() - taken[1])
            except Exception:  # noqa: BLE001 - a semaphore may be released where no task runs
                failed("semaphore.release")
        return original(self)

    return release


def _waiting(kind: str, ready: Any) -> Any:
    """`wait` of an Event, Condition or Barrier: an entry while it does not come back at once."""

    def make(original: Any) -> Any:
        @functools.wraps(original)
        def wait(self: Any) -> Any:
            hop = _get()
            if hop is None or ready(self):
                return original(self)
            return _wait(original, self, hop, kind, hold=False)

        return wait

    return make


async def _wait(original: Any, lock: Any, hop: Entry, kind: str, *, hold: bool, many: bool = False) -> Any:
    entry = _open(lock, hop, kind)
    try:
        result = await original(lock)
    except asyncio.CancelledError:
        if entry is not None:
            entry.finish("cancelled")
        raise
    except BaseException as error:
        if entry is not None:
            entry.finish("failed", type(error).__name__)
        raise
    if entry is not None:
        entry.finish()
    if hold:
        try:
            if many:
                _hold_one(lock)
            else:
                lock._hopwatch_held = (ref(current_task()), monotonic_ns())  # noqa: SLF001
        except Exception:  # noqa: BLE001
            failed("lock.hold")
    return result


def _open(lock: Any, hop: Entry, kind: str) -> Entry | None:
    try:
        task = current_task()

        def prepare(entry: Entry) -> None:
            entry.runner = ref(task) if task is not None else None
            entry.attributes = {names.LOCK_NAME: f"{kind} {id(lock):#x}"}

        return hop.ledger.open("lock", f"wait for {kind}", hop, prepare=prepare)
    except Exception:  # noqa: BLE001
        failed("lock.wait")
        return None


def instrument(patches: Patches) -> None:
    """Replace the methods that wait and those that let go."""
    probe = asyncio.Lock.__new__(asyncio.Lock)
    asyncio.Lock.__init__(probe)
    if hasattr(probe, "_locked") and hasattr(probe, "_waiters"):  # both since 3.4; the short path reads them
        patches.add(asyncio.Lock, "_hopwatch_held", None)
        patches.replace(asyncio.Lock, "acquire", _acquiring)
        patches.replace(asyncio.Lock, "release", _releasing)
    patches.add(asyncio.Semaphore, "_hopwatch_held", None)
    patches.replace(asyncio.Semaphore, "acquire", _acquiring_semaphore)
    patches.replace(asyncio.Semaphore, "release", _releasing_semaphore)
    patches.replace(asyncio.Event, "wait", _waiting("Event", lambda event: event.is_set()))
    patches.replace(asyncio.Condition, "wait", _waiting("Condition", lambda _: False))
    if hasattr(asyncio, "Barrier"):
        patches.replace(asyncio.Barrier, "wait", _waiting("Barrier", lambda _: False))
