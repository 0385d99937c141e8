"""What does Prometheus see? `/metrics`: gauges that are read off the store at each scrape, and counters of what came in.

A gauge is never a count of starts minus a count of ends: it is the number of what the store holds. A cascade counts
while a hop of it is open, and for `WINDOW` after its last record; a process while a hop of it is open, and for `WINDOW`
after it was heard of. So what went wrong is to be seen for an hour, and then an alert ends.

The work of a scrape is bounded. At most `MAX_CASCADES` are looked at, and what is found in one is kept for as long as
no record changes it. A scrape looks into new ones for `BUDGET` seconds; what it did not come to is counted as unread.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Final

from prometheus_client import ProcessCollector
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from hopwatch import attributes as names
from hopwatch.collector.store import StoreBusyError, UnknownCascadeError
from hopwatch.collector.store.liveness import STATES, state_of
from hopwatch.verdict import NAMES, deadlocks, frontier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from prometheus_client import Metric
    from starlette.requests import Request

    from hopwatch.collector.judged import Judge
    from hopwatch.collector.store import Row, Snapshot, Store
    from hopwatch.collector.traffic import Traffic
    from hopwatch.records import Hop
    from hopwatch.verdict import Agent

SECOND: Final = 1_000_000_000
WINDOW: Final = 3_600 * SECOND
MAX_CASCADES: Final = 5_000
PART: Final = 100
BUDGET: Final = 0.25
"""Seconds that a scrape looks into cascades that it does not know yet."""
KEPT: Final = 1.0
"""Seconds that an answer holds for other scrapes."""
SHARE: Final = 20
"""An answer that took long holds for so many times longer: measuring takes a twentieth of a core at most."""
MAX_AGENTS: Final = 200
"""Names of agents that have series of their own."""
OTHERS: Final = "(others)"
MAX_NAME: Final = 200
"""Characters of an agent's name in a label."""

CAUSES: Final = ("killed", "shutdown", "collected", "other")
WAITS: Final = frozenset(
    {
        "running", "future", "event", "lock", "semaphore", "condition", "barrier", "queue_get", "queue_put",
        "queue_join", "sleep", "socket", "thread", "task", "gather", "wait", "task_group", "call", "unknown",
    }
)  # fmt: skip


@dataclass(slots=True)
class Facts:
    """What one cascade adds to the gauges, as long as it has this version."""

    version: int
    open: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Open hops by agent and kind."""
    oldest: dict[tuple[str, str], int] = field(default_factory=dict)
    """When the oldest of them began."""
    waiting: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Open hops at the frontier, by agent, what they wait on, and whether that moves."""
    abandoned: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By agent and cause."""
    deadlocks: set[tuple[str, str]] = field(default_factory=set)
    swallowed: Counter[str] = field(default_factory=Counter)
    outlived: Counter[str] = field(default_factory=Counter)


def facts_of(snapshot: Snapshot) -> Facts:
    """What the hops of one cascade add to the gauges."""
    facts = Facts(snapshot.row.version)
    for hop in snapshot.hops.values():
        if hop.ended is None:
            key = (hop.agent, hop.kind)
            facts.open[key] += 1
            if hop.started < facts.oldest.get(key, 2**63):
                facts.oldest[key] = hop.started
        elif hop.outcome == "abandoned":
            facts.abandoned[hop.agent, _cause(hop)] += 1
        if hop.attributes.get(names.SWALLOWED) is True:
            facts.swallowed[hop.agent] += 1
        if hop.attributes.get(names.OUTLIVED) is True:
            facts.outlived[hop.agent] += 1
    if facts.open:
        facts.deadlocks = deadlocks(snapshot.hops.values())
        for hop in frontier(snapshot.hops):
            said = (hop.waits or {}).get("kind")
            on = said if isinstance(said, str) and said in WAITS else "unknown"
            moves = "unknown" if hop.moves is None else "true" if hop.moves else "false"
            facts.waiting[hop.agent, on, moves] += 1
    return facts


def _cause(hop: Hop) -> str:
    """Why a hop was abandoned, as one of a few words."""
    reason = hop.reason or ""
    if reason.startswith(names.PROCESS_KILLED):
        return "killed"
    # Both sentences are this package's own, of exits.py and instrumentation/tasks.py.
    if reason.startswith("pending at shutdown"):
        return "shutdown"
    return "collected" if "destroyed while pending" in reason else "other"


class Metrics(Collector):
    """The collector's metrics, as something that prometheus_client can collect and Starlette can serve.

    Args:
        store: what is measured.
        judge: who judges.
        traffic: counters of what came in, and the registry that all of it is in.
        clock: Unix nanoseconds.
        monotonic: seconds of a clock that never goes back.
    """

    def __init__(
        self,
        store: Store,
        judge: Judge,
        traffic: Traffic,
        *,
        clock: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._judge = judge
        self._clock = clock
        self._monotonic = monotonic
        self._registry = traffic.registry
        self._facts: OrderedDict[int, Facts] = OrderedDict()
        self._agents: dict[str, None] = {}
        self._lock = threading.Lock()
        self._measured: list[Metric] = []
        self._crowded = False
        self._until = float("-inf")
        self._answers: dict[str, bytes] = {}
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def routes(self) -> list[Route]:
        """Where Prometheus asks."""
        return [Route("/metrics", self._endpoint, methods=["GET"])]

    def describe(self) -> Iterable[Metric]:
        """Nothing: to be registered must not cost a measurement."""
        return []

    def collect(self) -> Iterator[Metric]:
        """What was measured last; `answer` measures anew where that is due."""
        yield from self._measured

    def answer(self, accept: str = "") -> tuple[bytes, str]:
        """What is answered to a scrape.

        Args:
            accept: the header, which chooses between OpenMetrics and Prometheus's older text format.

        Returns:
            The body and its content type.

        Raises:
            StoreBusyError: the collector is stopping.
        """
        encode, kind = choose_encoder(accept)
        with self._lock:  # who comes at the same time waits for the same answer
            if self._monotonic() >= self._until:
                began = self._monotonic()
                self._measured = list(self._measure())
                took = self._monotonic() - began
                self._measured.append(
                    _gauge(names.COLLECTOR_MEASURED, "How long reading the gauges off the store took.", took)
                )
                self._until = self._monotonic() + max(KEPT, SHARE * took)
                self._answers.clear()
            if kind not in self._answers:
                if len(self._answers) > 3:  # the content type has what the sender wrote in it
                    self._answers.clear()
                self._answers[kind] = encode(self._registry)
            return self._answers[kind], kind

    async def _endpoint(self, request: Request) -> Response:
        try:
            body, kind = await run_in_threadpool(self.answer, request.headers.get("accept", ""))
        except StoreBusyError as error:
            return PlainTextResponse(f"{error}\n", 503, {"retry-after": "1"})
        return Response(body, headers={"content-type": kind, "cache-control": "no-store"})

    # Measuring -----------------------------------------------------------------------------------------------

    def _measure(self) -> Iterator[Metric]:
        now = self._clock()
        since = now - WINDOW
        rows, unread = self._store.watched(since, MAX_CASCADES)
        processes = [
            (agent, opened) for agent, opened in self._store.agents() if opened or agent.heard >= since
        ]
        read = self._read(rows, {agent.instance: agent for agent, _ in processes})
        facts = [self._facts[row.number] for row in read]
        label = self._labels(facts, processes)
        agents = sorted({OTHERS, *self._agents} if self._crowded else self._agents)
        yield InfoMetricFamily(names.COLLECTOR_INFO, "The collector.", {"version": _version()})
        yield from _of_cascades(read, unread + len(rows) - len(read), now)
        yield from _of_hops(facts, agents, label, now)
        yield from _of_processes(processes, agents, label, now)
        totals = self._store.totals()
        yield _gauge(names.COLLECTOR_STORE_BYTES, "Bytes that the store takes.", totals.bytes)
        yield _gauge(names.COLLECTOR_STORE_CASCADES, "Cascades that the store holds.", totals.cascades)
        yield _gauge(names.COLLECTOR_STORE_PENDING, "Requests that wait to be written.", totals.pending)

    def _read(self, rows: Sequence[Row], agents: dict[str, Agent]) -> list[Row]:
        """Fill in the verdicts of rows, and know the facts of each; returns those that the time was enough for."""
        until = self._monotonic() + BUDGET

        def go_on() -> bool:
            return self._monotonic() < until

        read: list[Row] = []
        for start in range(0, len(rows), PART):
            part = rows[start : start + PART]
            self._judge.judge_rows(part, agents, go_on)
            for row in part:
                if row.verdict is None:
                    continue
                kept = self._facts.get(row.number)
                if kept is None or kept.version != row.version:
                    if not go_on():
                        continue
                    try:
                        snapshot = self._store.snapshot(row.cascade)
                    except UnknownCascadeError:
                        continue
                    self._facts[row.number] = facts_of(snapshot)
                self._facts.move_to_end(row.number)
                read.append(row)
        while len(self._facts) > MAX_CASCADES:
            self._facts.popitem(last=False)
        return read

    def _labels(self, facts: list[Facts], processes: list[tuple[Agent, int]]) -> Callable[[str], str]:
        """Which label each agent's name has: its own, for as many as may have one."""
        named = dict.fromkeys(agent.name for agent, _ in processes)
        for each in facts:
            for key in (*each.open, *each.abandoned):
                named[key[0]] = None
            named.update(dict.fromkeys((*each.swallowed, *each.outlived)))
        # Who has a series keeps it, so that none jumps to and fro between its own and the others'.
        labels = {name: _short(name) for name in named}
        kept = [label for label in self._agents if label in set(labels.values())]
        known = dict.fromkeys(kept)
        self._crowded = False
        for label in labels.values():
            if label not in known:
                if len(known) < MAX_AGENTS:
                    known[label] = None
                else:
                    self._crowded = True
        self._agents = known
        return lambda name: label if (label := labels.get(name, OTHERS)) in known else OTHERS


def _of_cascades(rows: list[Row], unread: int, now: int) -> Iterator[Metric]:
    by_verdict = Counter(row.verdict for row in rows)
    cascades = GaugeMetricFamily(
        names.COLLECTOR_CASCADES,
        "Cascades that are open or of which a record came in the last hour, by verdict.",
        labels=["verdict"],
    )
    age = GaugeMetricFamily(
        names.COLLECTOR_CASCADE_AGE,
        "How long ago the oldest cascade with an open hop began, by verdict; 0 where there is none.",
        labels=["verdict"],
    )
    for verdict in NAMES:
        cascades.add_metric([verdict], by_verdict[verdict])
        started = [row.started for row in rows if row.open and row.verdict == verdict and row.started]
        age.add_metric([verdict], max(0.0, (now - min(started)) / 1e9) if started else 0.0)
    yield cascades
    yield age
    yield _gauge(
        names.COLLECTOR_CASCADES_UNREAD,
        "Cascades that belong to the other gauges and were not looked at, for lack of time or because they are too many.",
        unread,
    )


def _of_hops(
    facts: list[Facts], agents: list[str], label: Callable[[str], str], now: int
) -> Iterator[Metric]:
    opened: Counter[tuple[str, str]] = Counter()
    oldest: dict[tuple[str, str], int] = {}
    waiting: Counter[tuple[str, str, str]] = Counter()
    abandoned: Counter[tuple[str, str]] = Counter()
    swallowed: Counter[str] = Counter()
    outlived: Counter[str] = Counter()
    locked: set[tuple[str, str]] = set()
    for each in facts:
        for (agent, kind), count in each.open.items():
            key = (label(agent), kind)
            opened[key] += count
            oldest[key] = min(oldest.get(key, 2**63), each.oldest[agent, kind])
        for (agent, on, moves), count in each.waiting.items():
            waiting[label(agent), on, moves] += count
        for (agent, cause), count in each.abandoned.items():
            abandoned[label(agent), cause] += count
        for agent, count in each.swallowed.items():
            swallowed[label(agent)] += count
        for agent, count in each.outlived.items():
            outlived[label(agent)] += count
        locked |= each.deadlocks  # one deadlock may hold up several cascades
    hops = GaugeMetricFamily(
        names.COLLECTOR_OPEN_HOPS, "Open hops, by agent and kind.", labels=["agent", "kind"]
    )
    ages = GaugeMetricFamily(
        names.COLLECTOR_OPEN_HOP_AGE,
        "How long ago the oldest open hop began, by agent and kind; 0 where none is open.",
        labels=["agent", "kind"],
    )
    causes = GaugeMetricFamily(
        names.COLLECTOR_ABANDONED_HOPS,
        "Hops that never finished, by agent and cause: their process was killed, or ended with them pending, or nothing "
        "kept a reference to the task.",
        labels=["agent", "cause"],
    )
    for agent in agents:
        for kind in names.KINDS:
            hops.add_metric([agent, kind], opened[agent, kind])
            started = oldest.get((agent, kind))
            ages.add_metric([agent, kind], 0.0 if started is None else max(0.0, (now - started) / 1e9))
        for cause in CAUSES:
            causes.add_metric([agent, cause], abandoned[agent, cause])
    yield hops
    yield ages
    standing = GaugeMetricFamily(
        names.COLLECTOR_WAITING_HOPS,
        "Open hops with no open hop below them, by agent, what they wait on, and whether that may move by itself.",
        labels=["agent", "on", "moves"],
    )
    for where, count in sorted(waiting.items()):
        standing.add_metric(where, count)
    yield standing
    yield causes
    for name, meaning, counted in (
        (
            names.COLLECTOR_SWALLOWED,
            "Tasks that were asked to cancel and finished as if nobody had.",
            swallowed,
        ),
        (
            names.COLLECTOR_OUTLIVED,
            "Hops whose task was pending a second after it was asked to cancel.",
            outlived,
        ),
        (
            names.COLLECTOR_DEADLOCKS,
            "Deadlocks among tasks that hold up an open hop.",
            Counter(label(agent) for agent, _ in locked),
        ),
    ):
        family = GaugeMetricFamily(name, meaning, labels=["agent"])
        for agent in agents:
            family.add_metric([agent], counted[agent])
        yield family


def _of_processes(
    processes: list[tuple[Agent, int]], agents: list[str], label: Callable[[str], str], now: int
) -> Iterator[Metric]:
    states: Counter[tuple[str, str]] = Counter()
    silence: dict[str, int] = {}
    pending: Counter[tuple[str, str]] = Counter()
    dropped: Counter[str] = Counter()
    for process, opened in processes:
        agent = label(process.name)
        state = state_of(process, opened, now)
        states[agent, state] += 1
        if opened and state != "ended":
            silence[agent] = max(silence.get(agent, 0), now - process.heard)
        if process.ended:
            for kind, count in process.pending.items():
                pending[agent, kind] += count
        dropped[agent] += process.dropped
    running = GaugeMetricFamily(
        names.COLLECTOR_PROCESSES,
        "Processes by agent and state: alive, idle (quiet, with nothing open), silent (quiet, with hops open), ended.",
        labels=["agent", "state"],
    )
    quiet = GaugeMetricFamily(
        names.COLLECTOR_SILENCE,
        "How long nothing has been heard of the quietest process with open hops; 0 where no process has any.",
        labels=["agent"],
    )
    left = GaugeMetricFamily(
        names.COLLECTOR_PENDING_AT_SHUTDOWN,
        "What was pending in processes when they ended, by agent and kind.",
        labels=["agent", "kind"],
    )
    lost = GaugeMetricFamily(
        names.COLLECTOR_DROPPED,
        "Entries that did not fit into the ledgers of processes.",
        labels=["agent"],
    )
    for agent in agents:
        for state in STATES:
            running.add_metric([agent, state], states[agent, state])
        quiet.add_metric([agent], max(0.0, silence.get(agent, 0) / 1e9))
        for kind in names.KINDS:
            left.add_metric([agent, kind], pending[agent, kind])
        lost.add_metric([agent], dropped[agent])
    yield from (running, quiet, left, lost)


def _gauge(name: str, meaning: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, meaning, value)


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"


def _version() -> str:
    try:
        return version("hopwatch")
    except PackageNotFoundError:
        return "unknown"
