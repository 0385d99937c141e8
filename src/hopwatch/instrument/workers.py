"""Who took items from a queue, and has not called `task_done` for them? Told when somebody asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from hopwatch import telemetry
from hopwatch.instrument import queues
from hopwatch.waits.chain import walk
from hopwatch.waits.graph import names_in, refers_to
from hopwatch.waits.objects import coroutine_of, has_ended, waits_for

if TYPE_CHECKING:
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


def instrument() -> None:
    """Have it told with every wait at a queue."""
    telemetry.working_on = working_on
