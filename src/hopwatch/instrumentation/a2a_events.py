"""Which events of an execution has the SDK not processed yet? The event queue of an `ActiveTask` (a2a-sdk 1.x).

An event goes from the agent through two queues to the SDK's consumer, and from there through two more to each subscriber,
by loops that serve nothing else. An event counts from `enqueue_event` until the consumer has stored it and sent its pushes.
What subscribers have not taken of a task that is over counts as one (`a2a_streams`). Meanwhile the consumer, which is a
service loop, works for the hop that enqueued the event.

With detail `all` every item of every queue is an entry of its own, as in any other queue, and nothing counts here.
"""

from __future__ import annotations

import functools
import os
from collections import deque
from time import time_ns
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from hopwatch import hop_waits
from hopwatch import process as hopwatch_process
from hopwatch.instrumentation import a2a_streams, queues
from hopwatch.process import current, failed, reason_of

if TYPE_CHECKING:
    from hopwatch.instrumentation import Patches
    from hopwatch.ledger import Entry, Outcome


class Events:
    """What is known of the events of one `ActiveTask`."""

    __slots__ = (
        "active",
        "completion",
        "counted",
        "inside",
        "last",
        "latest",
        "over",
        "processed",
        "source",
        "taken",
        "times",
        "trouble",
    )

    def __init__(self, source: Any, active: Any, *, counted: bool) -> None:
        self.source = ref(source)
        self.active = ref(active)
        self.counted = counted
        """Whether they are counted here (detail `hops`)."""
        self.completion: Entry | None = None
        """Holds the execution open until its last event has been processed."""
        self.inside: deque[Entry | None] = deque()
        """The hops that events on their way were enqueued for, and are counted on, the oldest first."""
        self.times: deque[int] = deque()
        """When each was enqueued, Unix nanoseconds."""
        self.processed: Entry | None = None
        """The hop of the event that the consumer is at."""
        self.taken = self.last = False
        """Of 1.0, whose consumer has no method for one event: whether it is at one, and whether that ends an execution."""
        self.latest: Any = None
        """Weak reference to the latest execution that the queue was given to."""
        self.over = False
        """Whether the consumer has ended, so that nobody will process what comes now."""
        self.trouble = ""
        """Why it could not process an event: the store has failed, say, or the event is none that the SDK takes."""

    def consumer(self) -> Any:
        """The SDK's consumer task, if there is one."""
        active = self.active()
        return active._consumer_task if active is not None else None  # noqa: SLF001

    def execution(self) -> Entry | None:
        """The latest execution that the queue was given to, as far as it is known."""
        if self.completion is not None:
            return self.completion.parent
        return self.latest() if self.latest is not None else None

    def put(self, hop: Entry | None) -> None:
        """Count an event that is about to be enqueued for `hop`."""
        if hop is not None and not hop.ledger.hold(hop):
            # The hop has closed: the event is late, and needs an entry of its own to say so.
            late = hop.ledger.open("event", "event of a task that is over", hop)
            hop = late if late is not None and late.visible else None
            if hop is not None:
                hop.ledger.hold(hop)
                hop.finish()
        self.inside.append(hop)
        self.times.append(time_ns())

    def take_back(self, hop: Entry | None) -> None:
        """Say that the event was not enqueued after all."""
        for place in range(len(self.inside) - 1, -1, -1):
            if self.inside[place] is hop:
                del self.inside[place]
                del self.times[place]
                _let_go(hop)
                return

    def complete(self) -> None:
        """The last event of an execution has been processed."""
        completion, self.completion = self.completion, None
        if completion is not None:
            a2a_streams.wait_for_subscribers(self.active(), completion.parent)
            completion.finish()

    def end(self, outcome: Outcome = "cancelled", reason: str = "") -> None:
        """Let go of everything: the consumer has ended, or is gone."""
        self.over = True
        _known.discard(self)
        completion, self.completion = self.completion, None
        if completion is not None:
            if outcome == "abandoned":
                completion.finish("abandoned", reason)
            elif self.trouble:
                completion.finish("failed", self.trouble)
            else:
                completion.finish()
        left = [self.processed, *self.inside]
        self.processed = None
        self.inside.clear()
        self.times.clear()
        for hop in left:
            if hop is not None:
                if outcome == "abandoned" and completion is None:
                    lost = hop.ledger.open("event", "event that the SDK has not processed", hop)
                    if lost is not None:
                        lost.finish("abandoned", reason)
                _let_go(hop)


_known: set[Events] = set()
"""Those whose consumer has not ended."""


def _let_go(hop: Entry | None) -> None:
    if hop is not None:
        hop.ledger.unhold(hop)


def watch(active: Any) -> None:
    """Account for the events of an `ActiveTask` that has just been made."""
    source = active._event_queue_agent  # noqa: SLF001
    counted = not hopwatch_process.here().ledger.everything
    events = source._hopwatch_events = Events(source, active, counted=counted)  # noqa: SLF001
    _known.add(events)
    if counted:
        for each in (source, active._event_queue_subscribers):  # noqa: SLF001
            queues.ignore(_inner(each._incoming_queue))  # noqa: SLF001
    queues.keep_quiet(_inner(active._request_queue))  # noqa: SLF001


def _inner(queue: Any) -> Any:
    return getattr(queue, "wrapped", queue)


def of(queue: Any) -> Events | None:
    """What is known of an execution's event queue; None where no consumer of the 1.x engine reads it."""
    events: Events | None = getattr(queue, "_hopwatch_events", None)
    return events


def take_over(events: Events, execution: Entry, parent: Entry) -> None:
    """Count the request that the producer took from its queue on the execution that it has become."""
    active = events.active()
    if active is not None:
        queues.moved_to(_inner(active._request_queue), parent, execution)  # noqa: SLF001


def _enqueueing(original: Any) -> Any:
    """`EventQueueSource.enqueue_event`."""

    @functools.wraps(original)
    async def enqueue_event(self: Any, event: Any) -> Any:
        events = self._hopwatch_events
        if events is None or events.over or self._is_closed:
            return await original(self, event)
        hop = current.get()
        completion = events.completion
        if completion is not None and (
            type(event).__name__ == "_RequestCompleted" or isinstance(event, BaseException)
        ):
            # The producer says so after `execute`, for the request, which may have been answered.
            hop = completion.parent
        elif hop is None:
            # From a thread, as a rule, that has no context (`run_in_executor`): whoever has the queue works for its execution.
            hop = events.execution()
        if not events.counted:
            before = current.set(hop)
            try:
                return await original(self, event)
            finally:
                if current.get() is hop:
                    current.reset(before)
        try:
            events.put(hop)
        except Exception:  # noqa: BLE001
            failed("a2a.enqueue")
        try:
            return await original(self, event)
        except BaseException:
            events.take_back(hop)
            raise

    return enqueue_event


def _processing(original: Any) -> Any:
    """`EventConsumer._process_event`, of 1.1 and later."""

    @functools.wraps(original)
    async def _process_event(self: Any, event: Any) -> Any:
        events = self.active_task._event_queue_agent._hopwatch_events  # noqa: SLF001
        if events is None:
            return await original(self, event)
        hop = None
        last = type(event).__name__ == "_RequestCompleted"
        if events.inside:
            hop = events.processed = events.inside.popleft()
            began = events.times.popleft()
            if len(queues.waited) < WAITS_A_TICK:
                queues.waited.append(time_ns() - began)
        if hop is None:
            result = await original(self, event)
        else:
            current.set(hop)
            # Where this raises, the consumer goes on for the same hop, writes what failed, and ends.
            try:
                result = await original(self, event)
            except Exception as error:
                if not isinstance(
                    event, BaseException
                ):  # else it is the execution that has failed, and tells so
                    events.trouble = reason_of(error)
                raise
            if last:
                # While the event still holds the execution open: what its subscribers have not taken is not late.
                events.complete()
            current.set(None)
            events.processed = None
            hop.held -= 1
            if hop.done is not None and not hop.held:
                hop.ledger.settle(hop)
        if last:
            events.complete()
        return result

    return _process_event


def _dequeueing(original: Any) -> Any:
    """`EventQueueSource.dequeue_event`, of 1.0: its consumer is at an event from here until `task_done`."""

    @functools.wraps(original)
    async def dequeue_event(self: Any) -> Any:
        event = await original(self)
        events = self._hopwatch_events
        if events is not None:
            events.taken, events.last = True, type(event).__name__ == "_RequestCompleted"
            if events.inside:
                hop = events.processed = events.inside.popleft()
                began = events.times.popleft()
                if len(queues.waited) < WAITS_A_TICK:
                    queues.waited.append(time_ns() - began)
                if hop is not None:
                    current.set(hop)
        return event

    return dequeue_event


def _acknowledging(original: Any) -> Any:
    """`EventQueueSource.task_done`, of 1.0."""

    @functools.wraps(original)
    def task_done(self: Any) -> Any:
        result = original(self)
        events = self._hopwatch_events
        if events is not None and events.taken:
            events.taken = False
            if events.last:
                events.complete()
            hop, events.processed = events.processed, None
            if hop is not None:
                current.set(None)
                _let_go(hop)
        return result

    return task_done


WAITS_A_TICK = 256
"""How many waits of events are measured between two looks."""


def _running_consumer(original: Any) -> Any:
    """`ActiveTask._run_consumer`."""

    @functools.wraps(original)
    async def _run_consumer(self: Any) -> Any:
        try:
            return await original(self)
        finally:
            try:
                events = of(self._event_queue_agent)
                if events is not None:
                    events.end()
            except Exception:  # noqa: BLE001
                failed("a2a.consumer")

    return _run_consumer


def look(_: int) -> None:
    """Report events whose consumer was destroyed. Called by the ticker."""
    for events in list(_known):
        queues.depths.append(len(events.inside))
        active = events.active()
        completion = events.completion
        runner = completion.runner if completion is not None else None
        if (runner is not None and runner() is None) or (active is None and events.source() is None):
            events.end("abandoned", "the SDK's consumer of its events was destroyed")


WRAPPERS: Final = {
    "events_enqueue": _enqueueing,
    "events_consumer": _running_consumer,
    "events_process": _processing,
    "events_dequeue": _dequeueing,
    "events_task_done": _acknowledging,
}
"""What stands for each seam, by its `use` in the table of `a2a_seams`."""


def forget() -> None:
    """Let go of every event, as dropped: from here on nobody watches."""
    for events in list(_known):
        for hop in (events.processed, *events.inside):
            if hop is not None:
                hop.ledger.lose(hop)
        events.end()


def what_they_wait_on(hop: Entry, timers: Any = None) -> tuple[int, list[tuple[dict[str, Any], bool]]]:
    """How many events count on `hop`, and what they wait on: the SDK's consumers."""
    count = 0
    told: list[tuple[dict[str, Any], bool]] = []
    for events in list(_known):
        mine = sum(1 for each in (events.processed, *events.inside) if each is hop)
        if not mine:
            continue
        count += mine
        task = events.consumer()
        if task is None:
            told.append(({"kind": "unknown", "what": "an event without a consumer", "moves": True}, True))
            continue
        wait = hop_waits.look_at(task, timers=timers)
        what = f"the SDK's consumer, with {mine} events not processed: {wait.what}"
        told.append(({**wait.as_dict(), "what": what}, wait.moves))
    return count, told


def instrument_queue(patches: Patches, owner: Any) -> None:
    """Make room for what is known of an `EventQueueSource`."""
    patches.add(owner, "_hopwatch_events", None)
    if what_they_wait_on not in queues.also_held:
        queues.also_held.append(what_they_wait_on)
    hopwatch_process.on_tick(look)


def _in_child() -> None:
    # What the parent process has enqueued is the parent's.
    _known.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
