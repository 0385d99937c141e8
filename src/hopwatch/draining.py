"""What is left in this process that a drain waits for, and when is nothing left?"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, Final

from hopwatch import process as hopwatch_process
from hopwatch.exits import held_told, runs_on
from hopwatch.ledger import Entry

if TYPE_CHECKING:
    from hopwatch.ledger import Note

POLL: Final = 0.25
"""Seconds between two looks while nothing has told of an end."""
POLL_HELD: Final = 0.05
"""The same where what is left ends without telling: items in queues, threads, tasks of other loops."""


def left(cascade: str | None, caller: Any, own: Entry | None) -> list[Entry | Note]:
    """What is live in this process, but for what the caller is itself in the middle of.

    Args:
        cascade: only of this one.
        caller: the caller's task.
        own: the caller's hop.
    """
    ledger = hopwatch_process.here().ledger
    mine: set[int] = set()
    above = own
    while above is not None and len(mine) < 1_000:
        mine.add(id(above))
        above = above.parent
    out: list[Entry | Note] = []
    for hop in ledger.open_hops():
        if cascade is not None and hop.cascade != cascade:
            continue
        task = hop.runner() if hop.runner is not None else None
        inside = id(hop) in mine or (caller is not None and task is caller)
        out.extend(
            each
            for each in ledger.below(hop, ledger.capacity)
            if each.done is None
            and not (inside and each.quiet)
            and not (caller is not None and each.runner is not None and each.runner() is caller)
        )
        # The request that the SDK's own queue handed to an execution is counted on it, and told of by it.
        if not inside or (hop.held and held_told(hop) is not None):
            out.append(hop)
    return out


async def drain(timeout: float | None, cascade: str | None) -> list[Entry | Note]:
    """Wait until nothing is left; returns what is when the time is over. See `hopwatch.drain`."""
    loop = asyncio.get_running_loop()
    caller = asyncio.current_task()
    own = hopwatch_process.current.get()
    wakers = hopwatch_process.here().telemetry.wakers
    until = None if timeout is None else time.monotonic() + timeout
    over = loop.create_future()
    # A bare future, for anything else that waits would be counted itself.

    def wake(*_: object) -> None:
        """Look again, whatever thread says so."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(_set, over)

    wakers.append(wake)
    try:
        while True:
            over = loop.create_future()
            found = left(cascade, caller, own)
            if not found:
                return []
            wait = POLL
            for each in found:
                task = each.runner() if each.runner is not None else None
                if task is None or not runs_on(task, loop) or (isinstance(each, Entry) and each.held):
                    wait = POLL_HELD
            if until is not None:
                wait = min(wait, until - time.monotonic())
                if wait <= 0:
                    return found
            watched = [
                task
                for each in found[:1_000]
                if each.runner is not None and (task := each.runner()) is not None and runs_on(task, loop)
            ]
            handle = loop.call_later(wait, _set, over)
            try:
                for task in watched:
                    task.add_done_callback(wake)
                await over
            finally:
                handle.cancel()
                for task in watched:
                    task.remove_done_callback(wake)
    finally:
        wakers.remove(wake)


def _set(future: Any) -> None:
    if not future.done():
        future.set_result(None)
