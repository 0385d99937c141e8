"""Which verdict holds now, without judging twice? What was judged is kept as long as nothing can have changed it.

A verdict changes by records (then the cascade has another version) and, while a hop is open or a record on its way,
by time and by what its agents say. What neither can change is remembered in the store itself.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hopwatch.collector.store import Remembered, UnknownCascadeError
from hopwatch.verdict import ON_ITS_WAY, SILENT_AFTER, judge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from hopwatch.collector.store import Row, Snapshot, Store
    from hopwatch.verdict import Agent, Name, Verdict

LOOKED_AT_AGAIN: Final = 1_000_000_000
"""Nanoseconds after which a cascade is judged anew that stands on what another one does."""
MAX_KEPT: Final = 50_000
PAGE: Final = 200


@dataclass(slots=True)
class _Kept:
    version: int
    until: int
    """When time alone may change it."""
    agents: dict[str, tuple[int, int, int]]
    """What was known of the agents that it stands on."""
    verdict: Name
    reason: str


class Judge:
    """Judges the cascades of a store. May be used from several threads."""

    def __init__(self, store: Store, clock: Callable[[], int] = time.time_ns) -> None:
        self._store = store
        self._clock = clock
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self._lock = threading.Lock()

    def verdict(self, snapshot: Snapshot) -> Verdict:
        """What is proved of one cascade."""
        return judge(
            snapshot.hops,
            snapshot.agents,
            now=self._clock(),
            tasks=snapshot.tasks,
            elsewhere=snapshot.elsewhere,
            rejected=snapshot.row.rejected,
        )

    def listed(self, verdicts: frozenset[Name], limit: int) -> list[Row]:
        """The newest `limit` cascades, each with its verdict; with `verdicts`, of those that have one of them."""
        out: list[Row] = []
        remembered: list[Remembered] = []
        agents = {agent.instance: agent for agent, _ in self._store.agents()}
        before: int | None = None
        while len(out) < limit:
            page = self._store.rows(before, PAGE if verdicts else min(PAGE, limit - len(out)), verdicts)
            if not page:
                break
            before = page[-1].number
            for row in page:
                if row.verdict is None and not self._judge(row, agents, remembered):
                    continue
                if (not verdicts or row.verdict in verdicts) and len(out) < limit:
                    out.append(row)
            if len(remembered) >= PAGE:
                self._store.remember(remembered)
                remembered.clear()
        self._store.remember(remembered)
        return out

    def judge_rows(self, rows: Iterable[Row], agents: Mapping[str, Agent], go_on: Callable[[], bool]) -> None:
        """Fill in the verdicts of rows. Where `go_on` says no, only what is remembered is filled in."""
        remembered: list[Remembered] = []
        for row in rows:
            if row.verdict is None and go_on():
                self._judge(row, agents, remembered)
        self._store.remember(remembered)

    def numbered(self, numbers: Iterable[int]) -> list[Row]:
        """The cascades that have these numbers in the store, each with its verdict; those that are gone are left out."""
        out: list[Row] = []
        remembered: list[Remembered] = []
        agents: dict[str, Agent] | None = None
        for number in numbers:
            found = self._store.rows(number + 1, 1)
            if not found or found[0].number != number:
                continue
            (row,) = found
            if row.verdict is None:
                if agents is None:
                    agents = {agent.instance: agent for agent, _ in self._store.agents()}
                if not self._judge(row, agents, remembered):
                    continue
            out.append(row)
        self._store.remember(remembered)
        return out

    def _judge(self, row: Row, agents: Mapping[str, Agent], remembered: list[Remembered]) -> bool:
        """Fill in a row's verdict; returns False where the cascade has gone meanwhile."""
        now = self._clock()
        with self._lock:
            kept = self._kept.get(row.number)
        # How long an agent has been silent is part of that sentence: it is told anew.
        if (
            kept is not None
            and kept.version == row.version
            and now < kept.until
            and kept.verdict != "silent"
            and all(_seen(agents.get(instance), now) == seen for instance, seen in kept.agents.items())
        ):
            row.verdict, row.reason = kept.verdict, kept.reason
            return True
        try:
            snapshot = self._store.snapshot(row.cascade)
        except UnknownCascadeError:
            return False
        verdict = self.verdict(snapshot)
        found = snapshot.row
        for name in ("version", "started", "ended", "active", "hops", "open", "rejected", "agents"):
            setattr(row, name, getattr(found, name))
        row.verdict, row.reason = verdict.verdict, verdict.reason
        until = _until(snapshot, verdict, now)
        if until is None:
            remembered.append(Remembered(row.number, row.version, verdict.verdict, verdict.reason))
            with self._lock:
                self._kept.pop(row.number, None)
            return True
        instances = {hop.instance for hop in snapshot.hops.values() if hop.ended is None}
        seen = {instance: _seen(snapshot.agents.get(instance), now) for instance in instances}
        with self._lock:
            self._kept[row.number] = _Kept(row.version, until, seen, verdict.verdict, verdict.reason)
            self._kept.move_to_end(row.number)
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return True


def _seen(agent: Agent | None, now: int) -> tuple[int, int, int]:
    """Of an agent what a verdict stands on: one that lives may be heard of again without a difference."""
    if agent is None:
        return (0, 0, 0)
    return (agent.heard if now - agent.heard > SILENT_AFTER else 0, agent.sampled, agent.skew)


def _until(snapshot: Snapshot, verdict: Verdict, now: int) -> int | None:
    """When the verdict may change by time alone; None where it does not."""
    if snapshot.elsewhere:  # what another cascade does is no new version of this one
        return now + LOOKED_AT_AGAIN
    moments = [each.since + ON_ITS_WAY for each in verdict.missing if each.since]
    for hop in snapshot.hops.values():
        if hop.ended is None:
            agent = snapshot.agents.get(hop.instance)
            moments.append(max(agent.heard if agent else 0, hop.heard) + SILENT_AFTER)
    coming = [moment for moment in moments if moment >= now]
    if coming:
        return min(coming)
    return 2**63 if snapshot.row.open else None
