"""Where are hops kept, on one machine? In a SQLite file, behind one thread that owns it and a cache of hot cascades.

Everything that touches the file or the cache is a message to that thread, so nothing here needs a lock, and what
waits when it looks is written in one transaction. A cascade is in the cache whole or not at all: a record is merged
in memory and its hop's row written anew, so that a write never has to read first. Hops are replaced, never changed,
once they are in the cache: a snapshot is a shallow copy.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import sqlite3
import threading
import time
from collections import OrderedDict, deque
from concurrent.futures import Future
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, TypeVar

import orjson

from hopwatch.attributes import TERMINAL_STATES
from hopwatch.collector.batch import Batch, Refusals
from hopwatch.collector.store import (
    AmbiguousCascadeError,
    Remembered,
    Row,
    Snapshot,
    StoreBusyError,
    StoreError,
    Totals,
    UnknownCascadeError,
)
from hopwatch.collector.store.cascade import Cascade, State, Task, newest_of
from hopwatch.collector.store.file import open_file
from hopwatch.collector.store.liveness import Liveness, Process
from hopwatch.records import HOP_FIELDS, Hop
from hopwatch.verdict import SILENT_AFTER, Agent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from hopwatch.verdict import Name

T = TypeVar("T")
_log: Final = logging.getLogger("hopwatch.collector")

MAX_PENDING: Final = 256
"""Batches that may wait to be written; more are turned away, to be sent again."""
GROUP: Final = 8_192
"""Records that one transaction takes at most."""
CACHE_BYTES: Final = 64 * 1024 * 1024
PRUNE_EVERY: Final = 60.0
SECOND: Final = 1_000_000_000
YOUNG: Final = 600 * SECOND
"""An open cascade heard of since is not pruned for room."""
_SLOTS: Final = 1 << 16  # numbers that each cascade has for its hops: they lie side by side in the file
MOST_SHARED: Final = 8
"""How many tasks that it shares with others are looked into for one cascade, and how many others for each."""
_ROWS_A_STATEMENT: Final = 80  # one step, and one release of the interpreter's lock, for so many rows

_CASCADE: Final = (
    "number, cascade, version, started, ended, active, hops, open, rejected, agents, verdict, reason"
)
_TOLD: Final = tuple(name for name in HOP_FIELDS if name != "cascade")  # the cascade is in the row's number
_values = attrgetter(*_TOLD)


class SqliteStore:
    """A store in a SQLite file, or in memory.

    Args:
        path: of the file, or `:memory:`. A new one is made; one that is not ours is refused and left as it is.
        retain: seconds that a cascade is kept after its last record.
        max_bytes: what the file may grow to; the oldest cascades go first.

    Raises:
        StoreError: the file cannot be used.
    """

    def __init__(
        self,
        path: str | Path = ":memory:",
        *,
        retain: float = 7 * 86_400,
        max_bytes: int = 2 * 1024**3,
        cache_bytes: int = CACHE_BYTES,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.location = str(path)
        self._retain = int(retain * SECOND)
        self._max_bytes = max_bytes
        self._cache_bytes = cache_bytes
        self._clock = clock
        self._db = open_file(self.location)
        self._numbers: OrderedDict[str, int] = (
            OrderedDict()
        )  # of cascades in the cache, the one used last at the end
        self._cache: dict[int, Cascade] = {}
        self._cached = 0
        self._changed: set[int] = set()
        self._liveness = Liveness()
        self._next = 1
        self._full = False
        self._closed = False
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any] | Batch | None, Future[Any]]] = (
            queue.SimpleQueue()
        )
        self._pending = 0
        self._gate = threading.Lock()
        self._load()
        self._thread = threading.Thread(target=self._run, name="hopwatch-store", daemon=True)
        self._thread.start()

    # Asked from any thread -----------------------------------------------------------------------------------

    def write(self, batch: Batch) -> Future[Refusals]:
        """Take in a batch; see `Store`."""
        future: Future[Refusals] = Future()
        future.set_running_or_notify_cancel()  # who gave up waiting does not stop it
        with self._gate:
            if self._closed:
                raise StoreBusyError("the collector is stopping")
            if self._full and (batch.hops or batch.refused_of):
                raise StoreBusyError(
                    f"the store {self.location} is full and holds open cascades only; --max-size allows for more"
                )
            if self._pending >= MAX_PENDING:
                raise StoreBusyError(f"{self._pending} requests wait to be written; send it again later")
            self._pending += 1
            self._jobs.put((batch, future))
        return future

    def snapshot(self, prefix: str) -> Snapshot:
        """The one cascade whose id begins so; see `Store`."""
        return self._ask(lambda: self._snapshot(prefix))

    def rows(self, before: int | None, limit: int, verdicts: frozenset[Name] = frozenset()) -> list[Row]:
        """Cascades, newest first; see `Store`."""
        return self._ask(lambda: self._rows(before, limit, verdicts))

    def remember(self, verdicts: Iterable[Remembered]) -> None:
        """Remember verdicts; see `Store`."""
        kept = list(verdicts)
        if kept:
            self._ask(lambda: self._remember(kept))

    def open_hops(self, limit: int) -> list[Hop]:
        """Open hops, oldest first; see `Store`."""
        return self._ask(lambda: self._open_hops(limit))

    def agents(self) -> list[tuple[Agent, int]]:
        """Every process known; see `Store`."""
        return self._ask(self._agents)

    def watched(self, since: int, limit: int) -> tuple[list[Row], int]:
        """Cascades that are open, or were heard of of late; see `Store`."""
        return self._ask(lambda: self._watched(since, limit))

    def totals(self) -> Totals:
        """How much there is; see `Store`."""
        return self._ask(self._totals)

    def prune(self) -> int:
        """Prune by age now, and say how many cascades went. It is done every minute anyway."""
        return self._ask(self._prune_old)

    def close(self) -> None:
        """Write what waits, and close; see `Store`."""
        with self._gate:
            if self._closed:
                return
            self._closed = True
            self._jobs.put((None, Future()))
        self._thread.join()

    def _ask(self, job: Callable[[], T]) -> T:
        future: Future[T] = Future()
        with self._gate:
            if self._closed:
                raise StoreBusyError("the collector is stopping")
            self._jobs.put((job, future))
        return future.result()

    # The thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        due = time.monotonic() + PRUNE_EVERY
        going = True
        while going:
            try:
                first = self._jobs.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                due = time.monotonic() + PRUNE_EVERY
                self._guarded(self._tidy)
                continue
            going = self._work(first)
            if time.monotonic() >= due:
                due = time.monotonic() + PRUNE_EVERY
                self._guarded(self._tidy)
        self._db.close()

    def _work(self, first: tuple[Callable[[], Any] | Batch | None, Future[Any]]) -> bool:
        """Do one job, and with a batch all that wait behind it; returns False when it was the last."""
        job, future = first
        if job is None:
            return False
        if not isinstance(job, Batch):
            _settle(future, job)
            return True
        group = [(job, future)]
        size = job.size
        following = None
        while size < GROUP:
            try:
                following = self._jobs.get_nowait()
            except queue.Empty:
                break
            if not isinstance(following[0], Batch):
                break
            group.append((following[0], following[1]))
            size += following[0].size
            following = None
        with self._gate:
            self._pending -= len(group)
        self._commit(group)
        return self._work(following) if following is not None else True

    def _tidy(self) -> None:
        self._prune_old()
        self._prune_large()

    def _guarded(self, job: Callable[[], Any]) -> None:
        try:
            job()
        except Exception:  # noqa: BLE001 - a store that is not tidied up still takes records
            _log.exception("the store %s could not be tidied up", self.location)

    def _commit(self, group: list[tuple[Batch, Future[Refusals]]]) -> None:
        results: list[Refusals] = []
        try:
            self._db.execute("BEGIN IMMEDIATE")
            results.extend(self._apply(batch) for batch, _ in group)
            self._write_changes()
            self._db.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - senders are told, the collector goes on
            self._undo()
            if isinstance(error, sqlite3.Error):
                failure: StoreError = StoreBusyError(
                    f"the store {self.location} could not be written: {error}"
                )
            elif len(group) > 1:  # one of them is the cause: the others shall not suffer
                for each in group:
                    self._commit([each])
                return
            else:
                _log.error("a batch could not be taken in", exc_info=error)
                failure = StoreError(f"the batch could not be taken in: {error}")
            for _, future in group:
                future.set_exception(failure)
            return
        for (_, future), result in zip(group, results, strict=True):
            future.set_result(result)
        self._trim()
        self._guarded(self._prune_large)

    def _undo(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("ROLLBACK")
        # What is in memory went ahead of the file: read it again when it is needed.
        for number in self._changed:
            cascade = self._cache.pop(number, None)
            if cascade is not None:
                self._numbers.pop(cascade.id, None)
        self._cached = sum(cascade.weight for cascade in self._cache.values())
        self._changed.clear()

    # Taking in -----------------------------------------------------------------------------------------------

    def _apply(self, batch: Batch) -> Refusals:
        refused = Refusals()
        self._liveness.hear(batch)
        cascade: Cascade | None = None
        for hop in batch.hops:
            if cascade is None or cascade.id != hop.cascade:
                cascade = self._touch(hop.cascade, batch.arrived)
            reason = cascade.take(hop)
            if reason is not None:
                refused.add(reason)
        for trace, count in batch.refused_of.items():
            self._touch(trace, batch.arrived).rejected += count
        return refused

    def _touch(self, trace: str, arrived: int) -> Cascade:
        """The cascade, from the cache, the file, or new, as one that changes in this transaction."""
        cascade = self._cascade(trace)
        if cascade is None:
            cascade = Cascade(self._next, trace)
            self._next += 1
            self._keep(cascade)
        self._mark(cascade)
        cascade.active = max(cascade.active, arrived)
        return cascade

    def _mark(self, cascade: Cascade) -> None:
        """The cascade changes in this transaction."""
        if cascade.number not in self._changed:
            self._changed.add(cascade.number)
            self._cached -= cascade.weight  # it is weighed again when it is written
            cascade.version += 1
            cascade.verdict = cascade.reason = None

    def _share(self) -> None:
        """Write down what cascades say of tasks, and tell those that know the same ones of each other."""
        tellers = [
            cascade for cascade in map(self._cache.__getitem__, self._changed) if cascade.changed_tasks
        ]
        values: list[Any] = []
        looked_for: set[Task] = set()
        for cascade in tellers:
            for key in cascade.changed_tasks:
                values += (*key, cascade.number, *cascade.own[key])
                if key not in cascade.tasks or key in cascade.shared:
                    looked_for.add(key)
        self._insert("tasks", 5, values)
        said = self._said(looked_for)
        for cascade in tellers:
            for key in cascade.changed_tasks:
                states = said.get(key)
                if states is None or len(states) == 1:
                    cascade.tasks[key] = cascade.own[key]
                    continue
                newest = newest_of(states.values())
                for number in states:
                    self._tell(number, key, newest)
            cascade.changed_tasks.clear()

    def _tell(self, number: int, key: Task, newest: State) -> None:
        cascade = self._cache.get(number)
        if cascade is None:
            self._db.execute(
                "UPDATE cascades SET verdict = NULL, reason = NULL, version = version + 1 WHERE number = ?",
                (number,),
            )
        elif cascade.tasks.get(key) != newest or key not in cascade.shared:
            self._mark(cascade)
            cascade.shared.add(key)
            cascade.tasks[key] = newest

    def _said(self, keys: Iterable[Task]) -> dict[Task, dict[int, State]]:
        """What each cascade says of those tasks, by cascade."""
        out: dict[Task, dict[int, State]] = {}
        flat = [text for key in keys for text in key]
        for start in range(0, len(flat), 2 * _ROWS_A_STATEMENT):
            part = flat[start : start + 2 * _ROWS_A_STATEMENT]
            places = ", ".join(["(?, ?)"] * (len(part) // 2))
            for agent, task, number, state, at in self._db.execute(
                f"WITH wanted(a, t) AS (VALUES {places}) SELECT agent, task, cascade, state, at"  # noqa: S608 - only marks
                " FROM wanted CROSS JOIN tasks ON agent = a AND task = t",
                part,
            ).fetchall():
                out.setdefault((agent, task), {})[number] = (state, at)
        return out

    def _write_changes(self) -> None:
        hops: list[Any] = []
        rows: list[Any] = []
        self._share()  # first, for others may change by it, too
        for number in self._changed:
            cascade = self._cache[number]
            base = number * _SLOTS
            for identity in cascade.changed:
                hop = cascade.hops[identity]
                record = orjson.dumps(_values(hop))
                slot = cascade.slots[identity]
                cascade.bytes += len(record) - cascade.sizes[slot]
                cascade.sizes[slot] = len(record)
                hops += (base + slot, hop.started, hop.ended, hop.instance, record)
            cascade.changed.clear()
            row = cascade.row()
            rows += (
                row.number, row.cascade, row.version, row.started, row.ended, row.active, row.hops, row.open,
                row.rejected, orjson.dumps(row.agents).decode(), row.verdict, row.reason,
            )  # fmt: skip
        self._insert("hops", 5, hops)
        self._insert("cascades", 12, rows)
        self._write_agents()
        for number in self._changed:
            self._cached += self._cache[number].weight
        self._changed.clear()

    def _write_agents(self) -> None:
        values: list[Any] = []
        for instance in self._liveness.dirty:
            process = self._liveness.processes[instance]
            agent = process.agent
            values += (
                instance, agent.name, process.sender, agent.pid, agent.heard, agent.open, agent.dropped,
                agent.sampled, process.beat, orjson.dumps(list(process.offsets)).decode(),
                orjson.dumps([agent.ended, agent.way, agent.pending]).decode() if agent.ended else None,
            )  # fmt: skip
        self._insert("agents", 11, values)
        self._liveness.dirty.clear()

    def _insert(self, table: str, width: int, values: list[Any]) -> None:
        # One statement for many rows: SQLite then runs without the interpreter's lock in long stretches, where
        # executemany would take it back, and wait for it, after each row.
        chunk = width * _ROWS_A_STATEMENT
        for start in range(0, len(values), chunk):
            part = values[start : start + chunk]
            places = ", ".join([f"({', '.join('?' * width)})"] * (len(part) // width))
            self._db.execute(f"INSERT OR REPLACE INTO {table} VALUES {places}", part)  # noqa: S608 - our own names

    # The cache -----------------------------------------------------------------------------------------------

    def _cascade(self, trace: str) -> Cascade | None:
        number = self._numbers.get(trace)
        if number is not None:
            self._numbers.move_to_end(trace)
            return self._cache[number]
        found = self._db.execute(f"SELECT {_CASCADE} FROM cascades WHERE cascade = ?", (trace,)).fetchone()  # noqa: S608
        return None if found is None else self._read(_row(found))

    def _read(self, row: Row) -> Cascade:
        cascade = Cascade(
            row.number, row.cascade, agents=dict.fromkeys(row.agents), version=row.version, started=row.started,
            ended=row.ended, active=row.active, open=row.open, rejected=row.rejected, verdict=row.verdict,
            reason=row.reason,
        )  # fmt: skip
        base = row.number * _SLOTS
        loads = orjson.loads
        for number, record in self._db.execute(
            "SELECT number, record FROM hops WHERE number BETWEEN ? AND ? ORDER BY number",
            (base, base + _SLOTS - 1),
        ):
            hop = Hop(row.cascade, *loads(record))
            cascade.hops[hop.id] = hop
            cascade.slots[hop.id] = number - base
            cascade.sizes.append(len(record))
            cascade.bytes += len(record)
        for agent, task, state, at in self._db.execute(
            "SELECT agent, task, state, at FROM tasks WHERE cascade = ?", (row.number,)
        ):
            cascade.own[agent, task] = (state, at)
        for key, states in self._said(cascade.own).items():
            cascade.tasks[key] = newest_of(states.values())
            if len(states) > 1:
                cascade.shared.add(key)
        self._keep(cascade)
        self._trim()
        return cascade

    def _keep(self, cascade: Cascade) -> None:
        self._cache[cascade.number] = cascade
        self._cached += cascade.weight
        self._numbers[cascade.id] = cascade.number
        if cascade.number >= self._next:
            self._next = cascade.number + 1

    def _trim(self) -> None:
        """Let the cascades go that were used longest ago, until the rest fits. The latest stays in any case."""
        if self._cached <= self._cache_bytes:
            return
        for trace, number in list(self._numbers.items())[:-1]:
            if number not in self._changed:
                self._drop(trace, number)
                if self._cached <= self._cache_bytes:
                    return

    def _drop(self, trace: str, number: int) -> None:
        del self._numbers[trace]
        self._cached -= self._cache.pop(number).weight

    # Looking -------------------------------------------------------------------------------------------------

    def _snapshot(self, prefix: str) -> Snapshot:
        candidates = [
            trace
            for (trace,) in self._db.execute(
                "SELECT cascade FROM cascades WHERE cascade >= ? AND cascade < ? ORDER BY cascade LIMIT 11",
                (prefix, prefix + "g"),
            )
        ]
        if not candidates:
            raise UnknownCascadeError(prefix)
        if len(candidates) > 1:
            raise AmbiguousCascadeError(prefix, candidates)
        cascade = self._cascade(candidates[0])
        if cascade is None:
            raise UnknownCascadeError(prefix)
        hops = dict(cascade.hops)
        instances = {hop.instance for hop in hops.values()}
        tasks = dict(cascade.tasks)
        elsewhere = {} if cascade.open else self._worked_on_elsewhere(cascade, tasks)
        return Snapshot(cascade.row(), hops, self._liveness.copies(instances), tasks, elsewhere)

    def _worked_on_elsewhere(self, cascade: Cascade, tasks: Mapping[Task, State]) -> dict[Task, str]:
        """Which open cascade has worked on each task that this one shares with others, and that is in no terminal state."""
        out: dict[Task, str] = {}
        left = [key for key in cascade.shared if tasks.get(key, ("", 0))[0] not in TERMINAL_STATES]
        for key in left[:MOST_SHARED]:
            found = self._db.execute(
                "SELECT cascade FROM cascades WHERE open > 0 AND number IN"
                " (SELECT cascade FROM tasks WHERE agent = ? AND task = ? AND cascade <> ?) ORDER BY number LIMIT ?",
                (*key, cascade.number, MOST_SHARED),
            ).fetchall()
            for (trace,) in found:
                other = self._cascade(trace)
                if other is not None and other.works_on(key):
                    out[key] = trace
                    break
        return out

    def _rows(self, before: int | None, limit: int, verdicts: frozenset[Name]) -> list[Row]:
        where = "number < ?"
        values: list[Any] = [2**62 if before is None else before]
        if verdicts:
            where += f" AND (verdict IS NULL OR verdict IN ({', '.join('?' * len(verdicts))}))"
            values += sorted(verdicts)
        found = self._db.execute(
            f"SELECT {_CASCADE} FROM cascades WHERE {where} ORDER BY number DESC LIMIT ?",  # noqa: S608 - our own words
            [*values, limit],
        )
        return [_row(each) for each in found]

    def _remember(self, verdicts: list[Remembered]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for each in verdicts:
                self._db.execute(
                    "UPDATE cascades SET verdict = ?, reason = ? WHERE number = ? AND version = ?",
                    (each.verdict, each.reason, each.number, each.version),
                )
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        for each in verdicts:
            cascade = self._cache.get(each.number)
            if cascade is not None and cascade.version == each.version:
                cascade.verdict, cascade.reason = each.verdict, each.reason

    def _open_hops(self, limit: int) -> list[Hop]:
        found = self._db.execute(
            "SELECT cascades.cascade, record FROM hops JOIN cascades ON cascades.number = hops.number / ?"
            " WHERE hops.ended IS NULL ORDER BY hops.started LIMIT ?",
            (_SLOTS, limit),
        )
        return [Hop(trace, *orjson.loads(record)) for trace, record in found]

    def _agents(self) -> list[tuple[Agent, int]]:
        counted = dict(
            self._db.execute(
                "SELECT instance, count(*) FROM hops WHERE ended IS NULL GROUP BY instance"
            ).fetchall()
        )
        agents = self._liveness.copies(list(self._liveness.processes)).values()
        return [
            (agent, counted.get(agent.instance, 0))
            for agent in sorted(agents, key=lambda agent: (-agent.heard, agent.instance))
        ]

    def _watched(self, since: int, limit: int) -> tuple[list[Row], int]:
        # The index of open hops alone answers the first, that of `active` alone the second: no row is read to be counted.
        opened = [
            number
            for (number,) in self._db.execute(
                "SELECT DISTINCT number / ? FROM hops WHERE ended IS NULL ORDER BY 1", (_SLOTS,)
            )
        ]
        rows: list[Row] = []
        for start in range(0, min(len(opened), limit), 500):
            part = opened[start : min(start + 500, limit)]
            places = ", ".join("?" * len(part))
            found = self._db.execute(
                f"SELECT {_CASCADE} FROM cascades WHERE number IN ({places}) ORDER BY number",  # noqa: S608 - only marks
                part,
            )
            rows += [_row(each) for each in found]
        known = set(opened)
        recent = self._db.execute(
            f"SELECT {_CASCADE} FROM cascades WHERE active >= ? AND open = 0 ORDER BY active DESC LIMIT ?",  # noqa: S608
            (since, max(0, limit - len(rows))),
        )
        rows += [_row(each) for each in recent if each[0] not in known]
        total = len(opened)
        for (number,) in self._db.execute("SELECT number FROM cascades WHERE active >= ?", (since,)):
            total += number not in known
        return rows, total - len(rows)

    def _totals(self) -> Totals:
        (count,) = self._db.execute("SELECT count(*) FROM cascades").fetchone()
        return Totals(count, self._used(), self.location, self._pending)

    # Pruning -------------------------------------------------------------------------------------------------

    def _prune_old(self) -> int:
        """Drop the cascades that have been quiet for too long, unless a hop of theirs is open in a process that lives."""
        before = self._clock() - self._retain
        gone = 0
        passed: list[int] = []
        while True:
            found = self._db.execute(
                "SELECT number, cascade, open FROM cascades WHERE active < ? AND number > ? ORDER BY number LIMIT 200",
                (before, passed[-1] if passed else 0),
            ).fetchall()
            if not found:
                break
            passed.append(found[-1][0])
            old = [(number, trace) for number, trace, opened in found if not (opened and self._lives(number))]
            self._delete(old)
            gone += len(old)
        instances = self._liveness.forget(before)
        self._db.executemany("DELETE FROM agents WHERE instance = ?", [(instance,) for instance in instances])
        return gone

    def _prune_large(self) -> None:
        """Drop the oldest cascades until what is left fits."""
        full = False
        room = self._max_bytes
        while self._used() > room:
            found = self._db.execute(
                "SELECT number, cascade FROM cascades WHERE open = 0 OR active < ? ORDER BY active, number LIMIT 8",
                (self._clock() - YOUNG,),
            ).fetchall()
            if not found:
                full = self._used() > self._max_bytes
                break
            self._delete(found)
            room = self._max_bytes * 49 // 50  # a little more than must, so that not every write has to
        if full and not self._full:
            _log.warning(
                "the store %s is full and holds open cascades only; records are turned away", self.location
            )
        self._full = full

    def _lives(self, number: int) -> bool:
        base = number * _SLOTS
        now = self._clock()
        for (instance,) in self._db.execute(
            "SELECT DISTINCT instance FROM hops WHERE number BETWEEN ? AND ? AND ended IS NULL",
            (base, base + _SLOTS - 1),
        ):
            process = self._liveness.processes.get(instance)
            if process is not None and now - process.agent.heard <= SILENT_AFTER:
                return True
        return False

    def _delete(self, cascades: list[tuple[int, str]]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for number, _ in cascades:
                base = number * _SLOTS
                self._db.execute("DELETE FROM hops WHERE number BETWEEN ? AND ?", (base, base + _SLOTS - 1))
                self._db.execute("DELETE FROM tasks WHERE cascade = ?", (number,))
                self._db.execute("DELETE FROM cascades WHERE number = ?", (number,))
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        for number, trace in cascades:
            if number in self._cache:
                self._drop(trace, number)

    def _used(self) -> int:
        (pages,) = self._db.execute("PRAGMA page_count").fetchone()
        (free,) = self._db.execute("PRAGMA freelist_count").fetchone()
        (size,) = self._db.execute("PRAGMA page_size").fetchone()
        return int((pages - free) * size)

    # Opening -------------------------------------------------------------------------------------------------

    def _load(self) -> None:
        self._next = 1 + (self._db.execute("SELECT max(number) FROM cascades").fetchone()[0] or 0)
        for (
            instance,
            name,
            sender,
            pid,
            heard,
            opened,
            dropped,
            sampled,
            beat,
            offsets,
            end,
        ) in self._db.execute("SELECT * FROM agents"):
            kept: deque[int] = deque(orjson.loads(offsets), maxlen=12)
            agent = Agent(instance, name, pid, heard, opened, dropped, sampled, min(kept, default=0))
            if end is not None:
                agent.ended, agent.way, agent.pending = orjson.loads(end)
            self._liveness.add(Process(agent, sender, beat, kept))


def _settle(future: Future[Any], job: Callable[[], Any]) -> None:
    try:
        future.set_result(job())
    except BaseException as error:  # noqa: BLE001 - it is raised where it was asked
        future.set_exception(error)


def _row(found: tuple[Any, ...]) -> Row:
    number, trace, version, started, ended, active, hops, opened, rejected, agents, verdict, reason = found
    return Row(
        number,
        trace,
        version,
        started,
        ended,
        active,
        hops,
        opened,
        rejected,
        orjson.loads(agents),
        verdict,
        reason,
    )
