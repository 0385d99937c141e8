"""What is known of the other side of a wait, beyond a phrase: a queue, a job in a thread, a message that was sent?"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from typing import Any


class _Fact:
    __slots__ = ()

    def as_dict(self) -> dict[str, Any]:
        """Return it ready for JSON, without what is not known."""
        told = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {
            name: [*value] if type(value) is tuple else value
            for name, value in told.items()
            if value is not None
        }


@dataclass(frozen=True, slots=True)
class Queue(_Fact):
    """The queue at which a task waits.

    Attributes:
        queue: Its address, to tell it from others.
        depth: How many items are inside; None where its subclass keeps them elsewhere.
        maxsize: How many have room; 0 for any number.
        unfinished: For how many items `task_done` has not been called, inside or taken.
        taken_by: The tasks that took an item and have not called `task_done` for it, one for each item; at most 16, None
            where that is not known. None stands for one that is not known by name.
    """

    queue: str
    depth: int | None
    maxsize: int | None
    unfinished: int | None
    taken_by: tuple[str | None, ...] | None = None

    @property
    def words(self) -> str:
        """How full it is and who works on its items, as it stands in brackets."""
        parts = []
        if self.depth is not None:
            parts.append(f"{self.depth} of {self.maxsize} inside" if self.maxsize else f"{self.depth} inside")
        if self.taken_by:
            many = f" and {len(self.taken_by) - 3} more" if len(self.taken_by) > 3 else ""
            who = ", ".join(f"'{name}'" if name else "a task unknown" for name in self.taken_by[:3])
            parts.append(f"{len(self.taken_by)} taken without task_done by {who}{many}")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Job(_Fact):
    """What a thread was given to do.

    Attributes:
        state: `waiting` until a thread has begun it, then `running`; `elsewhere` if no thread of this process runs it.
        thread: The name of the thread.
        at: `file:line function` at which the thread stands, the innermost of the application if there is one.
    """

    state: str
    thread: str | None = None
    at: str | None = None

    @property
    def words(self) -> str:
        """What to say of it after "a job" or its name."""
        if self.state == "waiting":
            return "that no thread has begun"
        if self.thread is None:
            return "that runs in no thread of this process"
        return f"in thread '{self.thread}'" + (f", which is at {self.at}" if self.at else "")


@dataclass(frozen=True, slots=True)
class Send(_Fact):
    """A message to another agent that is under way.

    Attributes:
        method: What is sent, such as `SendMessage`, or `push`.
        since: When it began, in Unix seconds.
        agent: The name that the agent card gives the receiver.
        url: Where it goes.
        peer: `instrumented`, `opaque`, `refused` or `unknown` once that is known.
        hop: The receiver's hop, 16 hex digits, once it has been acknowledged.
    """

    method: str
    since: float
    agent: str | None = None
    url: str | None = None
    peer: str | None = None
    hop: str | None = None

    @property
    def words(self) -> str:
        """Who is to get it, since when, and what came of it so far."""
        to = (
            f"{self.agent} at {self.url}"
            if self.agent and self.url
            else self.agent or self.url or "another agent"
        )
        since = time.strftime("%H:%M:%SZ", time.gmtime(self.since))
        answered = f", taken by its hop {self.hop}" if self.hop else ""
        return f"{self.method} to {to} since {since}{answered}"
