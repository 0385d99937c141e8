"""Whose items are in a queue, and who works on them? Enqueue to `task_done`, with depth and wait.

A consumer works for the cascade of the item that it took, until `task_done`, its next `get` or its end: the current
hop and OpenTelemetry's context follow the item. A consumer that is itself a hop's own task keeps its hop.

An item carries nothing of ours (the SDK's events are protobuf and take no attribute): what is known of it is kept in a
line beside the queue. An item that behaves is only a count on its hop; it gets an entry once it has been waiting for
longer than the threshold.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from asyncio import current_task
from collections import deque
from time import time_ns
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary, WeakSet, ref

from opentelemetry import context as otel_context
from opentelemetry import trace

from hopwatch import attributes as names
from hopwatch import process as hopwatch_process
from hopwatch import waits
from hopwatch.ledger import Entry
from hopwatch.process import current, failed, machinery
from hopwatch.telemetry import HopSpan, holder_of

if TYPE_CHECKING:
    from hopwatch.instrument import Patches
    from hopwatch.ledger import Outcome

_get = current.get
_GIL: Final = getattr(sys, "_is_gil_enabled", lambda: True)()
"""Counting without an entry relies on it: `hop.held += 1` is one step only with it."""
waited: deque[int] = deque(maxlen=256)
"""How long items that have an entry were in queues lately, in nanoseconds, for a histogram."""
depths: deque[int] = deque(maxlen=256)
"""How deep queues were at the last looks."""


class Taken:
    """An item that was taken from a queue: for whom, by whom, and for whom that one worked before."""

    __slots__ = ("adopted", "around", "before", "entry", "hop", "task")

    def __init__(self, hop: Entry, entry: Entry | None, task: Any) -> None:
        self.hop = hop
        self.entry = entry
        """The item's own entry, where it has one."""
        self.task = task
        """Weak reference to the consumer's task."""
        self.adopted: Entry | None = None
        """The hop that the consumer works for because of this item."""
        self.before: Entry | None = None
        self.around: Any = None


class Line:
    """What is known of one queue: for whom the items in it are, and those that were taken and are worked on.

    An item of a queue that is first in, first out has its hop in `inside`, at the item's own place, and is counted on
    it (`Ledger.hold`); None stands for an item that no hop put there. An item that has to be seen, or one of a queue with another
    order, has an entry of its own in that place.
    """

    __slots__ = ("__weakref__", "acknowledges", "by_identity", "inside", "loop", "marks", "plain", "queue", "quick", "quiet", "removed", "taken")

    def __init__(self, queue: Any) -> None:
        self.queue = ref(queue)
        self.inside: deque[Entry | None] = deque()
        self.by_identity: dict[int, list[Entry]] | None = None if _first_in_first_out(queue) else {}
        self.taken: list[Entry | Taken | None] = []
        self.acknowledges = False
        """Whether anybody has called `task_done`: then an item is worked on until it is called for it."""
        self.plain = self.by_identity is None and _GIL and not hopwatch_process.here().ledger.everything
        """Whether items that behave are only counted."""
        self.quick = False
        """Whether they are, and `task_done` is called for them."""
        self.quiet = False
        """Whether what is taken from it is told of by another hop (the SDK's queue of requests by the execution)."""
        self.removed = 0
        """How many items have been taken, for the ticker to know which are old."""
        self.marks: deque[tuple[int, int, int]] = deque(maxlen=512)
        """Time, items inside and items removed at the last looks."""
        try:
            self.loop: Any = ref(asyncio.get_running_loop())
        except (RuntimeError, TypeError):
            self.loop = None


_lines: WeakKeyDictionary[Any, Line] = WeakKeyDictionary()
"""Of queues that take no attribute (culsans')."""
_watched: WeakSet[Line] = WeakSet()


def _first_in_first_out(queue: Any) -> bool:
    for plain in (asyncio.Queue, getattr(sys.modules.get("culsans"), "Queue", asyncio.Queue)):
        if isinstance(queue, plain):
            return type(queue)._put is plain._put and type(queue)._get is plain._get  # noqa: SLF001
    return False


def known_line(queue: Any) -> Line | None:
    """The line of a queue, if anything is known of it."""
    line = getattr(queue, "_hopwatch_line", None)
    return line if line is not None else _lines.get(queue)


def line_of(queue: Any) -> Line:
    """The line of a queue, made when it is first asked for; what is inside already no hop put there."""
    line = known_line(queue)
    if line is None:
        line = Line(queue)
        line.inside.extend([None] * queue.qsize())
        try:
            queue._hopwatch_line = line  # noqa: SLF001
        except AttributeError:
            _lines[queue] = line
        _watched.add(line)
    return line


def keep_quiet(queue: Any) -> None:
    """Say that what is taken from this queue has a hop of its own, which tells of it."""
    line_of(queue).quiet = True


def moved_to(queue: Any, hop: Entry, other: Entry) -> None:
    """Count what was taken from this queue for `hop` on another hop, which turned out to do the work."""
    line = known_line(queue)
    if line is None:
        return
    for taken in line.taken:
        if isinstance(taken, Taken) and taken.hop is hop:
            taken.hop = other
            if taken.entry is not None:
                other.ledger.move(taken.entry, other)
            elif other.ledger.hold(other):
                hop.ledger.unhold(hop)


# Enqueue, dequeue, task_done ---------------------------------------------------------------------------------------


def enqueued(line: Line, queue: Any, item: Any, hop: Entry | None) -> None:
    """Count an item that was put into a queue while `hop` was current."""
    if hop is None:
        if line.by_identity is None:
            line.inside.append(None)
        return
    ledger = hop.ledger
    if line.plain and ledger.hold(hop):
        line.inside.append(hop)
        return
    if ledger.full(hop):
        if line.by_identity is None:
            line.inside.append(None)
        return
    entry = _entry(line, hop, time_ns())
    entry.attributes = {names.QUEUE_DEPTH: queue.qsize(), names.MESSAGING_SYSTEM: "asyncio"}
    if line.by_identity is None:
        line.inside.append(entry)
    else:
        line.by_identity.setdefault(id(item), []).append(entry)
    if ledger.everything:
        ledger.appear(entry)
    else:
        ledger.count(entry, hop)


def _entry(line: Line, hop: Entry, started: int) -> Entry:
    entry = Entry(hop.ledger, "event", "event in a queue", hop, started)
    entry.instance_of = line.queue
    return entry


def dequeued(line: Line, item: Any) -> None:
    """Note that the running task took an item, and let it work for the item's hop."""
    line.removed += 1
    if line.by_identity is None:
        found = line.inside.popleft() if line.inside else None
    else:
        entries = line.by_identity.get(id(item))
        found = entries.pop(0) if entries else None
        if entries is not None and not entries:
            del line.by_identity[id(item)]
    task = current_task()
    if not line.acknowledges and line.taken:
        # A consumer that never calls task_done is through with an item when it takes the next one.
        for taken in list(line.taken):
            if taken is None or (isinstance(taken, Taken) and taken.task is not None and taken.task() is task):
                _let_go(line, taken)
    if found is None:
        if line.acknowledges:
            line.taken.append(None)
        return
    reference = ref(task) if task is not None else None
    if found.kind == "event" and found.instance_of is line.queue:
        entry, hop = found, found.parent
        waited.append(time_ns() - entry.started)
        entry.runner = reference
        entry.quiet = line.quiet
        if hop is None:  # it was late, and its parent is gone from memory
            line.taken.append(Taken(entry, entry, reference))
            return
    else:
        entry, hop = None, found
    taken = Taken(hop, entry, reference)
    line.taken.append(taken)
    if task is not None:
        _adopt(taken, task)


def done_with(line: Line) -> None:
    """Close the item that `task_done` is for: one of the hop that the consumer works for, or the oldest."""
    line.acknowledges = True
    line.quick = line.plain
    if not line.taken:
        return
    hop = _get()
    try:
        task = current_task()
    except RuntimeError:
        task = None
    same = None
    for taken in line.taken:
        if isinstance(taken, Taken) and taken.task is not None and taken.task() is task:
            break
        if same is None and hop is not None and (taken is hop or (isinstance(taken, Taken) and taken.hop is hop)):
            same = taken
    else:
        taken = same if same is not None else line.taken[0]
    _let_go(line, taken)


def _let_go(line: Line, taken: Entry | Taken | None, outcome: Outcome = "finished", reason: str | None = None) -> None:
    try:
        line.taken.remove(taken)
    except ValueError:
        return
    if taken is None:
        return
    if not isinstance(taken, Taken):
        taken.ledger.unhold(taken)
        return
    if taken.adopted is not None and _get() is taken.adopted:
        current.set(taken.before)
        if taken.around is not None:
            otel_context.attach(taken.around)
    if taken.entry is not None:
        taken.entry.finish(outcome, reason)
    else:
        taken.hop.ledger.unhold(taken.hop)


def _adopt(taken: Taken, task: Any) -> None:
    """Let the running task work for the hop of the item that it took."""
    hop = taken.hop
    mine = _get()
    if mine is hop:
        return
    if mine is not None and mine.runner is not None and mine.runner() is task and mine.done is None:
        return  # it is in the middle of a hop of its own
    taken.adopted = hop
    taken.before = mine
    current.set(hop)
    if machinery.get():
        return
    span = trace.get_current_span()
    own = span.is_recording() and not (mine is not None and isinstance(mine.span, HopSpan) and mine.span.span is span)
    if not own and isinstance(hop.span, HopSpan):
        # Without a token to hand back: the next item, or task_done, puts another context in its place.
        taken.around = otel_context.get_current()
        otel_context.attach(hop.span.around())


def discard(queue: Any) -> None:
    """Close the items that a queue threw away (`shutdown(immediate=True)`)."""
    line = known_line(queue)
    if line is not None:
        _empty(line, "cancelled", "the queue was shut down and dropped it")


def _empty(line: Line, outcome: Outcome, reason: str) -> None:
    while line.inside:
        found = line.inside.popleft()
        if found is None:
            continue
        if found.kind == "event" and found.instance_of is line.queue:
            found.finish(outcome, reason)
        elif outcome == "abandoned":
            entry = _entry(line, found, time_ns())
            found.ledger.count(entry, found)
            found.ledger.unhold(found)
            entry.finish(outcome, reason)
        else:
            found.ledger.unhold(found)
    for entries in list((line.by_identity or {}).values()):
        for entry in entries:
            entry.finish(outcome, reason)
    if line.by_identity:
        line.by_identity.clear()


# Looking -------------------------------------------------------------------------------------------------------------


def look(now: int) -> None:
    """Let go of items whose consumer is back at the queue without `task_done`, or has ended. Called by the ticker."""
    threshold = int(hopwatch_process.here().settings.reveal_after * 1e9)
    meters = hopwatch_process.here().telemetry
    while waited:
        meters.queue_wait.record(waited.popleft() / 1e9)
    for line in list(_watched):
        queue = line.queue()
        if queue is None:
            _empty(line, "abandoned", "the queue that held it was collected")
        elif line.inside:
            meters.queue_depth.record(len(line.inside))
            _mark(line, now, threshold)
        for taken in list(line.taken):
            if not isinstance(taken, Taken) or taken.task is None:
                continue
            task = taken.task()
            if task is None or task.done():
                _let_go(line, taken, "cancelled", "its consumer ended without task_done")
            elif not line.acknowledges and queue is not None and _parked(task, queue):
                _let_go(line, taken)


def _mark(line: Line, now: int, threshold: int) -> None:
    """Have the items that were inside a threshold ago, and still are, made visible; on the loop, which alone takes them."""
    line.marks.append((now, len(line.inside), line.removed))
    old = None
    while line.marks and line.marks[0][0] <= now - threshold:
        old = line.marks.popleft()
    if old is None:
        return
    began, inside, removed = old
    count = inside - (line.removed - removed)
    loop = line.loop() if line.loop is not None else None
    if count > 0 and loop is not None and any(each is not None and each.kind != "event" for each in list(line.inside)[:count]):
        try:
            loop.call_soon_threadsafe(_reveal_old, ref(line), line.removed + count, began)
        except RuntimeError:  # the loop is closed: nobody will take them
            return


def _reveal_old(reference: Any, upto: int, began: int) -> None:
    line = reference()
    if line is None:
        return
    try:
        for place in range(min(upto - line.removed, len(line.inside))):
            hop = line.inside[place]
            if hop is None or (hop.kind == "event" and hop.instance_of is line.queue):
                continue
            entry = _entry(line, hop, max(began, hop.started))
            line.inside[place] = entry
            hop.ledger.count(entry, hop)
            hop.ledger.unhold(hop)
            hop.ledger.reveal(entry)
    except Exception:  # noqa: BLE001
        failed("queue.reveal")


def _parked(task: Any, queue: Any) -> bool:
    waiter = getattr(task, "_fut_waiter", None)
    getters = getattr(queue, "_getters", None)
    return waiter is not None and getters is not None and any(each is waiter for each in list(getters))


def what_event_waits_on(entry: Entry) -> tuple[dict[str, Any], bool]:
    """What an item in a queue, or one that was taken, waits on."""
    queue = entry.instance_of() if entry.instance_of is not None else None
    if entry.runner is None:
        depth = f" ({queue.qsize()} inside)" if queue is not None and hasattr(queue, "qsize") else ""
        line = known_line(queue) if queue is not None else None
        consumers = [taken.task() for taken in (line.taken if line is not None else ()) if isinstance(taken, Taken) and taken.task is not None]
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


def waiting_items(hop: Entry) -> list[tuple[dict[str, Any], bool]]:
    """What the items wait on that count on `hop` without entries of their own."""
    out: list[tuple[dict[str, Any], bool]] = []
    left = hop.held
    for line in list(_watched):
        if left <= 0 or len(out) >= 8:
            break
        for taken in list(line.taken):
            if isinstance(taken, Taken) and taken.hop is hop and taken.entry is None:
                left -= 1
                if line.quiet and hop.done is None:
                    continue
                task = taken.task() if taken.task is not None else None
                wait = waits.of_task(task, holder_of=holder_of) if task is not None else None
                what = "a consumer, without task_done so far" + (f": {wait.what}" if wait is not None else "")
                told = {**(wait.as_dict() if wait is not None else {"kind": "unknown"}), "what": what}
                out.append((told, wait.moves if wait is not None else True))
        inside = sum(1 for each in list(line.inside) if each is hop)
        if inside:
            left -= inside
            out.append(({"kind": "queue_get", "what": f"{inside} items in a queue", "moves": True}, True))
    if left > 0:
        out.append(({"kind": "unknown", "what": f"{left} items that were taken from queues", "moves": True}, True))
    return out


# The replacements ----------------------------------------------------------------------------------------------------


def _putting(original: Any) -> Any:
    @functools.wraps(original)
    def put_nowait(self: Any, item: Any) -> Any:
        line = self._hopwatch_line
        hop = _get()
        if line is None:
            if hop is None:
                return original(self, item)
            line = line_of(self)
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
            failed("queue.put")
        return None

    return put_nowait


def failed_to_hold(line: Line, queue: Any, item: Any, hop: Entry) -> None:
    """The hop closed while its item was being counted: give the item an entry, which is late."""
    line.inside.pop()
    hop.held -= 1
    enqueued(line, queue, item, hop)


def _getting(original: Any) -> Any:
    @functools.wraps(original)
    def get_nowait(self: Any) -> Any:
        line = self._hopwatch_line
        if line is None:
            return original(self)
        item = original(self)
        try:
            inside = line.inside
            if line.quick and inside and inside[0] is _get():
                # It works for this hop already, and will say when it is done: nothing changes but the count.
                line.removed += 1
                line.taken.append(inside.popleft())
            else:
                dequeued(line, item)
        except Exception:  # noqa: BLE001
            failed("queue.get")
        return item

    return get_nowait


def _finishing(original: Any) -> Any:
    @functools.wraps(original)
    def task_done(self: Any) -> Any:
        original(self)
        line = self._hopwatch_line
        if line is None:
            return None
        try:
            taken = line.taken
            hop = _get()
            if hop is not None and len(taken) == 1 and taken[0] is hop:
                taken.clear()
                hop.held -= 1
                if hop.done is not None and not hop.held:
                    hop.ledger.settle(hop)
            else:
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
    """Replace the methods of `asyncio.Queue` through which every item goes."""
    patches.add(asyncio.Queue, "_hopwatch_line", None)
    patches.replace(asyncio.Queue, "put_nowait", _putting)
    patches.replace(asyncio.Queue, "get_nowait", _getting)
    patches.replace(asyncio.Queue, "task_done", _finishing)
    if hasattr(asyncio.Queue, "shutdown"):  # from 3.13
        patches.replace(asyncio.Queue, "shutdown", _shutting)
    hopwatch_process.on_tick(look)


# culsans, whose queues have slots and take no attribute, and whose async methods do not call the plain ones ------------


def instrument_culsans(patches: Patches, queue: Any) -> None:
    """The same on `culsans.Queue`, which a2a-sdk uses before Python 3.13."""
    patches.replace(queue, "put_nowait", _putting_culsans)
    patches.replace(queue, "get_nowait", _getting_culsans)
    patches.replace(queue, "async_put", _putting_async)
    patches.replace(queue, "async_get", _getting_async)
    patches.replace(queue, "task_done", _finishing_culsans)
    patches.replace(queue, "shutdown", _shutting)


def _put_done(queue: Any, item: Any) -> None:
    try:
        hop = _get()
        line = _lines.get(queue)
        if line is None and hop is not None:
            line = line_of(queue)
            if line.inside:
                line.inside.pop()  # the item itself, which is in the queue already
        if line is not None:
            enqueued(line, queue, item, hop)
    except Exception:  # noqa: BLE001
        failed("queue.put")


def _get_done(queue: Any, item: Any) -> None:
    try:
        line = _lines.get(queue)
        if line is not None:
            dequeued(line, item)
    except Exception:  # noqa: BLE001
        failed("queue.get")


def _putting_culsans(original: Any) -> Any:
    @functools.wraps(original)
    def put_nowait(self: Any, item: Any) -> None:
        original(self, item)
        _put_done(self, item)

    return put_nowait


def _getting_culsans(original: Any) -> Any:
    @functools.wraps(original)
    def get_nowait(self: Any) -> Any:
        item = original(self)
        _get_done(self, item)
        return item

    return get_nowait


def _putting_async(original: Any) -> Any:
    @functools.wraps(original)
    async def async_put(self: Any, item: Any) -> None:
        # It comes back in the same turn of the loop in which the item went in.
        await original(self, item)
        _put_done(self, item)

    return async_put


def _getting_async(original: Any) -> Any:
    @functools.wraps(original)
    async def async_get(self: Any) -> Any:
        item = await original(self)
        _get_done(self, item)
        return item

    return async_get


def _finishing_culsans(original: Any) -> Any:
    @functools.wraps(original)
    def task_done(self: Any) -> None:
        original(self)
        try:
            line = _lines.get(self)
            if line is not None:
                done_with(line)
        except Exception:  # noqa: BLE001
            failed("queue.task_done")

    return task_done
