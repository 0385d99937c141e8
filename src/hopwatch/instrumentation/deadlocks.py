"""Which tasks of this process wait for one another for ever? A look a tick, and one report for each deadlock.

A cycle is told once two looks in a row, a tick apart, have found the very same waits. Nothing is added to a wait: what is
looked at is what the ledger has open for longer than 0.25 s, waits for locks and full queues first, within a budget a tick.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from opentelemetry import _logs

from hopwatch import attributes as names
from hopwatch import hop_waits, records, telemetry, waits
from hopwatch import process as hopwatch_process
from hopwatch.hop_waits import holder_of
from hopwatch.instrumentation import queues
from hopwatch.instrumentation.takers import permits_of, takers_of
from hopwatch.process import encodable, failed
from hopwatch.waits.reach import awaiting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hopwatch.instrumentation import Patches
    from hopwatch.ledger import Entry, Note

SUSPECT_AFTER: Final = 250_000_000
"""Nanoseconds after which an open entry is looked at."""
BUDGET: Final = 2_000_000
"""Nanoseconds a tick for looking."""
_LOCKS: Final = frozenset({"wait for Lock", "wait for Semaphore"})
LINES: Final = 256
"""How many queues are looked at in one tick."""
MAX_REPORTED: Final = 256
"""How many deadlocks that last are known; what comes after is not told."""


class Reported(NamedTuple):
    """A deadlock that has been told, and what the markers of its hops say of it."""

    deadlock: waits.Deadlock
    told: dict[str, Any]


class Watch:
    """What one process has seen of deadlocks."""

    def __init__(self) -> None:
        self.free = waits.Free()
        self.candidates: list[waits.Deadlock] = []
        """What the last look found."""
        self.reported: list[Reported] = []
        self.concerned: WeakKeyDictionary[Entry, tuple[Reported, bool]] = WeakKeyDictionary()
        """By hop, the deadlock that holds it up, and whether the hop's own task is part of it."""
        self.round: list[Entry | Note] = []
        """What is left of this round over all that is open."""
        self.lines: list[Any] = []
        self.rest = 0
        """When to look again, by `perf_counter_ns`: a look that took long is paid for by the next ones."""


_watch = Watch()


def working_on(queue: object) -> list[Any] | None:
    """The tasks that took an item from a queue and have not called `task_done` for it; None where that is not known."""
    line = queues.known_line(queue)
    if line is None:
        return None
    takers = [taken.task for taken in list(line.taken)]
    if line.single is not None:
        takers.append(line.consumer)
    tasks = [taker() if taker is not None else None for taker in takers]
    return None if None in tasks else tasks


def _tasks_of(loop: object) -> Any:
    try:
        return asyncio.all_tasks(loop)  # type: ignore[arg-type]
    except RuntimeError:  # they came and went while they were counted
        return None


KNOWN: Final = waits.Known(holder_of, permits_of, takers_of, working_on, _tasks_of)


def look(now: int) -> None:
    """Look for deadlocks among what has been open for a while. Called by the ticker."""
    watch = _watch
    began = time.perf_counter_ns()
    if watch.reported:
        watch.reported = [each for each in watch.reported if each.deadlock.holds()]
    if began < watch.rest and not watch.candidates:
        return
    process = hopwatch_process.here()
    opened: list[Entry | Note] = [*process.ledger.open_hops(), *process.ledger.invisible()]
    before = now - SUSPECT_AFTER
    locks = _at_locks(opened, before)
    # From here on: what comes first must get its turn, however much is open.
    until = time.perf_counter_ns() + BUDGET
    suspects = _suspects(watch, opened, locks, before, until - BUDGET // 4)
    found = waits.deadlocks(suspects, KNOWN, free=watch.free, until=until)
    last, watch.candidates = watch.candidates, []
    for deadlock in found:
        if any(deadlock.same_as(other) for other in last):
            if len(watch.reported) < MAX_REPORTED:
                _report(watch, deadlock)
        else:
            watch.candidates.append(deadlock)
    # On the average of many ticks it stays within the budget, whatever one look has cost.
    took = time.perf_counter_ns() - began
    ticks = took // BUDGET
    watch.rest = began + int(ticks * telemetry.TICK * 1e9) if ticks > 1 else 0


def _at_locks(opened: list[Entry | Note], before: int) -> list[Any]:
    """A task for each lock or semaphore that is waited for: any will do, for the edges go on from who holds it."""
    found: dict[Any, Any] = {}
    for entry in opened:
        if entry.kind == "lock" and entry.name in _LOCKS and entry.started < before and entry.done is None:
            lock = (getattr(entry, "attributes", None) or {}).get(names.LOCK_NAME, entry)
            if lock not in found:
                task = entry.runner() if entry.runner is not None else None
                if task is not None:
                    found[lock] = task
    return list(found.values())


def _suspects(
    watch: Watch, opened: list[Entry | Note], locks: list[Any], before: int, until: int
) -> Iterator[Any]:
    """The tasks to begin with. Every cycle leads through a lock, a full queue, a join, or a task that awaits others."""
    for deadlock in watch.candidates:
        yield from deadlock.tasks()[:1]
    yield from locks
    if not watch.lines:
        watch.lines = queues.watched_queues()
    for _ in range(min(LINES, len(watch.lines))):
        queue = watch.lines.pop()()
        for waiting in _waiting_at(queue):
            yield from awaiting(waiting)[:1]
    if not watch.round:
        watch.round = opened
    while watch.round and time.perf_counter_ns() < until:
        entry = watch.round.pop()
        if (
            entry.started < before
            and entry.done is None
            and entry.runner is not None
            and entry.kind != "lock"
        ):
            task = entry.runner()
            if task is not None:
                yield task


def _waiting_at(queue: Any) -> list[Any]:
    """A future of each sort that waits for room in a queue, or for all of it to be worked off."""
    putters = getattr(queue, "_putters", None)
    joining = getattr(getattr(queue, "_finished", None), "_waiters", None)
    return [next(iter(list(each))) for each in (putters, joining) if each]


# Telling -------------------------------------------------------------------------------------------------------------


def _report(watch: Watch, deadlock: waits.Deadlock) -> None:
    told = json.loads(encodable(json.dumps(deadlock.as_dict(), ensure_ascii=False)))
    reported = Reported(deadlock, told)
    watch.reported.append(reported)
    for task, future in deadlock.waits:
        watch.free.add(task(), future())  # it need not be found again
    hops = _concern(watch, reported)
    process = hopwatch_process.here()
    process.telemetry.deadlock_found(hops)
    try:
        first = next(iter(hops), None)
        edges = told["edges"]
        attributes: dict[str, Any] = {
            "event.name": names.EVENT_DEADLOCK,
            names.DEADLOCK_TASKS: deadlock.size,
            names.DEADLOCK_EDGES: json.dumps(edges, ensure_ascii=False),
        }
        _logs.get_logger(names.SCOPE).emit(
            _logs.LogRecord(
                timestamp=time.time_ns(),
                trace_id=int((first.cascade if first else "") or "0", 16),
                span_id=int((first.id if first else "") or "0", 16),
                severity_text="ERROR",
                severity_number=_logs.SeverityNumber.ERROR,
                body=f"Deadlock of {deadlock.size} task{'s' * (deadlock.size > 1)}: {told['words']}",
                attributes=attributes,
            )
        )
    except Exception:  # noqa: BLE001
        failed("deadlock.report")


def _concern(watch: Watch, reported: Reported) -> list[Entry]:
    """Find the hops that a deadlock holds up, and make the tasks that are part of it visible."""
    ledger = hopwatch_process.here().ledger
    inside = {id(task): task for task in reported.deadlock.tasks()}
    behind = {id(task): task for each in reported.deadlock.behind if (task := each()) is not None}
    hops: dict[int, tuple[Entry, bool]] = {}
    opened: list[Entry | Note] = [*ledger.open_hops(), *ledger.invisible()]
    own = {
        id(task)
        for hop in ledger.open_hops()
        if hop.runner is not None and (task := hop.runner()) is not None
    }
    for entry in opened:
        task = entry.runner() if entry.runner is not None else None
        if task is None or entry.done is not None or (id(task) not in inside and id(task) not in behind):
            continue
        member = id(task) in inside
        hop: Entry | None
        if entry.visible:
            hop = entry if not hasattr(entry, "entry") else entry.entry
        elif member and entry.kind == "task" and id(task) not in own:
            hop = ledger.reveal(entry)
            records.set_location(hop)
        else:
            hop, member = entry.parent, False
        if hop is not None and not hop.closed:
            hops[id(hop)] = (hop, member or hops.get(id(hop), (hop, False))[1])
    for hop, task in queues.worked_for():
        if id(task) in inside and not hop.closed:
            hops.setdefault(id(hop), (hop, False))
    for hop, member in hops.values():
        watch.concerned[hop] = (reported, member)
    ordered = sorted(hops.values(), key=lambda each: not each[1])
    return [hop for hop, _ in ordered]


def explain(hop: Entry) -> tuple[dict[str, Any], bool] | None:
    """Tell of the deadlock that holds a hop up, as long as it lasts."""
    known = _watch.concerned.get(hop)
    if known is None:
        return None
    reported, member = known
    if not reported.deadlock.holds():
        _watch.concerned.pop(hop, None)
        return None
    return reported.told, member


def instrument(_: Patches) -> None:
    """Have the ticker look for deadlocks."""
    hop_waits.explain_deadlock = explain
    hopwatch_process.on_tick(look)


def forget() -> None:
    """Let go of what was seen."""
    global _watch  # noqa: PLW0603 - one process has one watch
    _watch = Watch()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget)
