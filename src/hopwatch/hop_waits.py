"""What does an open hop wait on? By the tasks that do its work, and by what the instrumentations alone know.

What an instrumentation knows it says by a function that it puts here; where none does, nothing is known.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from hopwatch import attributes as names
from hopwatch import waits
from hopwatch.ledger import Note
from hopwatch.process import here as process_here

if TYPE_CHECKING:
    from collections.abc import Callable

    from hopwatch.ledger import Entry, Ledger

LOOK_BELOW: Final = 16
"""How many invisible entries of a hop are looked at; one with more is taken to move."""

explain_event: (
    Callable[[Entry, waits.Timers | None, list[Any] | None], tuple[dict[str, Any], bool]] | None
) = None
"""Says what an item in a queue waits on, as `of_entry` does; set by who instruments queues."""
explain_held: Callable[[Entry, waits.Timers | None], list[tuple[dict[str, Any], bool]]] | None = None
"""Says what the items wait on that a hop only counts; set by who instruments queues."""
asks: Callable[[object], str | None] | None = None
"""Tells whose answer a task awaits; set by who instruments the client of HTTP."""
owes_answer: Callable[[Entry], bool] | None = None
"""Tells whether nothing of the answer to a request has gone out; set by who instruments the server of HTTP."""
explain_outside: Callable[[Entry, waits.Timers | None], tuple[dict[str, Any], bool] | None] | None = None
"""Says what a job, a thread or a timer does; set by who instruments these."""
working_on: Callable[[object], list[Any] | None] | None = None
"""Tells who took items from a queue and has not called `task_done`; set by who instruments queues."""
seen_holding: Callable[[object, waits.Timers], list[Any] | None] | None = None
"""Tells who holds a lock that nobody noted when it was taken; set by who instruments locks."""
is_read: Callable[[object], bool | None] | None = None
"""Tells whether anybody still reads from a connection; None where that is not known. Set by who instruments connections."""
polling: Callable[[list[Any]], tuple[int, object] | None] | None = None
"""Tells of a wait whose timeout changes nothing, as `waits.of_task` has it; set by who instruments what polls."""
explain_deadlock: Callable[[Entry], tuple[dict[str, Any], bool] | None] | None = None
"""Tells of the deadlock that holds a hop up, and whether the hop's own task is part of it; set by who looks for them."""


def what_it_waits_on(
    hop: Entry, timers: waits.Timers | None = None, rests_on: list[Any] | None = None
) -> tuple[dict[str, Any] | None, bool]:
    """Say what an open hop waits on.

    Args:
        hop: the hop.
        timers: those of the loops, where several hops are looked at in a row.
        rests_on: is filled with weak references to the futures that the answer rests on, and with None for what is not known.

    Returns:
        The form of `hopwatch.waits.Wait.as_dict`, with what the invisible entries below it wait on under `of`, and
        whether any of it may move by itself.
    """
    found = of_entry(hop, timers, rests_on) if hop.done is None else None
    deadlock = explain_deadlock(hop) if explain_deadlock is not None else None
    if found is not None and deadlock is not None and deadlock[1]:
        found = ({**found[0], "moves": False}, False)
    below = hop.ledger.below(hop, LOOK_BELOW + 1)
    many = len(below) > LOOK_BELOW
    runner = hop.runner() if hop.runner is not None else None
    parts: list[tuple[dict[str, Any], bool]] = []
    for entry in below[:LOOK_BELOW]:
        if entry.quiet and found is not None:
            continue  # it waits for this hop, not the other way round
        if entry.runner is not None and runner is not None and entry.runner() is runner:
            continue  # the hop's own task
        parts.append(
            of_entry(entry, timers, rests_on)
            or ({"kind": "unknown", "what": entry.name, "moves": True}, True)
        )
    held = hop.held
    if held and explain_held is not None:
        of_items = explain_held(hop, timers)
        parts.extend(of_items)
        if of_items and rests_on is not None:
            rests_on.append(None)
    if found is None and hop.done is None:
        # No task that could be looked at does its work: a callback, or a thread that says `with hopwatch.cascade`.
        told: dict[str, Any] = {"kind": "unknown", "what": "its own work, which no asyncio task does"}
        moves = True
    elif found is None:
        what = f"its own work is over; {len(below) + held}{' or more' if many else ''} of what it started goes on"
        told = {"kind": "gather", "what": what}
        moves = many or not parts
    else:
        told, moves = dict(found[0]), found[1]
    if parts and not told.get("of"):
        told["of"] = [part for part, _ in parts]
    if deadlock is not None:
        told["deadlock"] = deadlock[0]
    _tell_of_answers(hop, told, [*parts, (told, moves)], many=many)
    moves = moves or many or any(part for _, part in parts)
    told["moves"] = moves
    return told, moves


def _tell_of_answers(
    hop: Entry, told: dict[str, Any], waiting: list[tuple[dict[str, Any], bool]], *, many: bool
) -> None:
    """Say which answers alone could end any of what a hop waits on, and whether the hop still owes one itself."""
    moving = [part for part, moves in waiting if moves]
    if many or not moving or not all(part.get("asks") for part in moving):
        told.pop("asks", None)
        told.pop("expires", None)
    else:
        told["asks"] = list({ask: None for part in moving for ask in part["asks"]})
        times = [part["expires"] for part in moving if "expires" in part]
        if times:
            told["expires"] = min(times)
    if owes_answer is not None and hop.kind in ("request", "webhook") and owes_answer(hop):
        told["owes"] = True  # asked after the look: what had not gone out now had not gone out then


def of_entry(
    entry: Entry | Note, timers: waits.Timers | None = None, rests_on: list[Any] | None = None
) -> tuple[dict[str, Any], bool] | None:
    """What one entry waits on, by the asyncio task that does its work; None where no task is known."""
    if entry.kind == "event" and explain_event is not None and not isinstance(entry, Note):
        return explain_event(entry, timers, rests_on)
    if entry.runner is None and explain_outside is not None and not isinstance(entry, Note):
        return explain_outside(entry, timers)
    task = entry.runner() if entry.runner is not None else None
    if task is None:
        return (
            None
            if entry.runner is None
            else ({"kind": "unknown", "what": f"{entry.name}, whose task is gone", "moves": True}, True)
        )
    made_in = (
        entry.code.co_filename
        if isinstance(entry, Note)
        else entry.origin[0].co_filename
        if entry.origin
        else _made_in(task)
    )
    ledger = entry.parent.ledger if isinstance(entry, Note) else entry.ledger
    wait = look_at(task, ledger=ledger, made_in=made_in, timers=timers, rests_on=rests_on)
    return wait.as_dict(), wait.moves


def _made_in(task: Any) -> str | None:
    """The file that made a task, by its note, which is a done callback of it."""
    for callback in getattr(task, "_callbacks", None) or ():
        note = callback[0] if type(callback) is tuple else None
        if isinstance(note, Note):
            code = note.code
            return str(code.co_filename)
    return None


def look_at(
    task: Any,
    *,
    ledger: Ledger | None = None,
    made_in: str | None = None,
    timers: waits.Timers | None = None,
    rests_on: list[Any] | None = None,
) -> waits.Wait:
    """What a task waits on, with all that instrumentation knows of it.

    Args:
        task: the task.
        ledger: whose hops the messages and locks are looked for in; by default that of this process.
        made_in: as `waits.of_task` has it, as all that follows.
        timers: the same.
        rests_on: the same.
    """
    shared = timers if timers is not None else waits.Timers()
    hops = ledger if ledger is not None else process_here().ledger

    def held_by(lock: object) -> Any:
        found = holder_of(lock)
        return seen_holding(lock, shared) if found is None and seen_holding is not None else found

    def send_of(sender: object) -> waits.Send | None:
        return _send_of(sender, shared)

    return waits.of_task(
        task,
        holder_of=held_by,
        working_on=working_on,
        send_of=send_of,
        made_in=made_in,
        timers=shared,
        across=waits.Across(asks, functools.partial(_hop_of, hops), is_read) if asks is not None else None,
        rests_on=rests_on,
        polling=polling,
    )


_ENTRIES: Final = 2048
"""How many open entries are searched for the hop of one that holds a lock."""


def _hop_of(ledger: Ledger, task: object) -> str | None:
    """The id of the hop that a task works for: the first that it runs, or the one that it counts on."""
    if len(ledger) > _ENTRIES:
        return None
    for hop in ledger.open_hops():
        if hop.runner is not None and hop.kind not in ("send", "push", "lock") and hop.runner() is task:
            return hop.id
    for entry in ledger.invisible():
        if entry.runner is not None and entry.runner() is task and entry.parent is not None:
            return entry.parent.id
    return None


def _send_of(task: object, timers: waits.Timers) -> waits.Send | None:
    """The message that a task is in the middle of sending; of several the newest, which is the innermost."""
    sends = timers.shared.get("sends")
    if sends is None:
        process = process_here()
        sends = timers.shared["sends"] = {
            id(each): hop
            for hop in process.ledger.open_hops()
            if hop.kind in ("send", "push")
            and hop.done is None
            and hop.runner is not None
            and (each := hop.runner()) is not None
        }
    hop = sends.get(id(task))
    if hop is None or hop.done is not None or hop.runner() is not task:
        return None
    return describe_send(hop)


def describe_send(hop: Entry) -> waits.Send:
    """To whom a send or push goes, since when, and who took it, as far as that is known."""
    said = hop.attributes or {}
    agent, url = None, None
    receiver = getattr(hop.instance_of, "receiver", None)
    if receiver is not None:
        agent, url = receiver()
    if url is None and said.get(names.SERVER_ADDRESS):
        url = f"{said[names.SERVER_ADDRESS]}:{said.get(names.SERVER_PORT, 0)}"
    method = "push" if hop.kind == "push" else hop.name
    return waits.Send(
        method, round(hop.started / 1e9, 2), agent, url, said.get(names.PEER), said.get(names.PEER_HOP)
    )


def holder_of(lock: object) -> Any:
    """Who holds a lock, as far as the instrumentation of locks has seen it taken: a task, or those of a semaphore."""
    held = getattr(lock, "__dict__", {}).get("_hopwatch_held")
    if held is None:
        return None
    if isinstance(held, dict):
        return tuple(task for reference in list(held.values()) if (task := reference()) is not None) or None
    return held()
