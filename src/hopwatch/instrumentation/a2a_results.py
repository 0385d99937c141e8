"""Which events of an execution has the SDK not stored yet? The event queues that a `ResultAggregator` reads.

That is the engine of a2a-sdk 0.3, and of the legacy handler of 1.x. Whoever sent the message reads the execution's events from its
queue: the request while it is not answered, then a task of its own (`_continue_consuming`, or `consume_all` where the caller of a
stream has left). Both acknowledge an event before they store it. So an event counts here from `enqueue_event` until the one who took it
comes for the next one. A task that reads on after the answer counts on the execution, and is told of if it is destroyed.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from asyncio import current_task
from collections import deque
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from hopwatch import attributes as names
from hopwatch import hop_waits
from hopwatch import process as hopwatch_process
from hopwatch.instrumentation import queues
from hopwatch.ledger import Note
from hopwatch.process import current, failed
from hopwatch.waits.chain import own

if TYPE_CHECKING:
    from hopwatch.instrumentation import Patches
    from hopwatch.ledger import Entry

_CONSUMER: Final = "a2a.server.events.event_consumer"
LOOKED_AT: Final = 64
"""Among how many entries below a hop the one of a task is looked for."""


class Step:
    """What stays the same from one event that is taken to the next."""

    __slots__ = ("__weakref__",)


class Events:
    """What is known of the events of one `EventQueue`."""

    __slots__ = (
        "__weakref__",
        "consumer",
        "entering",
        "execution",
        "inside",
        "over",
        "processed",
        "producer",
        "queue",
        "reader",
        "reading_on",
        "stays",
        "stepping",
    )

    def __init__(self, queue: Any) -> None:
        self.queue = ref(queue)
        self.inside: deque[Entry | None] = deque()
        """The hops that the events in the queue are counted on, the oldest first; None where nothing counts them."""
        self.entering = 0
        """How many of these are not in the queue yet."""
        self.processed: list[Entry] = []
        """The hops of the events that somebody has taken and is at."""
        self.reader: object = None
        """Stands for the one who takes events at present."""
        self.stepping = False
        """Whether that one is about to take an event, and may have it already."""
        self.over = False
        """Whether whoever read has failed: the SDK has nobody read on then, and keeps the queue."""
        self.producer: Any = None
        """Weak reference to the task that runs the execution."""
        self.execution: Any = None
        """Weak reference to its hop."""
        self.reading_on: Any = None
        """Weak reference to the entry of the task that reads on after the answer."""
        self.stays = Step()
        """Stands for this state of the queue: another one takes its place with each event that is taken."""
        self.consumer: Any = None
        """Weak reference to the task that took the last one."""

    def put(self, hop: Entry | None) -> Entry | None:
        """Count an event that is about to be enqueued for `hop`; returns what it is counted on."""
        if hop is not None and (hop.ledger.everything or not hop.ledger.hold(hop)):
            # It has to be seen; or its hop has closed, so that it is late, and needs an entry of its own to say so.
            name = "event of a task that is over" if hop.closed else "event"
            entry = hop.ledger.open("event", name, hop)
            hop = entry if entry is not None and entry.visible else None
            if hop is not None:
                hop.ledger.hold(hop)
        self.inside.append(hop)
        self.entering += 1
        return hop

    def take(self) -> Entry | None:
        """The event that was just taken is the oldest one: what it is counted on."""
        self.stays = Step()
        hop = self.inside.popleft() if self.inside else None
        if hop is not None:
            self.processed.append(hop)
        return hop

    def done(self, hop: Entry | None) -> None:
        """An event that was taken has been worked off."""
        if hop is not None and hop in self.processed:
            self.processed.remove(hop)
            _let_go(hop)

    def agree(self) -> None:
        """Let go of what is not in the queue any more: it was closed, or read by somebody whom nobody watches."""
        try:
            queue = self.queue()
            if queue is None:
                return
            there = queue.queue.qsize() + self.entering + self.stepping
            while len(self.inside) > there:
                _let_go(self.inside.popleft())
        except Exception:  # noqa: BLE001
            failed("a2a.results.agree")

    def give_up(self) -> None:
        """Let go of what is inside: the reader has failed, or the execution has, which tells of itself."""
        self.over = True
        while self.inside:
            _let_go(self.inside.popleft())

    def lose(self, reason: str) -> None:
        """Whoever should have worked them off is gone: what is left never will be."""
        left = [*self.processed, *self.inside]
        self.processed.clear()
        self.inside.clear()
        told: set[int] = set()
        for hop in left:
            if hop is None:
                continue
            if id(hop) not in told:
                told.add(id(hop))
                lost = hop.ledger.open("event", "event that the SDK has not stored", hop)
                if lost is not None:
                    lost.finish("abandoned", reason)
            _let_go(hop)


_busy: dict[int, Events] = {}
"""Those with events that have not been worked off, by their ids: kept, for they are told of when their queue is collected."""


def _let_go(hop: Entry | None) -> None:
    if hop is None:
        return
    try:
        hop.ledger.unhold(hop)
        if hop.kind == "event":
            hop.finish()
    except Exception:  # noqa: BLE001
        failed("a2a.results.event")


def of(queue: Any) -> Events | None:
    """What is known of a queue of this engine; None for any other queue."""
    events = getattr(queue, "_hopwatch_results", None)
    return events if isinstance(events, Events) else None


def _inner(queue: Any) -> Any:
    return getattr(queue, "wrapped", queue)


def making(wrapped: Any, queue: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`__init__` of a queue: from here on its events are accounted for here."""
    result = wrapped(*args, **kwargs)
    try:
        queue._hopwatch_results = Events(queue)  # noqa: SLF001
        queues.ignore(_inner(queue.queue))
    except Exception:  # noqa: BLE001
        failed("a2a.results.queue")
    return result


def _enqueueing(original: Any) -> Any:
    """`enqueue_event` of a queue."""

    @functools.wraps(original)
    async def enqueue_event(self: Any, event: Any) -> Any:
        events = of(self)
        if events is None or events.over or self._is_closed:
            return await original(self, event)
        counted = False
        try:
            events.agree()
            events.put(current.get())
            counted = True
            _busy[id(events)] = events
        except Exception:  # noqa: BLE001
            failed("a2a.results.enqueue")
            _lose(current.get())
        try:
            return await original(self, event)
        finally:
            if counted:
                # Where it was refused, or the queue was closed meanwhile, it is not there.
                events.entering -= 1
                events.agree()

    return enqueue_event


def _lose(hop: Entry | None) -> None:
    if hop is not None:
        hop.ledger.lose(hop)


def _acknowledging(original: Any) -> Any:
    """`task_done` of a queue: whoever reads it otherwise than by an `EventConsumer` is through with the event."""

    @functools.wraps(original)
    def task_done(self: Any) -> Any:
        result = original(self)
        events = of(self)
        if events is not None:
            events.agree()
        return result

    return task_done


def _closing(original: Any) -> Any:
    """`close` of a queue, which may throw away what is in it."""

    @functools.wraps(original)
    async def close(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return await original(self, *args, **kwargs)
        finally:
            events = of(self)
            if events is not None:
                events.agree()

    return close


def _consuming(original: Any) -> Any:
    """`EventConsumer.consume_all`: what it yields is worked off when the next one is asked for."""

    @functools.wraps(original)
    async def consume_all(self: Any) -> Any:
        stream = original(self)
        events = of(self.queue)
        if events is None:
            try:
                async for event in stream:
                    yield event
            finally:
                await stream.aclose()
            return
        reading = events.reader = object()
        events.over = False
        hop: Entry | None = None
        adopted = False
        try:
            while True:
                events.reader, events.stepping = reading, True
                task = current_task()
                if events.consumer is None or events.consumer() is not task:
                    events.consumer = ref(task) if task is not None else None
                    try:
                        _read_on(task, events)
                    except Exception:  # noqa: BLE001
                        failed("a2a.results.consumer")
                try:
                    event = await stream.__anext__()
                except StopAsyncIteration:
                    return
                except Exception:
                    events.give_up()
                    raise
                finally:
                    if events.reader is reading:
                        events.stepping = False
                hop = events.take()
                before = current.get()
                # Who is in the middle of a request works for that, whatever it takes.
                adopted = (
                    hop is not None and before is not hop and (before is None or before.kind == "execution")
                )
                if adopted:
                    current.set(hop)
                yield event
                if adopted:
                    current.set(before)
                events.done(hop)
                hop = None
        finally:
            # Where the task that read was destroyed, it is told of itself; what nobody has read stays counted.
            events.done(hop)
            if events.reader is reading:
                events.reader, events.stepping = None, False
                events.agree()
            if not events.inside and not events.processed:
                _busy.pop(id(events), None)
            await stream.aclose()

    return consume_all


def runs(task: Any, name: str) -> bool:
    """Whether a task was made of a method, by the end of its qualified name."""
    coroutine = task.get_coro() if task is not None else None
    return str(getattr(coroutine, "__qualname__", "")).endswith(name)


def _read_on(task: Any, events: Events) -> None:
    """A task of its own reads on: it counts on the execution, and works for it, and no request waits for it."""
    if not (runs(task, "ResultAggregator._continue_consuming") or runs(task, "ResultAggregator.consume_all")):
        return
    hop = current.get()
    execution = events.execution() if events.execution is not None else None
    if execution is None or execution.closed or hop is None or hop is execution:
        return
    ledger = hop.ledger
    if ledger is not execution.ledger:
        return
    for below in ledger.below(hop, LOOKED_AT):
        if below.runner is not None and below.runner() is task:
            entry = ledger.promote(below) if isinstance(below, Note) else below
            entry.quiet = True
            ledger.move(entry, execution)
            events.reading_on = ref(entry)
            current.set(execution)
            return


def look(_: int) -> None:
    """Report events whose queue was collected. Called by the ticker."""
    for key, events in list(_busy.items()):
        if not events.inside and not events.processed:
            _busy.pop(key, None)
        elif events.queue() is None:
            _busy.pop(key, None)
            events.lose("the SDK's event queue was collected with the event in it")


def what_they_wait_on(hop: Entry, timers: Any = None) -> tuple[int, list[tuple[dict[str, Any], bool]]]:
    """How many events count on `hop`, and what they wait on: whoever reads them."""
    count = 0
    told: list[tuple[dict[str, Any], bool]] = []
    for events in list(_busy.values()):
        mine = sum(1 for each in (*events.processed, *events.inside) if each is hop)
        if not mine:
            continue
        count += mine
        task = events.consumer() if events.consumer is not None else None
        if task is None or task.done():
            # Whoever read goes on in another task before its own has ended, or not at all: the store has failed, say.
            left = events.consumer is not None
            what = "an event whose reader has ended" if left else "an event that nobody reads"
            told.append(({"kind": "unknown", "what": what, "moves": not left}, not left))
            continue
        wait = hop_waits.look_at(task, timers=timers)
        entry = events.reading_on() if events.reading_on is not None else None
        if entry is not None and wait.file is not None:
            # Where it is collected, its coroutine may be closed already and tell nothing any more.
            entry.set(names.HOP_WAITS, json.dumps(wait.as_dict(), ensure_ascii=False))
        what = f"the SDK's consumer, with {mine} events not stored: {wait.what}"
        told.append(({**wait.as_dict(), "what": what}, wait.moves))
    return count, told


def polling(frames: list[Any]) -> tuple[int, object] | None:
    """Tell of an `EventConsumer` that asks an empty queue twice a second whether there is an event (`hop_waits.polling`).

    A turn of that brings something only if there is an event, the queue is closed, or the execution has failed meanwhile.
    """
    module = sys.modules.get(_CONSUMER)
    if module is None:
        return None
    for place in range(len(frames) - 1):
        frame = frames[place]
        if frame.name != "consume_all" or frames[place + 1].name != "wait_for":
            continue
        if not frame.file.replace("\\", "/").endswith("/a2a/server/events/event_consumer.py"):
            continue
        consumer = own(frame, module.EventConsumer)
        if consumer is None or consumer._exception is not None:  # noqa: SLF001
            return None
        events = of(consumer.queue)
        producer = events.producer() if events is not None and events.producer is not None else None
        if (
            events is None
            or events.inside
            or consumer.queue._is_closed  # noqa: SLF001
            or _inner(consumer.queue.queue).qsize()
        ):
            return None
        if producer is not None and (not producer.done() or producer.cancelled()):
            return place + 1, events.stays
        return None
    return None


WRAPPERS: Final = {
    "results_enqueue": _enqueueing,
    "results_task_done": _acknowledging,
    "results_close": _closing,
    "results_consume": _consuming,
}
"""What stands for each seam, by its `use` in the table of `a2a_seams`."""


def forget() -> None:
    """Let go of every event, as dropped: from here on nobody watches."""
    for events in list(_busy.values()):
        left = [hop for hop in (*events.processed, *events.inside) if hop is not None]
        events.processed.clear()
        events.inside.clear()
        for hop in left:
            hop.ledger.lose(hop)
            _let_go(hop)
    _busy.clear()


def instrument_queue(patches: Patches, owner: Any) -> None:
    """Replace what events go through, in the `EventQueue` of 0.3 or the `EventQueueLegacy` of 1.x."""
    patches.add(owner, "_hopwatch_results", None)
    if what_they_wait_on not in queues.also_held:
        queues.also_held.append(what_they_wait_on)
    hop_waits.polling = polling
    hopwatch_process.on_tick(look)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_busy.clear)
"""What the parent process has enqueued is the parent's."""
