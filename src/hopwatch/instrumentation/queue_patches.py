"""Which methods of `asyncio.Queue` and `culsans.Queue` does every item go through? They are replaced here.

What is known of a queue is an attribute of it and not of its class also where it is None: to read one that the class has too costs as much as
all else that is done here for a queue outside any cascade.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from typing import TYPE_CHECKING, Any

from hopwatch import hop_waits
from hopwatch import process as hopwatch_process
from hopwatch.instrumentation import takers
from hopwatch.instrumentation.queues import (
    IGNORED,
    Line,
    came_back,
    dequeued,
    discard,
    done_quickly,
    done_with,
    empty,
    enqueued,
    failed_to_hold,
    hook_failed,
    ignore,
    is_no_work,
    known_line,
    line_of,
    lines,
    look,
    running_task,
    take_quickly,
    waiting_items,
    what_event_waits_on,
)
from hopwatch.process import current, failed

if TYPE_CHECKING:
    from hopwatch.instrumentation import Patches

_get = current.get


def _putting(original: Any) -> Any:
    @functools.wraps(original)
    def put_nowait(self: Any, item: Any) -> Any:
        try:
            line = self._hopwatch_line
        except AttributeError:
            line = _older(self)
        hop = _get()
        if line is None and (hop is None or (line := _begin(self, item)) is None):
            return original(self, item)
        original(self, item)
        try:
            if hop is not None and line.plain:
                # As `enqueued` and `Ledger.hold` do, without the calls.
                hop.held += 1
                line.inside.append(hop)
                if hop.closed:
                    failed_to_hold(line, self, item, hop)
            else:
                enqueued(line, self, item, hop)
        except Exception:  # noqa: BLE001
            hook_failed("queue.put", self)
        return None

    return put_nowait


def _older(queue: Any) -> Line | None:
    """A queue that was made before it was instrumented gets what it has not, if it takes that."""
    try:
        queue._hopwatch_line = queue._hopwatch_takers = None  # noqa: SLF001
    except Exception:  # noqa: BLE001
        found: Line | None = lines.get(id(queue))
        return found
    return None


def _begin(queue: Any, item: object) -> Line | None:
    try:
        if is_no_work(sys._getframe(2), item):  # noqa: SLF001 - who calls `put_nowait`: once for each queue
            ignore(queue)
            return None
        return line_of(queue)
    except Exception:  # noqa: BLE001
        failed("queue.line")
        return None


def _getting(original: Any) -> Any:
    @functools.wraps(original)
    def get_nowait(self: Any) -> Any:
        item = original(self)
        try:
            if self._hopwatch_takers is not None:
                takers.took_from(self)
            line = self._hopwatch_line
        except AttributeError:
            line = _older(self)
        if line is None:
            return item
        try:
            if line.quick and line.inside:
                inside = line.inside
                hop = inside.popleft()
                if hop is not None and not hop.adopted and hop is _get():
                    # It works for this hop already, and will say when it is done: nothing changes but the count.
                    line.single = hop
                    line.quick = False
                    line.removed += 1
                    return item
                inside.appendleft(hop)
                if hop is not None and take_quickly(line, hop):
                    return item
            dequeued(line, item)
        except Exception:  # noqa: BLE001
            hook_failed("queue.get", self)
        return item

    return get_nowait


def _finishing(original: Any) -> Any:
    @functools.wraps(original)
    def task_done(self: Any) -> Any:
        original(self)
        try:
            line = self._hopwatch_line
        except AttributeError:
            line = _older(self)
        if line is None:
            return None
        try:
            hop = line.single
            if hop is None or line.taken:
                done_with(line)
            elif line.consumer is not None:
                done_quickly(line, hop)
            else:
                line.single = None
                line.quick = True
                hop.held -= 1
                if hop.done is not None and not hop.held:
                    hop.ledger.settle(hop)
        except Exception:  # noqa: BLE001
            hook_failed("queue.task_done", self)
        return None

    return task_done


def _shutting(original: Any) -> Any:
    @functools.wraps(original)
    def shutdown(self: Any, immediate: bool = False) -> Any:
        result = original(self, immediate)
        if immediate:
            try:
                discard(self)
            except Exception:  # noqa: BLE001
                hook_failed("queue.shutdown", self)
        return result

    return shutdown


def instrument(patches: Patches) -> None:
    """Replace the methods of `asyncio.Queue` through which every item goes."""
    hop_waits.explain_event, hop_waits.explain_held = what_event_waits_on, waiting_items
    takers.instrument(patches)
    patches.replace(asyncio.Queue, "put_nowait", _putting)
    patches.replace(asyncio.Queue, "get_nowait", _getting)
    patches.replace(asyncio.Queue, "task_done", _finishing)
    if hasattr(asyncio.Queue, "shutdown"):  # from 3.13
        patches.replace(asyncio.Queue, "shutdown", _shutting)
    hopwatch_process.on_tick(look)


# culsans, whose queues have slots and take no attribute, and whose async methods do not call the plain ones ------------


def instrument_culsans(patches: Patches, queue: Any) -> None:
    """The same on `culsans.Queue`, which a2a-sdk uses before Python 3.13."""
    for name in ("put_nowait", "green_put", "sync_put"):
        if not _goes_through(queue, name, "green_put"):
            patches.replace(queue, name, _putting_culsans)
    for name in ("get_nowait", "green_get", "sync_get"):
        if not _goes_through(queue, name, "green_get"):
            patches.replace(queue, name, _getting_culsans)
    patches.replace(queue, "async_put", _putting_async)
    patches.replace(queue, "async_get", _getting_async)
    patches.replace(queue, "task_done", _finishing_culsans)
    patches.replace(queue, "shutdown", _shutting)
    patches.replace(queue, "clear", _clearing)


def _goes_through(queue: Any, name: str, other: str) -> bool:
    # culsans 0.11 writes sync_put as a call of green_put, and puts a copy of that one's code in its place.
    return other in getattr(getattr(getattr(queue, name, None), "__code__", None), "co_names", ())


def _put_done(queue: Any, item: Any) -> None:
    try:
        hop = _get()
        line = lines.get(id(queue))
        if line is None:
            if hop is None:
                return
            line = line_of(queue)
            if line.inside:
                line.inside.pop()  # the item itself, which is in the queue already
        if hop is not None and line.plain:
            hop.held += 1
            line.inside.append(hop)
            if hop.closed:
                failed_to_hold(line, queue, item, hop)
        else:
            enqueued(line, queue, item, hop)
    except Exception:  # noqa: BLE001
        hook_failed("queue.put", queue)


def _get_done(queue: Any, item: Any) -> None:
    try:
        line = lines.get(id(queue))
        if line is None:
            return
        if line.quick and line.inside:
            hop = line.inside[0]
            if hop is not None and take_quickly(line, hop):
                return
        dequeued(line, item)
    except Exception:  # noqa: BLE001
        hook_failed("queue.get", queue)


def _putting_culsans(original: Any) -> Any:
    @functools.wraps(original)
    def put(self: Any, item: Any, *args: Any, **kwargs: Any) -> None:
        original(self, item, *args, **kwargs)
        _put_done(self, item)

    return put


def _getting_culsans(original: Any) -> Any:
    @functools.wraps(original)
    def get(self: Any, *args: Any, **kwargs: Any) -> Any:
        _get_begun(self)
        item = original(self, *args, **kwargs)
        _get_done(self, item)
        return item

    return get


def _get_begun(queue: Any) -> None:
    # Its waits cannot be told from outside, as those of asyncio's queue can: so who comes back says so here.
    try:
        line = lines.get(id(queue))
        if line is not None and line.taken and not line.acknowledges:
            task = running_task()
            if task is not None:
                came_back(line, task, None)
    except Exception:  # noqa: BLE001
        hook_failed("queue.get", queue)


def _putting_async(original: Any) -> Any:
    @functools.wraps(original)
    async def async_put(self: Any, item: Any) -> None:
        # It comes back in the same turn of the loop in which the item went in.
        await original(self, item)
        line = lines.get(id(self))
        if line is not IGNORED and (line is not None or _get() is not None):
            _put_done(self, item)

    return async_put


def _getting_async(original: Any) -> Any:
    @functools.wraps(original)
    async def async_get(self: Any) -> Any:
        line = lines.get(id(self))
        if line is not None and line.taken:
            _get_begun(self)
        item = await original(self)
        line = lines.get(id(self))
        if line is not None and line is not IGNORED:
            _get_done(self, item)
        return item

    return async_get


def _finishing_culsans(original: Any) -> Any:
    @functools.wraps(original)
    def task_done(self: Any) -> None:
        original(self)
        try:
            line = lines.get(id(self))
            if line is not None and line is not IGNORED:
                hop = line.single
                if hop is None or line.taken:
                    done_with(line)
                else:
                    done_quickly(line, hop)
        except Exception:  # noqa: BLE001
            hook_failed("queue.task_done", self)

    return task_done


def _clearing(original: Any) -> Any:
    @functools.wraps(original)
    def clear(self: Any) -> None:
        original(self)
        try:
            line = known_line(self)
            if line is not None:
                empty(line, "cancelled", "the queue was cleared")
        except Exception:  # noqa: BLE001
            hook_failed("queue.clear", self)

    return clear
