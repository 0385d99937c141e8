"""Whose items are in a queue, and who works on them? Enqueue to `task_done`, with depth and wait.

A consumer works for the cascade of the item that it took, until `task_done`, its next `get` or its end: the current
hop and OpenTelemetry's context follow the item. A consumer that is itself a hop's own task keeps its hop.

An item carries nothing of ours (the SDK's events are protobuf and take no attribute): what is known of it is kept in a
line beside the queue. An item that behaves is only a count on its hop; it gets an entry once it has been waiting for
longer than the threshold.
"""

from __future__ import annotations

import asyncio
import os
import sys
import weakref
from asyncio import current_task
from collections import deque
from time import time_ns
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary, ref

from opentelemetry import context as otel_context
from opentelemetry import trace

from hopwatch import attributes as names
from hopwatch import hop_waits, waits
from hopwatch import process as hopwatch_process
from hopwatch.ledger import Entry
from hopwatch.process import current, failed, machinery
from hopwatch.telemetry import HopSpan
from hopwatch.waits.reach import awaiting

if TYPE_CHECKING:
    from types import FrameType

    from hopwatch.ledger import Ledger, Outcome

_get = current.get
_GIL: Final = getattr(sys, "_is_gil_enabled", lambda: True)()
"""Counting without an entry relies on it: `hop.held += 1` is one step only with it."""
waited: deque[int] = deque(maxlen=256)
"""How long items that have an entry were in queues lately, in nanoseconds, for a histogram."""
FRAMES_TO_ASK: Final = 12
"""How many frames are asked whether they call `task_done`."""
MAX_GETTERS: Final = 32
"""How many of those that wait for an item are asked whom they take it for."""
_ONLY_GET: Final = {asyncio.Queue.get.__code__}
"""Coroutines that do nothing but take an item."""
MAX_UNKNOWN: Final = 64
"""How many items that were taken before a line was made may still wait for `task_done`."""
depths: deque[int] = deque(maxlen=256)
"""How deep queues were at the last looks."""


class Taken:
    """An item that was taken from a queue: for whom, and by whom."""

    __slots__ = ("adopted", "counted", "entry", "handed_on", "hop", "task")

    def __init__(self, hop: Entry | None, entry: Entry | None, task: Any) -> None:
        self.hop = hop
        """None for an item that no hop put there."""
        self.entry = entry
        """The item's own entry, where it has one."""
        self.task = task
        """Weak reference to the consumer's task; None where no task took it."""
        self.adopted: Entry | None = None
        """The hop that the consumer works for because of this item."""
        self.counted = False
        """Whether the consumer is one that is counted on the same hop."""
        self.handed_on = False
        """Whether the task that took it did nothing else, so that who works on it is whoever awaited that task."""


class Line:
    """What is known of one queue: for whom the items in it are, and those that were taken and are worked on.

    An item of a queue that is first in, first out has its hop in `inside`, at the item's own place, and is counted on
    it (`Ledger.hold`); None stands for an item that no hop put there. An item that has to be seen, or one of a queue with another
    order, has an entry of its own in that place.
    """

    __slots__ = (
        "__weakref__",
        "acknowledges",
        "by_identity",
        "consumer",
        "inside",
        "lent",
        "loop",
        "marks",
        "odd",
        "plain",
        "queue",
        "quick",
        "quiet",
        "removed",
        "single",
        "taken",
    )

    def __init__(self, queue: Any) -> None:
        self.queue = ref(queue)
        self.inside: deque[Entry | None] = deque()
        self.by_identity: dict[int, list[Entry]] | None = None if _first_in_first_out(queue) else {}
        self.taken: list[Taken] = []
        self.single: Entry | None = None
        """The hop of the one item that is worked on, where the short path took it."""
        self.consumer: Any = None
        """Weak reference to the task that took it; None where this is one that is itself counted on the hop."""
        self.lent = False
        """Whether that task works for the hop until `task_done`, and for none before and after."""
        self.acknowledges = False
        """Whether `task_done` is called: then an item is worked on until it is called for it."""
        self.plain = self.by_identity is None and _GIL and not hopwatch_process.here().ledger.everything
        """Whether items that behave are only counted."""
        self.quick = False
        """Whether they are, `task_done` is called for them, and none is worked on: the short path."""
        self.quiet = False
        """Whether what is taken from it is told of by another hop (the SDK's queue of requests by the execution)."""
        self.removed = 0
        """How many items have been taken, for the ticker to know which are old."""
        self.marks: deque[tuple[int, int, int]] = deque(maxlen=512)
        """Time, items inside and items removed at the last looks."""
        self.odd = 0
        """At how many looks in a row something was amiss: more known inside than there is, or a consumer gone."""
        try:
            self.loop: Any = ref(asyncio.get_running_loop())
        except (RuntimeError, TypeError):
            self.loop = None


class Adoptions:
    """For whom a consumer worked before it took items of other hops, and which items it has of them."""

    __slots__ = ("around", "base", "last", "taken")

    def __init__(self) -> None:
        self.taken: list[Taken] = []
        self.base: Entry | None = None
        self.around: Any = None
        """The OpenTelemetry context that was current; None where it was left alone."""
        self.last: Entry | None = None
        """The hop that was made current last."""


class Ignored:
    """Stands for the line of a queue whose items are accounted for elsewhere."""

    __slots__ = ()
    acknowledges = plain = quick = False
    consumer = single = None
    inside = taken = ()


IGNORED: Any = Ignored()
POOLS: Final = {"asyncpg.pool": "asyncpg.pool", "sqlalchemy.util.queue": "sqlalchemy.pool.base"}
"""Modules whose queues keep connections, and where the class of what they keep is: such an item is no work, and whoever takes
it works on for whom it did before."""
also_held: list[Any] = []
"""Further ways to say what counts on a hop: each gives how many, and what they wait on, as `waiting_items` does."""
_adoptions: WeakKeyDictionary[Any, Adoptions] = WeakKeyDictionary()
"""By the consumer's task."""
lines: dict[int, Any] = {}
"""By the id of queues that take no attribute (culsans'), for as long as these live."""
watched: set[Line] = set()
"""Every line, also of a queue that has been collected: its items are told of, and then it is forgotten."""


def _first_in_first_out(queue: Any) -> bool:
    for plain in (asyncio.Queue, getattr(sys.modules.get("culsans"), "Queue", asyncio.Queue)):
        if isinstance(queue, plain):
            return type(queue)._put is plain._put and type(queue)._get is plain._get  # noqa: SLF001
    return False


def known_line(queue: Any) -> Line | None:
    """The line of a queue, if anything is known of it."""
    line = getattr(queue, "_hopwatch_line", None)
    if line is None:
        line = lines.get(id(queue))
    return None if line is IGNORED else line


def ignore(queue: Any) -> None:
    """Say that the items of this queue, which is new, are accounted for by who calls this."""
    try:
        queue._hopwatch_line = IGNORED  # noqa: SLF001
    except Exception:  # noqa: BLE001 - as in `line_of`
        place = id(queue)
        lines[place] = IGNORED
        weakref.finalize(queue, lines.pop, place, None).atexit = False


def is_no_work(frame: FrameType | None, item: object) -> bool:
    """Whether what is put into a queue is nobody's work: `frame` is that of who puts it, or asyncio's for it.

    A pool of connections keeps them there. And `asyncio.as_completed` has the tasks that it is given put themselves into one when they
    are over: nobody calls `task_done`, nobody need take them, and they are counted without that.
    """
    while frame is not None and frame.f_globals.get("__name__") == "asyncio.queues":
        frame = frame.f_back
    module = frame.f_globals.get("__name__", "") if frame is not None else ""
    if module == "asyncio.tasks":
        return True
    kept_by = POOLS.get(module)
    # An application may put its work into a queue of theirs.
    return kept_by is not None and any(each.__module__ == kept_by for each in type(item).__mro__)


def line_of(queue: Any) -> Line:
    """The line of a queue, made when it is first asked for; what is inside already no hop put there."""
    line = known_line(queue)
    if line is None:
        line = Line(queue)
        inside = queue.qsize()
        if line.by_identity is None:
            line.inside.extend([None] * inside)
        worked_on = getattr(queue, "_unfinished_tasks", inside) - inside
        if 0 < worked_on <= MAX_UNKNOWN:  # more: nobody calls task_done
            line.taken.extend(Taken(None, None, None) for _ in range(worked_on))
        try:
            queue._hopwatch_line = line  # noqa: SLF001
        except Exception:  # noqa: BLE001 - it has slots, or takes no attribute but its own
            place = id(queue)
            lines[place] = line
            # Its id may belong to another queue once it is gone.
            line.queue = ref(queue, lambda _: lines.pop(place, None))
        watched.add(line)
    return line


def keep_quiet(queue: Any) -> None:
    """Say that what is taken from this queue has a hop of its own, which tells of it."""
    line_of(queue).quiet = True


def moved_to(queue: Any, hop: Entry, other: Entry) -> None:
    """Count what was taken from this queue for `hop` on another hop, which turned out to do the work."""
    line = known_line(queue)
    if line is None:
        return
    _unsingle(line, None)
    for taken in line.taken:
        if taken.hop is hop:
            if taken.entry is not None:
                other.ledger.move(taken.entry, other)
            elif other.ledger.hold(other):
                hop.ledger.unhold(hop)
            else:
                continue
            taken.hop = other


def forget() -> None:
    """Let go of every item, as dropped: from here on nobody watches the queues."""
    for line in list(watched):
        _lose(line)


# Enqueue, dequeue, task_done ---------------------------------------------------------------------------------------


def enqueued(line: Line, queue: Any, item: Any, hop: Entry | None) -> None:
    """Count an item that was put into a queue while `hop` was current."""
    if line is IGNORED:
        return
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
    entry = entry_for_item(line, hop, time_ns())
    entry.attributes = {names.QUEUE_DEPTH: queue.qsize(), names.MESSAGING_SYSTEM: "asyncio"}
    if line.by_identity is None:
        line.inside.append(entry)
    else:
        line.by_identity.setdefault(id(item), []).append(entry)
    if ledger.everything:
        ledger.appear(entry)
    else:
        ledger.count(entry, hop)


def failed_to_hold(line: Line, queue: Any, item: Any, hop: Entry) -> None:
    """The hop closed while its item was being counted: give the item an entry, which is late."""
    line.inside.pop()
    hop.held -= 1
    enqueued(line, queue, item, hop)


def entry_for_item(line: Line, hop: Entry, started: int) -> Entry:
    """An entry for an item that was only counted so far; it is not counted on its hop yet."""
    entry = Entry(hop.ledger, "event", "event in a queue", hop, started)
    entry.instance_of = line.queue
    return entry


def dequeued(line: Line, item: Any) -> None:
    """Note that the running task took an item, and let it work for the item's hop."""
    if line is IGNORED:
        return
    line.removed += 1
    line.quick = False
    if line.by_identity is None:
        found = line.inside.popleft() if line.inside else None
    else:
        entries = line.by_identity.get(id(item))
        found = entries.pop(0) if entries else None
        if entries is not None and not entries:
            del line.by_identity[id(item)]
        if line.by_identity:
            queue = line.queue()
            size = queue.qsize() if queue is not None else 0
            if found is None and sum(map(len, line.by_identity.values())) > size:
                # What comes out is not what was put in: which item this is cannot be known.
                _lose(line)
                return
            if queue is not None and not size:
                empty(line, "cancelled", "the queue dropped it")
    task = running_task()
    reference = ref(task) if task is not None else None
    hop = found
    entry = None
    if found is not None and found.kind == "event" and found.instance_of is line.queue:
        entry, hop = found, found.parent or found  # its parent is gone from memory where it has closed
        waited.append(time_ns() - entry.started)
        entry.runner = reference
        entry.quiet = line.quiet
    taken = Taken(hop, entry, reference)
    # From here on it is not lost any more, whatever fails.
    line.taken.append(taken)
    _unsingle(line, reference)
    if task is not None and _only_gets(task):
        task = _hand_on(taken, task)
    if not line.acknowledges:
        if _calls_task_done():
            line.acknowledges = True
        else:
            came_back(line, task, taken)
    if hop is not None and task is not None and entry is not hop and not taken.handed_on:
        _adopt(taken, task)


def _only_gets(task: Any) -> bool:
    """Whether all that a task does is to take one item, as where somebody waits for `get` with a timeout, or for several things at once."""
    return getattr(task.get_coro(), "cr_code", None) in _ONLY_GET


def _hand_on(taken: Taken, task: Any) -> Any:
    """Give an item to the task that awaits the one which took it; returns that, or None where no task does."""
    taken.handed_on = True
    heir = next(iter(awaiting(task)), None)
    taken.task = ref(heir) if heir is not None else None
    if taken.entry is not None:
        taken.entry.runner = taken.task
    return heir


def running_task() -> Any:
    """The running task; None outside any loop."""
    try:
        return current_task()
    except RuntimeError:  # no loop runs in this thread
        return None


def came_back(line: Line, task: Any, but: Taken | None) -> None:
    """Let go of what a consumer took before: where nobody calls `task_done`, it is through with it now."""
    for taken in list(line.taken):
        if taken is but or (taken.handed_on and taken.task is None):
            continue
        if taken.task is None or taken.task() is task:
            _let_go(line, taken)


def _calls_task_done() -> bool:
    """Whether the function that takes an item, or one that called it, has `task_done` in its code.

    So a consumer is known that takes several items before it calls `task_done` for the first of them.
    """
    frame: Any = sys._getframe(1)  # noqa: SLF001 - as in tasks
    for _ in range(FRAMES_TO_ASK):
        if frame is None:
            return False
        code = frame.f_code
        if "task_done" in code.co_names and frame.f_globals is not globals():
            return True
        if code.co_name == "_run" and code.co_filename.endswith("events.py"):
            return False
        frame = frame.f_back
    return False


def _unsingle(line: Line, reference: Any) -> None:
    """Write the one item that is worked on by the short path as the others are.

    The consumer is one that is counted on the same hop; where the running task works for it, it is taken for that one.
    """
    hop = line.single
    line.quick = False
    if hop is None:
        return
    consumer, line.consumer = line.consumer, None
    line.single = None
    if consumer is None:
        taken = Taken(hop, None, reference if _get() is hop else None)
        taken.counted = True
    else:
        taken = Taken(hop, None, consumer)
        task = consumer()
        if line.lent and task is not None:
            adoptions = _adoptions.get(task)
            if adoptions is None:
                adoptions = _adoptions[task] = Adoptions()
            adoptions.base = adoptions.around = None
            adoptions.taken.append(taken)
            adoptions.last = taken.adopted = hop
    line.taken.insert(0, taken)


def take_quickly(line: Line, hop: Entry) -> bool:
    """Note that the running task took the first item, which is of `hop`, where this needs no more than a remark.

    So it is for a task in the middle of a hop of its own, and for the SDK's loops, which work for one item at a time and for
    nobody in between.

    Returns:
        False where nothing was done.
    """
    if hop.kind == "event":  # an item that has been seen, and has an entry of its own
        return False
    mine = _get()
    if mine is hop:
        if hop.adopted:
            return False
    else:
        task = current_task()
        if mine is None:
            if not machinery.get() or _only_gets(task):
                return False
            hop.adopted = True
            current.set(hop)
            line.lent = True
        elif mine.done is None and mine.runner is not None and mine.runner() is task:
            line.lent = False
        else:
            return False
        line.consumer = ref(task)
    line.single = line.inside.popleft()
    line.quick = False
    line.removed += 1
    return True


def done_quickly(line: Line, hop: Entry) -> None:
    """`task_done` for the one item that is worked on, which the short path took for `hop`."""
    line.single = None
    line.quick = True
    consumer = line.consumer
    if consumer is not None:
        line.consumer = None
        if line.lent:
            task = consumer()
            if _get() is hop and task is running_task():
                current.set(None)
            elif task is not None:
                # It is inside a hop of its own, or somebody else called: its next item finds out.
                adoptions = _adoptions.get(task)
                if adoptions is None:
                    adoptions = _adoptions[task] = Adoptions()
                adoptions.base, adoptions.last = None, hop
    hop.held -= 1
    if hop.done is not None and not hop.held:
        hop.ledger.settle(hop)


def done_with(line: Line) -> None:
    """Close the item that `task_done` is for: one of the running task, or of the hop that it works for, or the oldest."""
    if line is IGNORED:
        return
    line.acknowledges = True
    hop = _get()
    task = running_task()
    same = None
    for taken in line.taken:
        if task is not None and taken.task is not None and taken.task() is task:
            _let_go(line, taken)
            break
        if same is None and hop is not None and taken.hop is hop:
            same = taken
    else:
        if line.single is not None and (line.single is hop or not line.taken):
            done_quickly(line, line.single)
        elif line.taken:
            _let_go(line, same if same is not None else line.taken[0])
    line.quick = line.plain and not line.taken and line.single is None


def _let_go(line: Line, taken: Taken, outcome: Outcome = "finished", reason: str | None = None) -> None:
    try:
        line.taken.remove(taken)
    except ValueError:
        return
    try:
        if taken.adopted is not None:
            _give_back(taken)
    finally:
        if taken.entry is not None:
            taken.entry.finish(outcome, reason)
        elif taken.hop is not None:
            taken.hop.ledger.unhold(taken.hop)


def _adopt(taken: Taken, task: Any) -> None:
    """Let the running task work for the hop of the item that it took."""
    hop: Any = taken.hop
    mine = _get()
    adoptions = _adoptions.get(task)
    if mine is hop and (adoptions is None or not adoptions.taken):
        return
    if mine is not None and mine.runner is not None and mine.runner() is task and mine.done is None:
        return  # it is in the middle of a hop of its own
    if adoptions is None:
        adoptions = _adoptions[task] = Adoptions()
    if not adoptions.taken and mine is not adoptions.last:
        # Otherwise what it had then is still what it goes back to: the last item ended inside a hop of its own.
        adoptions.base, adoptions.around = mine, None
    # What others count on this hop by the short path may be done by this task from now on.
    hop.adopted = True
    taken.adopted = hop
    adoptions.taken.append(taken)
    adoptions.last = hop
    current.set(hop)
    if machinery.get():
        return
    span = trace.get_current_span()
    # The span of the hop that happened to start the consumer is not its own.
    if isinstance(hop.span, HopSpan) and not (span.is_recording() and not _is_a_hops(span)):
        # Without a token to hand back: the next item, or task_done, puts another context in its place.
        if adoptions.around is None:
            adoptions.around = otel_context.get_current()
        otel_context.attach(hop.span.around())


def _is_a_hops(span: trace.Span) -> bool:
    context = span.get_span_context()
    return context.trace_state.get(names.TRACESTATE_KEY) == f"{context.trace_id:032x}-{context.span_id:016x}"


def _give_back(taken: Taken) -> None:
    """Let the consumer go back to what it worked for, when it is through with an item."""
    task = taken.task() if taken.task is not None else None
    adoptions = _adoptions.get(task) if task is not None else None
    if adoptions is None or taken not in adoptions.taken:
        return
    adoptions.taken.remove(taken)
    # Somebody else called task_done, or it is inside a hop of its own: then its next item finds out.
    if running_task() is not task or _get() is not adoptions.last:
        return
    left = adoptions.taken[-1].adopted if adoptions.taken else None
    ours = adoptions.last.span if adoptions.last is not None else None
    hop = left if left is not None else adoptions.base
    adoptions.last = left
    current.set(hop)
    around = adoptions.around
    if around is None or not isinstance(ours, HopSpan) or trace.get_current_span() is not ours.span:
        return
    # What else the consumer has put into its context meanwhile stays.
    if left is not None and isinstance(left.span, HopSpan):
        otel_context.attach(left.span.around())
    else:
        otel_context.attach(
            trace.set_span_in_context(trace.get_current_span(around), otel_context.get_current())
        )


def _lose(line: Line) -> None:
    """A hook failed, or nobody watches any more: what was known of this queue is counted as dropped, and forgotten."""
    watched.discard(line)
    queue = line.queue()
    if queue is not None:
        lines.pop(id(queue), None)
        if getattr(queue, "_hopwatch_line", None) is line:
            queue._hopwatch_line = None  # noqa: SLF001
    line.plain = line.quick = False
    _unsingle(line, None)
    for taken in list(line.taken):
        hop = taken.hop
        _let_go(line, taken, "cancelled", "hopwatch lost sight of it")
        if hop is not None:
            hop.ledger.lose(hop)
    for found in (
        *line.inside,
        *(entry for entries in (line.by_identity or {}).values() for entry in entries),
    ):
        if found is not None:
            hop = found.parent if found.kind == "event" and found.instance_of is line.queue else found
            if hop is not None:
                hop.ledger.lose(hop)
    empty(line, "cancelled", "hopwatch lost sight of it")


def hook_failed(hook: str, queue: Any) -> None:
    """Count a failure inside an `except` block; what is known of the queue does not fit it any more."""
    failed(hook)
    try:
        line = known_line(queue)
        if line is not None:
            _lose(line)
    except Exception:  # noqa: BLE001
        failed("queue.lose")


def discard(queue: Any) -> None:
    """Close the items that a queue threw away (`shutdown(immediate=True)`)."""
    line = known_line(queue)
    if line is not None:
        empty(line, "cancelled", "the queue was shut down and dropped it")


def empty(line: Line, outcome: Outcome, reason: str, left: int = 0) -> None:
    """Close what is inside a queue, but for the last `left` of it."""
    while len(line.inside) > left:
        found = line.inside.popleft()
        line.removed += 1
        if found is None:
            continue
        if found.kind == "event" and found.instance_of is line.queue:
            found.finish(outcome, reason)
        elif outcome == "abandoned":
            entry = entry_for_item(line, found, time_ns())
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
    ledger = hopwatch_process.here().ledger
    for line in list(watched):
        queue = line.queue()
        if queue is None:
            empty(line, "abandoned", "the queue that held it was collected")
            if not line.taken and line.single is None:
                watched.discard(line)
        elif line.inside:
            meters.queue_depth.record(len(line.inside))
            _mark(line, now, threshold)
        for taken in list(line.taken):
            task = taken.task() if taken.task is not None else None
            if taken.task is None and taken.counted:
                if taken.hop is not None and _nobody_is_left(taken.hop, ledger):
                    _let_go(line, taken, "cancelled", "its consumer ended without task_done")
            elif taken.task is None:
                # A callback, or another thread, took it; or it was taken before anything was known of this queue.
                if line.acknowledges and queue is not None:
                    continue
                if taken.handed_on and taken.hop is not None:
                    # Who works on it, and until when, cannot be known.
                    ledger.lose(taken.hop)
                _let_go(line, taken)
            elif task is None or task.done():
                if line.acknowledges:
                    _let_go(line, taken, "cancelled", "its consumer ended without task_done")
                else:
                    _let_go(line, taken)
            elif not line.acknowledges and queue is not None and _parked(task, queue, taken.handed_on):
                _let_go(line, taken)
        _look_for_odds(line, queue, ledger)


def _look_for_odds(line: Line, queue: Any, ledger: Ledger) -> None:
    """Find what stays wrong from one look to the next, and have it put right on the loop, where nothing else moves."""
    single, consumer = line.single, line.consumer
    if single is None:
        orphaned = False
    elif consumer is None:
        orphaned = _nobody_is_left(single, ledger)
    else:
        task = consumer()
        orphaned = task is None or task.done()
    missing = queue is not None and line.by_identity is None and len(line.inside) != queue.qsize()
    line.odd = line.odd + 1 if orphaned or missing else 0
    if line.odd < 2:
        return
    loop = line.loop() if line.loop is not None else None
    try:
        if loop is None:
            raise RuntimeError  # noqa: TRY301 - as where it is closed
        loop.call_soon_threadsafe(_put_right, line, single if orphaned else None)
    except RuntimeError:
        _put_right(line, single if orphaned else None)


def _nobody_is_left(hop: Entry, ledger: Ledger) -> bool:
    """Whether no task of `hop` is left that could call `task_done`: its own, one below it, or one that has been revealed."""
    if hop.done is None or hop.live:
        return False
    task = hop.runner() if hop.runner is not None else None
    if task is not None and not task.done() and _may_call_task_done(task):
        return False
    return not any(
        each.parent is hop and each.kind != "event" and each.done is None for each in ledger.open_hops()
    )


def _may_call_task_done(task: Any) -> bool:
    """Whether a task, whose own hop is over, is inside a function that calls `task_done`; in doubt it may."""
    awaitable = task.get_coro()
    for _ in range(FRAMES_TO_ASK):
        code = getattr(awaitable, "cr_code", None) or getattr(awaitable, "gi_code", None)
        if code is None:
            return False  # a future, or nothing: the innermost frame has been asked
        if "task_done" in code.co_names:
            return True
        awaitable = getattr(awaitable, "cr_await", None) or getattr(awaitable, "gi_yieldfrom", None)
    return True


def _put_right(line: Line, orphan: Entry | None) -> None:
    """Let go of an item whose consumer is gone, and of those that the application removed behind the queue's back."""
    try:
        if orphan is not None and line.single is orphan:
            line.single = line.consumer = None
            orphan.ledger.unhold(orphan)
            line.quick = line.plain and not line.taken
        queue = line.queue()
        if queue is not None and line.by_identity is None:
            size = queue.qsize()
            if len(line.inside) > size:
                empty(line, "cancelled", "it was removed from the queue", size)
            else:
                line.inside.extend([None] * (size - len(line.inside)))
    except Exception:  # noqa: BLE001
        failed("queue.put_right")


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
    if (
        count > 0
        and loop is not None
        and any(each is not None and each.kind != "event" for each in list(line.inside)[:count])
    ):
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
            entry = entry_for_item(line, hop, max(began, hop.started))
            line.inside[place] = entry
            hop.ledger.count(entry, hop)
            hop.ledger.unhold(hop)
            hop.ledger.reveal(entry)
    except Exception:  # noqa: BLE001
        failed("queue.reveal")


def watched_queues() -> list[Any]:
    """Weak references to the queues of which something is known."""
    return [line.queue for line in list(watched)]


def worked_for() -> list[tuple[Entry, Any]]:
    """The hops whose items have been taken and are worked on, each with the task that took them."""
    taken = [(each.hop, each.task) for line in list(watched) for each in list(line.taken)] + [
        (line.single, line.consumer) for line in list(watched)
    ]
    return [
        (hop, task)
        for hop, reference in taken
        if hop is not None and (task := reference() if reference else None)
    ]


def _parked(task: Any, queue: Any, by_another: bool) -> bool:
    """Whether a task waits for an item of the queue, also by another task that only takes it."""
    waiter = getattr(task, "_fut_waiter", None)
    getters = list(getattr(queue, "_getters", None) or ())
    if waiter is None:
        return False
    if any(each is waiter for each in getters):
        return True
    return by_another and any(
        task in awaiting(taker) for each in getters[:MAX_GETTERS] for taker in awaiting(each)
    )


def what_event_waits_on(
    entry: Entry, timers: waits.Timers | None = None, rests_on: list[Any] | None = None
) -> tuple[dict[str, Any], bool]:
    """What an item in a queue, or one that was taken, waits on."""
    queue = entry.instance_of() if entry.instance_of is not None else None
    if entry.runner is None:
        depth = f" ({queue.qsize()} inside)" if queue is not None and hasattr(queue, "qsize") else ""
        line = known_line(queue) if queue is not None else None
        consumers = [
            taken.task() for taken in (line.taken if line is not None else ()) if taken.task is not None
        ]
        if line is not None and line.consumer is not None:
            consumers.append(line.consumer())
        told: list[waits.Wait] = [
            hop_waits.look_at(task, ledger=entry.ledger, timers=timers, rests_on=rests_on)
            for task in consumers[:4]
            if task is not None
        ]
        # Nobody who took from this queue is busy: only a consumer that comes for it can move it.
        moves = any(wait.moves for wait in told)
        what = f"an item in a queue{depth} that nobody has taken"
        item: dict[str, Any] = {
            "kind": "queue_get",
            "what": what,
            "moves": moves,
            "of": [wait.as_dict() for wait in told],
        }
        asks, expires = waits.asked(told) if len(told) == len(consumers) else ((), None)
        if asks:
            item["asks"] = [*asks]
        if expires is not None:
            item["expires"] = expires
        if rests_on is not None and len(told) != 1:
            rests_on.append(None)  # there is nobody, or somebody else may come for it
        return item, moves
    task = entry.runner()
    if task is None:
        return {"kind": "unknown", "what": "its consumer, which is gone", "moves": True}, True
    wait = hop_waits.look_at(task, ledger=entry.ledger, timers=timers, rests_on=rests_on)
    return {**wait.as_dict(), "what": f"its consumer, without task_done so far: {wait.what}"}, wait.moves


def waiting_items(hop: Entry, timers: waits.Timers | None = None) -> list[tuple[dict[str, Any], bool]]:
    """What the items wait on that count on `hop` without entries of their own."""
    out: list[tuple[dict[str, Any], bool]] = []
    left = hop.held
    for line in list(watched):
        if left <= 0 or len(out) >= 8:
            break
        consumers = [
            None if taken.counted and taken.task is None else (taken.task,)
            for taken in list(line.taken)
            if taken.hop is hop and taken.entry is None
        ]
        if line.single is hop:
            consumers.append(None if line.consumer is None else (line.consumer,))
        left -= len(consumers)
        for consumer in consumers:
            # One that is counted on this hop itself is told of as what it is.
            if consumer is None or (line.quiet and hop.done is None):
                continue
            task = consumer[0]() if consumer[0] is not None else None
            wait = hop_waits.look_at(task, timers=timers) if task is not None else None
            what = "a consumer, without task_done so far" + (f": {wait.what}" if wait is not None else "")
            told = {**(wait.as_dict() if wait is not None else {"kind": "unknown"}), "what": what}
            out.append((told, wait.moves if wait is not None else True))
        inside = sum(1 for each in list(line.inside) if each is hop)
        if inside:
            left -= inside
            items = f"{inside} items" if inside > 1 else "an item"
            what = f"{items} in a queue, which nobody has taken"
            out.append(({"kind": "queue_get", "what": what, "moves": True}, True))
    for others in also_held:
        count, told = others(hop, timers)
        left -= count
        out.extend(told)
    if left > 0:
        out.append(
            ({"kind": "unknown", "what": f"{left} items that were taken from queues", "moves": True}, True)
        )
    return out


def _in_child() -> None:
    # What is in the parent process's queues is the parent's.
    watched.clear()
    lines.clear()
    _adoptions.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
