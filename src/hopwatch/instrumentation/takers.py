"""Who has ever taken an item from a queue that can be full, and how many may hold a semaphore at once?

Both are what a deadlock through a queue or a semaphore needs to be certain of, and neither can be told later. What costs
something is done where a queue or a semaphore is made; a `get` from a queue without a bound costs one attribute.
"""

from __future__ import annotations

import asyncio
import contextlib
import copyreg
import functools
import sys
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from hopwatch.process import failed

if TYPE_CHECKING:
    from hopwatch.instrumentation import Patches

MAX_TAKERS: Final = 64
"""How many living tasks that took from a queue are known; with more, nothing is known."""


def took_from(queue: Any) -> None:
    """Note that the running task took an item from a queue whose takers are known."""
    takers = queue._hopwatch_takers  # noqa: SLF001
    try:
        task = asyncio.current_task()
        takers.add(ref(task))
        if len(takers) > MAX_TAKERS:
            for taker in [each for each in takers if (known := each()) is None or known.done()]:
                takers.discard(taker)
            if len(takers) > MAX_TAKERS:
                queue._hopwatch_takers = None  # noqa: SLF001
    except (
        RuntimeError,
        TypeError,
    ):  # no task runs: a callback or another thread took it, and may do so again
        queue._hopwatch_takers = None  # noqa: SLF001
    except Exception:  # noqa: BLE001
        failed("queue.taker")


def takers_of(queue: object) -> list[Any] | None:
    """Every task that has ever taken an item from a queue and is still there; None where that is not known."""
    takers = getattr(queue, "_hopwatch_takers", None)
    return None if takers is None else [task for each in list(takers) if (task := each()) is not None]


def permits_of(semaphore: object) -> int | None:
    """How many may hold a semaphore at once; None where it was made before anybody watched."""
    permits = getattr(semaphore, "_hopwatch_permits", None)
    return permits if type(permits) is int else None


def _making_queue(original: Any) -> Any:
    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        original(self, *args, **kwargs)
        with contextlib.suppress(Exception):  # a class that takes no attribute but its own
            self._hopwatch_line = None  # see queue_patches
            self._hopwatch_takers = set() if getattr(self, "_maxsize", 0) > 0 else None

    return __init__


def _making_semaphore(original: Any) -> Any:
    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        original(self, *args, **kwargs)
        with contextlib.suppress(Exception):  # as above
            self._hopwatch_permits = self._value

    return __init__


def without_ours(self: Any) -> Any:
    """`__getstate__` of queues and locks: a copy, or what is pickled, has nothing of ours, which could be neither."""
    whole: Any
    if sys.version_info >= (3, 11):
        whole = object.__getstate__(self)
    else:
        slots = {name: getattr(self, name) for name in copyreg._slotnames(type(self)) if hasattr(self, name)}  # type: ignore[attr-defined]  # noqa: SLF001
        whole = (self.__dict__ or None, slots) if slots else self.__dict__ or None
    attributes = whole[0] if type(whole) is tuple else whole
    if not attributes:
        return whole
    theirs = {name: value for name, value in attributes.items() if not name.startswith("_hopwatch_")}
    return (theirs, whole[1]) if type(whole) is tuple else theirs


def instrument(patches: Patches) -> None:
    """Replace what makes a queue and a semaphore."""
    for owner in (asyncio.Queue, asyncio.Lock, asyncio.Semaphore):
        if getattr(owner, "__getstate__", None) is getattr(
            object, "__getstate__", None
        ):  # there from 3.11 on
            patches.add(owner, "__getstate__", without_ours)
    patches.replace(asyncio.Queue, "__init__", _making_queue)
    # CPython keeps attributes fast for all instances of a class if they are known before some thirty of these are made.
    asyncio.Queue()
    patches.add(asyncio.Semaphore, "_hopwatch_permits", None)
    if hasattr(asyncio.Semaphore(1), "_value"):
        patches.replace(asyncio.Semaphore, "__init__", _making_semaphore)
