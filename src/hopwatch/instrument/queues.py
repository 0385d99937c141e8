"""Whose items are in a queue, and who works on them? Enqueue to `task_done`, with depth and wait.

A consumer works for the cascade of the item that it took, until `task_done`, its next `get` or its end: the current
hop and OpenTelemetry's context follow the item. A consumer that is itself a hop's own task keeps its hop.

An item carries nothing of ours (the SDK's events are protobuf and take no attribute); the entry is kept beside it, by
the identity of the item, for the queue holds it as long as we need it.
"""

from __future__ import annotations

import asyncio
import functools
from asyncio import current_task
from collections import deque
from time import time_ns
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet, ref

from opentelemetry import context as otel_context
from opentelemetry import trace

from hopwatch import attributes as names
from hopwatch import process as hopwatch_process
from hopwatch import waits
from hopwatch.ledger import Entry
from hopwatch.process import current, failed
from hopwatch.telemetry import HopSpan, holder_of

if TYPE_CHECKING:
    from hopwatch.instrument import Patches

_get = current.get
waited: deque[int] = deque(maxlen=512)
"""How long items were in queues lately, in nanoseconds, for a histogram."""
depths: deque[int] = deque(maxlen=512)


class Line:
    """What is known of one queue: the entries of the items in it, and of those that were taken and are worked on."""

    __slots__ = ("__weakref__", "acknowledges", "inside", "queue", "quiet", "taken")

    def __init__(self, queue: Any) -> None:
        self.queue = ref(queue)
        self.inside: dict[int, Entry | list[Entry]] = {}
        self.taken: list[Taken] = []
        self.acknowledges = False
        """Whether anybody has called `task_done`: then an item is worked on until it is called for it."""
        self.quiet = False
        """Whether what is taken from it is told of by another hop (the SDK's queue of requests by the execution)."""

    def put(self, item: Any, entry: Entry) -> None:
        """Note the entry of an item that was enqueued."""
        known = self.inside.get(id(item))
        if known is None:
            self.inside[id(item)] = entry
        elif isinstance(known, list):
            known.append(entry)
        else:  # the same object twice
            self.inside[id(item)] = [known, entry]

    def get(self, item: Any) -> Entry | None:
        """The entry of an item that was dequeued."""
        known = self.inside.pop(id(item), None)
        if isinstance(known, list):
            entry = known.pop(0)
            if known:
                self.inside[id(item)] = known
            return entry
        return known

    def entries(self) -> list[Entry]:
        """The entries of the items that are still inside."""
        out: list[Entry] = []
        for known in list(self.inside.values()):
            out.extend(known if isinstance(known, list) else [known])
        return out


class Taken:
    """An item that was taken from a queue: who works on it, and for whom that one worked before."""

    __slots__ = ("adopted", "base", "entry", "otel_base", "task")

    def __init__(self, entry: Entry | None, task: Any) -> None:
        self.entry = entry
        """None for an item that no hop put there: `task_done` counts it all the same."""
        self.task = task
        """Weak reference to the consumer's task."""
        self.adopted: Entry | None = None
        """The hop that the consumer works for because of this item."""
        self.base: Entry | None = None
        self.otel_base: Any = None


_lines: WeakKeyDictionary[Any, Line] = WeakKeyDictionary()
"""Of queues that take no attribute (culsans')."""
_watched: WeakSet[Line] = WeakSet()
"""Lines that have or had items taken from them: the ticker asks whether their consumers are still at it."""


def line_of(queue: Any) -> Line:
    """The line of a queue, made when it is first asked for."""
    line = getattr(queue, "_hopwatch_line", None)
    if line is None:
        line = _lines.get(queue)
    if line is None:
        line = Line(queue)
        try:
            queue._hopwatch_line = line  # noqa: SLF001
        except AttributeError:
            _lines[queue] = line
        _watched.add(line)
    return line


def keep_quiet(queue: Any) -> None:
    """Say that what is taken from this queue has a hop of its own, which tells of it."""
    line_of(queue).quiet = True


def taken_from(queue: Any) -> list[Entry]:
    """The entries of the items that were taken from this queue and are worked on."""
    return [taken.entry for taken in line_of(queue).taken if taken.entry is not None]


# Enqueue, dequeue, task_done ---------------------------------------------------------------------------------------


def enqueued(queue: Any, item: Any, hop: Entry) -> None:
    """Open the entry of an item that was put into a queue while `hop` was current."""
    ledger = hop.ledger
    if len(ledger.hops) + len(ledger.invisible) >= ledger.capacity:
        ledger.full(hop)
        return
    line = line_of(queue)
    entry = Entry(ledger, "event", "event in a queue", hop, time_ns())
    entry.instance_of = line.queue
    line.put(item, entry)
    if ledger.everything:
        entry.attributes = {names.QUEUE_DEPTH: queue.qsize(), names.MESSAGING_SYSTEM: "asyncio"}
        ledger.appear(entry)
    else:
        ledger.count(entry, hop)


def dequeued(queue: Any, line: Line, item: Any) -> None:
    """Note that the running task took an item, and let it work for the item's hop."""
    entry = line.get(item)
    task = current_task()
    if line.taken and not line.acknowledges:
        # A consumer that never calls task_done is through with an item when it takes the next one.
        for taken in [each for each in line.taken if each.task is not None and each.task() is task]:
            _let_go(line, taken)
    if entry is None:
        if line.taken or line.acknowledges:
            line.taken.append(Taken(None, ref(task) if task is not None else None))
        return
    now = time_ns()
    waited.append(now - entry.started)
    entry.runner = ref(task) if task is not None else None
    entry.quiet = line.quiet
    taken = Taken(entry, entry.runner)
    line.taken.append(taken)
    if task is not None:
        _adopt(taken, task)


def done_with(line: Line) -> None:
    """Close the entry of the item that `task_done` is for: the running task's oldest, or the oldest of all."""
    line.acknowledges = True
    if not line.taken:
        return
    try:
        task = current_task()
    except RuntimeError:
        task = None
    for taken in line.taken:
        if taken.task is not None and taken.task() is task:
            break
    else:
        taken = line.taken[0]
    _let_go(line, taken)


def discard(queue: Any) -> None:
    """Close the entries of items that a queue threw away (`shutdown(immediate=True)`)."""
    line = getattr(queue, "_hopwatch_line", None) or _lines.get(queue)
    if line is None:
        return
    for entry in line.entries():
        entry.finish("cancelled", "the queue was shut down and dropped it")
    line.inside.clear()


def _let_go(line: Line, taken: Taken) -> None:
    try:
        line.taken.remove(taken)
    except ValueError:
        return
    if taken.entry is not None:
        taken.entry.finish()
    if taken.adopted is not None and _get() is taken.adopted:
        current.set(taken.base)
        if taken.otel_base is not None:
            otel_context.attach(taken.otel_base)


def _adopt(taken: Taken, task: Any) -> None:
    """Let the running task work for the hop of the item that it took."""
    hop = taken.entry.parent if taken.entry is not None else None
    mine = _get()
    if hop is None or mine is hop:
        return
    if mine is not None and mine.runner is not None and mine.runner() is task and mine.done is None:
        return  # it is in the middle of a hop of its own
    taken.adopted = hop
    taken.base = mine
    current.set(hop)
    span = trace.get_current_span()
    own = span.is_recording() and not (mine is not None and isinstance(mine.span, HopSpan) and mine.span.span is span)
    if not own and isinstance(hop.span, HopSpan):
        # Without a token to hand back: the next item, or task_done, puts another context in its place.
        taken.otel_base = otel_context.get_current()
        otel_context.attach(hop.span.around())


# Looking -------------------------------------------------------------------------------------------------------------


def look(_: int) -> None:
    """Let go of items whose consumer is back at the queue without `task_done`, or has ended. Called by the ticker."""
    for line in list(_watched):
        queue = line.queue()
        if queue is None:
            for entry in line.entries():
                entry.finish("abandoned", "the queue that held it was collected")
            line.inside.clear()
        for taken in list(line.taken):
            task = taken.task() if taken.task is not None else None
            if taken.task is None:
                continue
            if task is None or task.done():
                _drop(line, taken, "cancelled", "its consumer ended without task_done")
            elif not line.acknowledges and queue is not None and _parked(task, queue):
                _drop(line, taken, "finished", None)


def _drop(line: Line, taken: Taken, outcome: Any, reason: str | None) -> None:
    try:
        line.taken.remove(taken)
    except ValueError:
        return
    if taken.entry is not None:
        taken.entry.finish(outcome, reason)


def _parked(task: Any, queue: Any) -> bool:
    waiter = getattr(task, "_fut_waiter", None)
    getters = getattr(queue, "_getters", None)
    return waiter is not None and getters is not None and any(each is waiter for each in list(getters))


def what_event_waits_on(entry: Entry) -> tuple[dict[str, Any], bool]:
    """What an item in a queue, or one that was taken, waits on."""
    queue = entry.instance_of() if entry.instance_of is not None else None
    if entry.runner is None:
        depth = f" ({queue.qsize()} inside)" if queue is not None and hasattr(queue, "qsize") else ""
        line = getattr(queue, "_hopwatch_line", None) or (_lines.get(queue) if queue is not None else None)
        consumers = [taken.task() for taken in (line.taken if line is not None else ()) if taken.task is not None]
        told: list[waits.Wait] = [waits.of_task(task, holder_of=holder_of) for task in consumers[:4] if task is not None]
        # Nobody who took from this queue is busy: only a consumer that comes for it can move it.
        moves = any(wait.moves for wait in told)
        what = f"an item in a queue{depth} that nobody has taken"
        return {"kind": "queue_get", "what": what, "moves": moves, "of": [wait.as_dict() for wait in told]}, moves
    task = entry.runner()
    if task is None:
        return {"kind": "unknown", "what": "its consumer, which is gone", "moves": True}, True
    wait = waits.of_task(task, holder_of=holder_of)
    return {**wait.as_dict(), "what": f"its consumer, without task_done so far: {wait.what}"}, wait.moves


# The replacements ----------------------------------------------------------------------------------------------------


def _putting(original: Any) -> Any:
    @functools.wraps(original)
    def put_nowait(self: Any, item: Any) -> Any:
        hop = _get()
        if hop is None:
            return original(self, item)
        original(self, item)
        try:
            enqueued(self, item, hop)
        except Exception:  # noqa: BLE001
            failed("queue.put")
        return None

    return put_nowait


def _attribute(queue: Any) -> Any:
    return queue._hopwatch_line  # noqa: SLF001


def _getting(original: Any, known: Any = _attribute) -> Any:
    @functools.wraps(original)
    def get_nowait(self: Any) -> Any:
        line = known(self)
        if line is None:
            return original(self)
        item = original(self)
        try:
            dequeued(self, line, item)
        except Exception:  # noqa: BLE001
            failed("queue.get")
        return item

    return get_nowait


def _finishing(original: Any, known: Any = _attribute) -> Any:
    @functools.wraps(original)
    def task_done(self: Any) -> Any:
        line = known(self)
        if line is None:
            return original(self)
        original(self)
        try:
            done_with(line)
        except Exception:  # noqa: BLE001
            failed("queue.task_done")
        return None

    return task_done


def _shutting(original: Any) -> Any:
    @functools.wraps(original)
    def shutdown(self: Any, immediate: bool = False) -> Any:  # noqa: FBT001, FBT002 - asyncio's own signature
        result = original(self, immediate)
        if immediate:
            try:
                discard(self)
            except Exception:  # noqa: BLE001
                failed("queue.shutdown")
        return result

    return shutdown


def instrument(patches: Patches) -> None:
    """Replace the four methods of `asyncio.Queue` through which every item goes."""
    patches.add(asyncio.Queue, "_hopwatch_line", None)
    patches.replace(asyncio.Queue, "put_nowait", _putting)
    patches.replace(asyncio.Queue, "get_nowait", _getting)
    patches.replace(asyncio.Queue, "task_done", _finishing)
    if hasattr(asyncio.Queue, "shutdown"):  # from 3.13
        patches.replace(asyncio.Queue, "shutdown", _shutting)
    hopwatch_process.on_tick(look)


def instrument_culsans(patches: Patches, queue: Any) -> None:
    """The same on `culsans.Queue`, which a2a-sdk uses before Python 3.13: its async methods do not call the plain ones."""
    # Its queues have slots and take no attribute.
    patches.replace(queue, "put_nowait", _putting)
    patches.replace(queue, "get_nowait", lambda original: _getting(original, _lines.get))
    patches.replace(queue, "async_put", _putting_async)
    patches.replace(queue, "async_get", _getting_async)
    patches.replace(queue, "task_done", lambda original: _finishing(original, _lines.get))
    patches.replace(queue, "shutdown", _shutting)


def _putting_async(original: Any) -> Any:
    @functools.wraps(original)
    def async_put(self: Any, item: Any) -> Any:
        hop = _get()
        return original(self, item) if hop is None else _put_async(original, self, item, hop)

    return async_put


async def _put_async(original: Any, queue: Any, item: Any, hop: Entry) -> None:
    # Before the item is in: it may be taken before we run again.
    try:
        enqueued(queue, item, hop)
    except Exception:  # noqa: BLE001
        failed("queue.put")
    try:
        await original(queue, item)
    except BaseException:
        entry = line_of(queue).get(item)
        if entry is not None:
            entry.finish("cancelled", "it was not enqueued")
        raise


def _getting_async(original: Any) -> Any:
    @functools.wraps(original)
    async def async_get(self: Any) -> Any:
        item = await original(self)
        try:
            line = _lines.get(self)
            if line is not None:
                dequeued(self, line, item)
        except Exception:  # noqa: BLE001
            failed("queue.get")
        return item

    return async_get
