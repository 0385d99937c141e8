"""How does a record change a cascade? What is in memory of one: its hops, its tasks, its counts. No file, no clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from hopwatch.collector.store import Row
from hopwatch.records import newer_state

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hopwatch.records import Hop
    from hopwatch.verdict import Name

MAX_HOPS: Final = 50_000
"""Hops of one cascade. What is beyond is refused and counted, so the cascade can only become `unknown`."""
MAX_BYTES: Final = 64 * 1024 * 1024
"""Bytes of the records of one cascade, likewise."""
HOP_BYTES: Final = 1_200
"""What a hop takes in memory beside its texts, roughly."""

Task = tuple[str, str]
State = tuple[str, int]


@dataclass(slots=True)
class Cascade:
    """One cascade in memory. Its hops are replaced, never changed: a shallow copy of them is a snapshot."""

    number: int
    id: str
    hops: dict[str, Hop] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)
    """Where each hop's row is among those of the cascade."""
    sizes: list[int] = field(default_factory=list)
    """Bytes of each row."""
    tasks: dict[Task, State] = field(default_factory=dict)
    """What is known of each task that it tells of, also from other cascades."""
    own: dict[Task, State] = field(default_factory=dict)
    """What it says itself."""
    shared: set[Task] = field(default_factory=set)
    """Those that other cascades tell of, too."""
    changed_tasks: set[Task] = field(default_factory=set)
    """Those of which it says something that is not written yet."""
    agents: dict[str, None] = field(default_factory=dict)
    """Names, in order of appearance."""
    version: int = 0
    started: int | None = None
    ended: int | None = None
    active: int = 0
    open: int = 0
    rejected: int = 0
    bytes: int = 0
    verdict: Name | None = None
    reason: str | None = None
    _end_moved: bool = False
    """Whether a hop's end became another one, so that the last of all has to be looked for."""
    changed: set[str] = field(default_factory=set)
    """Ids of hops that are not written yet."""

    def take(self, hop: Hop) -> str | None:
        """Take in what a record says of a hop; returns why it is refused, if it is. The record becomes the store's."""
        known = self.hops.get(hop.id)
        if known is None:
            refused = self._no_room()
            if refused is not None:
                self.rejected += 1
                return refused
            self.slots[hop.id] = len(self.slots)
            self.sizes.append(0)
            if hop.ended is None:
                self.open += 1
            if hop.agent not in self.agents:
                self.agents[hop.agent] = None
        else:
            if known.instance != hop.instance:
                self.rejected += 1
                return "the record claims a hop of another process"
            hop.merge(known)
            if known.ended is None:
                if hop.ended is not None:
                    self.open -= 1
            elif known.ended != hop.ended:
                self._end_moved = True
        self.hops[hop.id] = hop
        self.changed.add(hop.id)
        if self.started is None or hop.started < self.started:
            self.started = hop.started
        if hop.ended is not None and (self.ended is None or hop.ended > self.ended):
            self.ended = hop.ended
        if hop.task_id is not None and hop.task_state is not None:
            self._take_task(hop)
        return None

    def _no_room(self) -> str | None:
        if len(self.hops) >= MAX_HOPS:
            return f"the cascade has its {MAX_HOPS} hops already"
        if self.bytes >= MAX_BYTES:
            return f"the cascade has its {MAX_BYTES} bytes already"
        return None

    def _take_task(self, hop: Hop) -> None:
        key = _task_key(hop)
        if key is None:
            return
        state: State = (hop.task_state or "", hop.task_at)
        said = self.own.get(key)
        if said is None or newer_state(*said, *state):
            self.own[key] = state
            self.changed_tasks.add(key)

    def works_on(self, task: Task) -> bool:
        """Whether an execution of it has worked on a task."""
        return any(hop.kind == "execution" and (hop.agent, hop.task_id) == task for hop in self.hops.values())

    def row(self) -> Row:
        """The cascade as a list shows it."""
        if self._end_moved:  # who was found dead had ended by itself, and earlier
            self.ended = max(hop.ended for hop in self.hops.values() if hop.ended is not None)
            self._end_moved = False
        return Row(
            self.number, self.id, self.version, self.started, self.ended, self.active, len(self.hops), self.open,
            self.rejected, list(self.agents), self.verdict, self.reason,
        )  # fmt: skip

    @property
    def weight(self) -> int:
        """Bytes that it takes in memory, roughly."""
        return self.bytes + len(self.hops) * HOP_BYTES + 2_000


def newest_of(states: Iterable[State]) -> State:
    """The state of a task that says most, of several."""
    newest: State | None = None
    for state, at in states:
        if newest is None or newer_state(*newest, state, at):
            newest = (state, at)
    return newest or ("", 0)


def _task_key(hop: Hop) -> Task | None:
    """By which name a verdict looks for the task: the agent's that has it, or of a peer that we cannot see into its address."""
    if hop.task_id is None:
        return None
    if hop.kind in ("execution", "request", "push"):
        return (hop.agent, hop.task_id)
    if hop.kind == "send" and hop.peer == "opaque" and hop.peer_name:
        return (hop.peer_name, hop.task_id)
    return None
