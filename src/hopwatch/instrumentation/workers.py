"""Who works on the items of a queue, and who holds a lock that was taken outside of any cascade? Told when somebody asks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from hopwatch import hop_waits
from hopwatch.instrumentation import queues
from hopwatch.waits.chain import walk
from hopwatch.waits.graph import SCANNED
from hopwatch.waits.objects import coroutine_of, field_of, has_ended, waits_for
from hopwatch.waits.reach import names_in, refers_to, times_inside

if TYPE_CHECKING:
    from hopwatch import waits
    from hopwatch.ledger import Entry

TASKS: Final = 64
"""How many tasks of a hop are asked whether they work on an item."""


def working_on(queue: object) -> list[Any] | None:
    """The tasks that took an item from a queue and have not called `task_done`, one for each item.

    Returns:
        None where nothing is known of the queue. None stands for a task that is not known, or is gone.
    """
    line = queues.known_line(queue)
    if line is None:
        return None
    found = [taken.task() if taken.task is not None else None for taken in list(line.taken)]
    hop = line.single
    if hop is not None:
        consumer = line.consumer
        found.append(consumer() if consumer is not None else _worker_of(hop, queue))
    return found


def _worker_of(hop: Entry, queue: object) -> Any:
    """The one task of a hop that can only be the one that works on an item.

    The short path notes no more than that it is one of the hop's own.
    """
    found: list[Any] = []
    for entry in [hop, *hop.ledger.below(hop, TASKS)]:
        task = entry.runner() if entry.runner is not None else None
        if task is None or has_ended(task) or any(task is each for each in found):
            continue
        frames, _ = walk(coroutine_of(task))
        waiting = waits_for(task)
        getters = list(getattr(queue, "_getters", None) or ())
        if (
            any("task_done" in names_in(frame) for frame in frames)
            and not any(getter is waiting for getter in getters)
            and refers_to(task, queue)
        ):
            found.append(task)
    return found[0] if len(found) == 1 else None


def seen_holding(lock: object, timers: waits.Timers) -> list[Any] | None:
    """The tasks that are inside an `async with` of a lock or semaphore, as their frames tell.

    For one that nobody noted, because it was taken outside of any cascade.

    Args:
        lock: which somebody waits for.
        timers: what the questions of one tick share: the frames of a loop's tasks are read once for all of them.

    Returns:
        None where there is none, or the loop has too many tasks.
    """
    loop = field_of(lock, "_loop")
    if loop is None:
        return None
    chains = timers.shared.get(f"chains {id(loop):x}")
    if chains is None:
        chains = timers.shared[f"chains {id(loop):x}"] = [
            (task, walk(coroutine_of(task))[0]) for task in _tasks_of(loop)
        ]
    waiters = list(field_of(lock, "_waiters") or ())
    found = []
    for task, frames in chains:
        # One that is about to enter has the way out on its stack as well.
        entering = any(waiter is waits_for(task) for waiter in waiters)
        if times_inside(frames, lock) > entering:
            found.append(task)
    return found or None


def _tasks_of(loop: Any) -> list[Any]:
    module: Any = asyncio.tasks
    known: Any = getattr(module, "_scheduled_tasks", getattr(module, "_all_tasks", ()))
    if len(known) > 4 * SCANNED:  # those of all loops: to count them already takes too long
        return []
    try:
        tasks = asyncio.all_tasks(loop)
    except RuntimeError:  # they came and went while they were counted
        return []
    return list(tasks) if len(tasks) <= SCANNED else []


def instrument() -> None:
    """Have it told with every wait at a queue or a lock."""
    hop_waits.working_on, hop_waits.seen_holding = working_on, seen_holding
