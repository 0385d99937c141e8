"""Have all subscribers of a task that is over taken its last events? The streams of an `ActiveTask` (a2a-sdk 1.x).

Its producer closes the subscribers' queues at the end, and waits there until every event has been taken and acknowledged. A
subscriber that stalls without hanging up keeps it waiting for ever. So an execution that ends its task, while somebody
subscribes, stays open until its producer has ended. That is one entry an execution, and nothing an event.
"""

from __future__ import annotations

import functools
import os
import sys
from asyncio import current_task
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet, ref

from hopwatch import attributes as names
from hopwatch import hop_waits, waits
from hopwatch import process as hopwatch_process
from hopwatch.instrumentation import queues
from hopwatch.process import current, failed

if TYPE_CHECKING:
    from hopwatch.instrumentation import Patches
    from hopwatch.ledger import Entry

MAX_TOLD = 8
"""How many subscribers are told of one by one."""


class Delivery:
    """The end of a task that somebody subscribes to."""

    __slots__ = ("entry", "source")

    def __init__(self, entry: Entry, source: Any) -> None:
        self.entry = entry
        self.source = ref(source)


_deliveries: dict[int, Delivery] = {}
"""Those that are not over, by the id of their entry."""


def wait_for_subscribers(active: Any, execution: Entry | None) -> None:
    """Hold an execution open until its producer has ended, where its task is over and somebody subscribes to it.

    Args:
        active: the SDK's `ActiveTask`, whose consumer has processed the last event of the execution.
        execution: its hop, which is open.
    """
    try:
        source, producer = active._event_queue_subscribers, active._producer_task  # noqa: SLF001
        if execution is None or producer is None or producer.done():
            return
        if not source._sinks or not active._is_finished.is_set():  # noqa: SLF001 - it waits for the next message
            return

        def prepare(entry: Entry) -> None:
            entry.runner = ref(producer)

        entry = execution.ledger.open("event", "delivery of the last events", execution, prepare=prepare)
        if entry is None:
            return
        _deliveries[id(entry)] = Delivery(entry, source)
        producer.add_done_callback(functools.partial(_delivered, entry))
    except Exception:  # noqa: BLE001
        failed("a2a.delivery")
        if execution is not None:
            execution.ledger.lose(execution)


def _delivered(entry: Entry, _: Any = None) -> None:
    try:
        if _deliveries.pop(id(entry), None) is not None:
            entry.finish()
    except Exception:  # noqa: BLE001
        failed("a2a.delivered")


def look(_: int) -> None:
    """End what no done callback will end: the producer was destroyed. Called by the ticker."""
    for key, delivery in list(_deliveries.items()):
        entry = delivery.entry
        if entry.runner() is None:
            _deliveries.pop(key, None)
            entry.finish(
                "abandoned", "the SDK's producer was destroyed before its subscribers had taken all events"
            )
        elif entry.visible:
            entry.set(names.QUEUE_DEPTH, sum(_undelivered(sink) for sink in _sinks(delivery)))


def _tapping(original: Any) -> Any:
    """`EventQueueSource.tap`: the running task is about to read from the queue that it gets."""

    @functools.wraps(original)
    async def tap(self: Any, *args: Any, **kwargs: Any) -> Any:
        sink = await original(self, *args, **kwargs)
        try:
            hop, task = current.get(), current_task()
            sink._hopwatch_reader = (  # noqa: SLF001
                ref(task) if task is not None else None,
                ref(hop) if hop is not None else None,
            )
            sinks = self._hopwatch_sinks
            if sinks is None:
                sinks = self._hopwatch_sinks = WeakSet()  # the SDK forgets a queue when it begins to close it
            sinks.add(sink)
        except Exception:  # noqa: BLE001
            failed("a2a.tap")
        return sink

    return tap


def _leaving(original: Any) -> Any:
    """`EventQueueSink.close`: at once, it is called by a subscriber that has left."""

    @functools.wraps(original)
    async def close(self: Any, *args: Any, **kwargs: Any) -> Any:
        if args[0] if args else kwargs.get("immediate"):
            self._hopwatch_left = True
        return await original(self, *args, **kwargs)

    return close


def _sinks(delivery: Delivery) -> list[Any]:
    source = delivery.source()
    sinks = getattr(source, "_hopwatch_sinks", None)
    return [] if sinks is None else [sink for sink in _copy(sinks) if _undelivered(sink)]


def _copy(sinks: Any) -> list[Any]:
    for _ in range(8):
        try:
            return list(sinks)
        except RuntimeError:  # the loop's thread added to it meanwhile
            continue
    return []


def _undelivered(sink: Any) -> int:
    queue = getattr(sink._queue, "wrapped", sink._queue)  # noqa: SLF001 - culsans' is behind a proxy
    return int(getattr(queue, "_unfinished_tasks", 0))


def what_it_waits_on(delivery: Delivery, timers: waits.Timers | None = None) -> tuple[dict[str, Any], bool]:
    """The producer, the queues with what has not been taken from them, and who should."""
    producer = delivery.entry.runner()
    if producer is None:
        return {"kind": "unknown", "what": "the SDK's producer, which is gone", "moves": True}, True
    closing = hop_waits.look_at(producer, timers=timers)
    sinks = _sinks(delivery)
    if not sinks:
        return closing.as_dict(), True
    parts: list[dict[str, Any]] = []
    phrases = []
    moves = closing.moves or len(sinks) > MAX_TOLD
    for sink in sinks[:MAX_TOLD]:
        who, wait = _reader(sink, timers)
        number = _undelivered(sink)
        events = f"{number} {{}}event{'s' * (number != 1)} from queue {id(sink):#x}"
        if sink._hopwatch_left:  # noqa: SLF001
            # Until 1.1 the SDK does not acknowledge what it does not hand on (a2a-sdk 1.1.5, `ActiveTask.subscribe`).
            phrases.append(f"{who}, which has left, to acknowledge {events.format('')}")
            continue
        moves = moves or wait is None or wait.moves
        phrases.append(f"{who} to take {events.format('undelivered ')}")
        if wait is not None:
            parts.append(wait.as_dict())
    what = f"subscriber {' and '.join(phrases)}; until then '{producer.get_name()}' cannot close its queues"
    return {**closing.as_dict(), "kind": "queue_join", "what": what, "moves": moves, "of": parts}, moves


def _reader(sink: Any, timers: waits.Timers | None) -> tuple[str, waits.Wait | None]:
    """Who subscribed, and what that one waits on; None where its task has ended, and somebody else reads, or nobody."""
    reader = getattr(sink, "_hopwatch_reader", None) or (None, None)
    task = reader[0]() if reader[0] is not None else None
    hop = reader[1]() if reader[1] is not None else None
    names_of = [f"{hop.kind} {hop.name} ({hop.id})"] if hop is not None and hop.visible else []
    if task is None or task.done():
        return " ".join(names_of) or "(unknown)", None
    wait = hop_waits.look_at(task, timers=timers)
    return " of ".join([f"'{task.get_name()}'", *names_of]), wait


def explain(
    entry: Entry, timers: waits.Timers | None = None, rests_on: list[Any] | None = None
) -> tuple[dict[str, Any], bool]:
    """What an event waits on, of a queue or of a stream."""
    delivery = _deliveries.get(id(entry))
    if delivery is not None:
        if rests_on is not None:
            rests_on.append(None)
        return what_it_waits_on(delivery, timers)
    return queues.what_event_waits_on(entry, timers, rests_on)


def instrument(patches: Patches, owner: Any) -> None:
    """Make room for what is known of the queues of an `EventQueueSource`."""
    patches.add(owner, "_hopwatch_sinks", None)
    sink = getattr(sys.modules[owner.__module__], "EventQueueSink", None)
    if sink is not None:
        patches.add(sink, "_hopwatch_reader", None)
        patches.add(sink, "_hopwatch_left", False)
    hop_waits.explain_event = explain
    hopwatch_process.on_tick(look)


WRAPPERS: Final = {
    "streams_tap": _tapping,
    "streams_leave": _leaving,
}
"""What stands for each seam, by its `use` in the table of `a2a_seams`."""


def forget() -> None:
    """Let go of every delivery, as dropped: from here on nobody watches."""
    for delivery in list(_deliveries.values()):
        hop = delivery.entry.parent
        _delivered(delivery.entry)
        if hop is not None:
            hop.ledger.lose(hop)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_deliveries.clear)
