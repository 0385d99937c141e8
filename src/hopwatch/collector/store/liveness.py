"""Which processes live? What heartbeats, records and foreign telemetry say of each, kept in memory."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from hopwatch.verdict import SILENT_AFTER, Agent

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hopwatch.collector.batch import Batch, Sender

OFFSETS: Final = 12
"""Heartbeats whose offset is kept. The smallest offset is nearest to the clocks' difference: the record that was
least delayed. Only the latest count, for clocks are put right."""
MAX_AGENTS: Final = 20_000
STATES: Final = ("alive", "idle", "silent", "ended")


def state_of(agent: Agent, opened: int, now: int) -> str:
    """Which of `STATES` a process is in: the same wherever it is told.

    Args:
        agent: what is known of it. How many open hops its last heartbeat told of is not asked: they may have ended since.
        opened: how many of its hops are known as open: a process that was found dead has none.
        now: Unix nanoseconds.
    """
    if agent.ended:
        return "ended"
    if now - agent.heard <= SILENT_AFTER:
        return "alive"
    return (
        "silent" if opened else "idle"
    )  # without open hops a process has nothing to say: that is no silence


@dataclass(slots=True)
class Process:
    """One process and how we know it."""

    agent: Agent
    sender: str | None = None
    """`service.instance.id`, where it has one."""
    beat: int = 0
    """When its newest heartbeat was made, by its own clock."""
    offsets: deque[int] = field(default_factory=lambda: deque(maxlen=OFFSETS))


class Liveness:
    """All processes that are known, by instance. Used from the store's thread only."""

    def __init__(self) -> None:
        self.processes: dict[str, Process] = {}
        self.dirty: set[str] = set()
        """Instances that changed since the store wrote them down."""
        self._named: dict[str, set[str]] = {}

    def add(self, process: Process) -> None:
        """Take in a process, as the store had written it down."""
        self.processes[process.agent.instance] = process
        self._named.setdefault(process.agent.name, set()).add(process.agent.instance)

    def hear(self, batch: Batch) -> None:
        """Take in whatever a batch says of processes."""
        arrived = batch.arrived
        for instance, sender in batch.senders.items():
            self._heard(self._known(instance, sender), arrived)
        for beat in batch.heartbeats:
            process = self.processes[beat.instance]
            process.offsets.append(arrived - beat.at)
            agent = process.agent
            agent.skew = min(process.offsets)
            agent.sampled = max(agent.sampled, beat.sampled)
            agent.dropped = max(agent.dropped, beat.dropped)
            if beat.at >= process.beat:
                process.beat = beat.at
                agent.open = beat.open
                agent.pid = beat.pid or agent.pid
            if beat.at > agent.ended:  # it meant to end, and did not: an `execv` that failed
                agent.ended, agent.way, agent.pending = 0, "", {}
        for end in batch.shutdowns:
            known = self.processes.get(end.instance) if end.found else self.processes[end.instance]
            if known is None or (
                end.found and known.agent.ended
            ):  # it never spoke, or its own word goes first
                continue
            process, agent = known, known.agent
            self.dirty.add(end.instance)
            agent.pid = end.pid or agent.pid
            if end.at >= max(agent.ended, process.beat):
                agent.ended, agent.way, agent.pending = end.at, end.way, end.pending
                agent.open = 0
        told = set(batch.senders.values())
        for sender in batch.signs:
            if sender not in told and sender.service in self._named:
                process_of = self._of(sender, arrived)
                if process_of is not None:
                    self._heard(process_of, arrived)

    def copies(self, instances: Iterable[str]) -> dict[str, Agent]:
        """What is known of those instances, for somebody else to keep."""
        known = self.processes
        return {instance: replace(known[instance].agent) for instance in instances if instance in known}

    def forget(self, before: int) -> list[str]:
        """Drop those not heard of since `before`, and the oldest where there are too many; returns who went."""
        gone = [instance for instance, process in self.processes.items() if process.agent.heard < before]
        surplus = len(self.processes) - len(gone) - MAX_AGENTS
        if surplus > 0:
            left = sorted((p.agent.heard, i) for i, p in self.processes.items() if p.agent.heard >= before)
            gone.extend(instance for _, instance in left[:surplus])
        for instance in gone:
            process = self.processes.pop(instance)
            self.dirty.discard(instance)
            same = self._named[process.agent.name]
            same.discard(instance)
            if not same:
                del self._named[process.agent.name]
        return gone

    def _known(self, instance: str, sender: Sender) -> Process:
        process = self.processes.get(instance)
        if process is None:
            process = Process(Agent(instance, sender.service), sender.instance)
            self.add(process)
        return process

    def _heard(self, process: Process, at: int) -> None:
        process.agent.heard = max(process.agent.heard, at)
        self.dirty.add(process.agent.instance)

    def _of(self, sender: Sender, now: int) -> Process | None:
        """The one process that a resource can only belong to; None where it may be several's, or nobody's."""
        same_name = [self.processes[instance] for instance in self._named[sender.service]]
        if sender.instance is not None:
            exact = [process for process in same_name if process.sender == sender.instance]
            if exact:  # a fork shares its parent's resource: then nobody knows whose sign it is
                return exact[0] if len(exact) == 1 else None
        possible = [
            process
            for process in same_name
            if (sender.instance is None or process.sender is None)
            and now - process.agent.heard <= SILENT_AFTER
        ]
        return possible[0] if len(possible) == 1 else None
