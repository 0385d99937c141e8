"""What has changed since a page last heard? Server-sent events, with a memory, so that a page that comes back catches up.

One loop looks for all pages: soon after records have come, and once a second, for time alone changes verdicts, too.
What it finds is kept as the last events of a feed. Each page reads a feed at its own speed, and a page that lost too
many gets everything anew. Nothing is looked at while no page is open.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import orjson
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse
from starlette.routing import Route

from hopwatch.collector.api import (
    agent_object,
    cascade_head,
    error_response,
    hop_object,
    row_object,
    timestamp,
)
from hopwatch.collector.store import StoreError, UnknownCascadeError
from hopwatch.verdict import NAMES, taken_unanswered

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Container, Iterable
    from concurrent.futures import Future

    from starlette.requests import Request
    from starlette.responses import Response

    from hopwatch.collector.batch import Batch, Refusals
    from hopwatch.collector.judged import Judge
    from hopwatch.collector.store import Remembered, Row, Snapshot, Store, Totals
    from hopwatch.records import Hop
    from hopwatch.verdict import Agent, Name, Verdict

_log: Final = logging.getLogger("hopwatch.collector")

NEWEST: Final = 500
"""Cascades that a page is told of: so many of the newest, and so many of the newest that are not settled."""
OLDEST_OPEN: Final = 1_000
"""The oldest open hops whose cascades are told, however many newer ones there are."""
UNSETTLED_EVERY: Final = 5.0
"""Seconds between two looks for those that are not settled, through the whole store."""
MAX_PAGES: Final = 200
MAX_WATCHED: Final = 100
"""Different cascades that pages look at in one moment."""
LOOK_EVERY: Final = 1.0
"""Seconds after which verdicts are looked at again without a new record."""
AT_MOST_EVERY: Final = 0.2
"""Seconds between two looks, however many records come."""
SHARE: Final = 0.2
"""Part of the time that looking may take."""
ALIVE_EVERY: Final = 5.0
"""Seconds after which a page is told that there is nothing new."""
LINGER: Final = 30.0
"""Seconds that a cascade is remembered after its last page has gone: it may only have lost its connection."""
FEED_BYTES: Final = 2 * 1024 * 1024
_UNSETTLED: Final = frozenset(NAMES) - {"settled"}


class Feed:
    """The last events of one kind, each with its number.

    Args:
        room: bytes that they may take together; the oldest go first.
    """

    def __init__(self, room: int = FEED_BYTES) -> None:
        self.number = 0
        self._events: deque[bytes] = deque()
        self._bytes = 0
        self._room = room

    def add(self, event: bytes) -> None:
        """A further event."""
        self.number += 1
        self._events.append(event)
        self._bytes += len(event)
        while self._bytes > self._room:
            self._bytes -= len(self._events.popleft())

    def after(self, number: int) -> list[bytes] | None:
        """The events behind that number; None where some of them are not known any more, or it never was one."""
        behind = self.number - number
        if not 0 <= behind <= len(self._events):
            return None
        return list(self._events)[len(self._events) - behind :] if behind else []


class Overview:
    """The list of cascades and the agents, as pages have been told."""

    def __init__(self) -> None:
        self.feed = Feed()
        self._rows: dict[str, dict[str, Any]] = {}
        self._agents: dict[str, dict[str, Any]] = {}
        self._whole: tuple[int, bytes] | None = None

    def update(self, rows: Iterable[dict[str, Any]], agents: Iterable[dict[str, Any]]) -> None:
        """Take in how it is now; what is different becomes an event."""
        now_rows = {row["cascade"]: row for row in rows}
        now_agents = {agent["instance"]: agent for agent in agents}
        told = {
            "cascades": [row for key, row in now_rows.items() if self._rows.get(key) != row],
            "gone": [key for key in self._rows if key not in now_rows],
            "agents": [agent for key, agent in now_agents.items() if self._agents.get(key) != agent],
            "agents_gone": [key for key in self._agents if key not in now_agents],
        }
        self._rows, self._agents = now_rows, now_agents
        if any(told.values()):
            self.feed.add(orjson.dumps({**told, "whole": False}))

    def whole(self) -> bytes:
        """All of it as one event."""
        number = self.feed.number  # first: what is newer than its number is told again, and that does no harm
        kept = self._whole
        if kept is None or kept[0] != number:
            content = {
                "whole": True,
                "cascades": list(self._rows.values()),
                "agents": list(self._agents.values()),
            }
            self._whole = kept = (number, orjson.dumps(content))
        return kept[1]


class Watched:
    """One cascade that pages look at, as they have been told."""

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self.feed = Feed()
        self.left = 0.0
        """When the last page went."""
        self.pages = 0
        self._head: dict[str, Any] = {}
        self._marks: dict[str, int] = {}
        self._whole: tuple[int, bytes] | None = None

    def update(self, snapshot: Snapshot | None, verdict: Verdict | None, now: int) -> None:
        """Take in how it is now; what is different becomes an event. Without a snapshot it is not known."""
        if snapshot is None or verdict is None:
            head: dict[str, Any] = {"cascade": self.identity, "known": False}
            changed: list[Hop] = []
            taken: set[str] = set()
            marks: dict[str, int] = {}
        else:
            taken = taken_unanswered(snapshot.hops)
            skews = {key: agent.skew / 1e9 for key, agent in snapshot.agents.items() if agent.skew}
            head = {**cascade_head(snapshot, verdict, now), "known": True, "skews": skews}
            marks = {key: _mark(hop, taken=key in taken) for key, hop in snapshot.hops.items()}
            changed = [hop for key, hop in snapshot.hops.items() if self._marks.get(key) != marks[key]]
        different = {key: value for key, value in head.items() if self._head.get(key) != value}
        # A hop never goes from a cascade; if all of it went and came again, everything is told anew.
        anew = not self._head or any(key not in marks for key in self._marks)
        self._head, self._marks = head, marks
        if not anew and not different and not changed:
            return
        hops = [hop_object(hop, taken) for hop in sorted(changed, key=lambda hop: (hop.started, hop.id))]
        content = orjson.dumps({**(head if anew else different), "hops": hops, "whole": anew})
        self.feed.add(content)
        if anew:
            self._whole = (self.feed.number, content)

    def whole(self, snapshot: Callable[[], Snapshot | None]) -> bytes:
        """All of it as one event."""
        number = self.feed.number
        kept = self._whole
        if kept is None or kept[0] != number:
            head, found = self._head, snapshot()
            every = {} if found is None else found.hops
            hops = sorted(every.values(), key=lambda hop: (hop.started, hop.id))
            taken = taken_unanswered(every)
            content = {**head, "hops": [hop_object(hop, taken) for hop in hops], "whole": True}
            self._whole = kept = (number, orjson.dumps(content))
        return kept[1]

    def forget_whole(self) -> None:
        """Let go of what only pages that come at this moment need."""
        self._whole = None


class Observed:
    """A store that tells when it has taken something in. Everything else is the store's own.

    Args:
        store: what keeps the hops.
        told: is called from any thread after each batch; it must return at once.
    """

    def __init__(self, store: Store, told: Callable[[], None]) -> None:
        self._store = store
        self._told = told

    def write(self, batch: Batch) -> Future[Refusals]:
        """Take in a batch; see `Store`."""
        future = self._store.write(batch)
        future.add_done_callback(lambda _: self._told())
        return future

    def rows(self, before: int | None, limit: int, verdicts: frozenset[Name] = frozenset()) -> list[Row]:
        """Cascades, newest first; see `Store`."""
        return self._store.rows(before, limit, verdicts)

    def remember(self, verdicts: Iterable[Remembered]) -> None:
        """Remember verdicts; see `Store`."""
        self._store.remember(verdicts)

    def snapshot(self, prefix: str) -> Snapshot:
        """One cascade; see `Store`."""
        return self._store.snapshot(prefix)

    def open_hops(self, limit: int) -> list[Hop]:
        """Open hops, oldest first; see `Store`."""
        return self._store.open_hops(limit)

    def agents(self) -> list[tuple[Agent, int]]:
        """Every process known; see `Store`."""
        return self._store.agents()

    def watched(self, since: int, limit: int) -> tuple[list[Row], int]:
        """What is open, or was lately; see `Store`."""
        return self._store.watched(since, limit)

    def totals(self) -> Totals:
        """How much there is; see `Store`."""
        return self._store.totals()

    def close(self) -> None:
        """Write what waits, and close; see `Store`."""
        self._store.close()


class Live:
    """The events of a store for any number of pages. All but `changed` belongs to the event loop.

    Args:
        store: what to read.
        judge: who judges.
        clock: Unix nanoseconds.
    """

    def __init__(self, store: Store, judge: Judge, clock: Callable[[], int] = time.time_ns) -> None:
        self._store = store
        self._judge = judge
        self._clock = clock
        self._epoch = secrets.token_hex(4)
        """Events are numbered from 1 in each run of a collector: this tells one run from another."""
        self._overview = Overview()
        self._watched: dict[str, Watched] = {}
        self._pages = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._looking: asyncio.Task[None] | None = None
        self._dirty = asyncio.Event()
        self._news = asyncio.Event()
        self._closed = False
        self._looked = False
        """Whether what is kept here is of now: nobody looks while there are no pages."""
        self._waking = False
        self._older: list[Row] = []
        """Cascades that are told although they are not among the newest."""
        self._older_at = float("-inf")
        self._numbered: dict[str, int] = {}
        self._unsettled: list[str] = []
        self._unsettled_at = float("-inf")

    def routes(self) -> list[Route]:
        """Where a page listens."""
        return [Route("/api/live", self.stream, methods=["GET"])]

    def changed(self) -> None:
        """Something was stored. May be called from any thread, and costs next to nothing."""
        loop = self._loop
        if loop is None or self._waking or not self._pages:
            return
        self._waking = True
        with contextlib.suppress(RuntimeError):  # the loop has just been closed
            loop.call_soon_threadsafe(self._dirty.set)

    def close(self) -> None:
        """End every stream, so that the collector can stop at once."""
        self._closed = True
        self._news.set()
        self._dirty.set()

    async def stream(self, request: Request) -> Response:
        """`GET /api/live?cascade=&after=`: the overview, and one cascade with all its hops if it is named."""
        identity = request.query_params.get("cascade")
        if identity is not None and not re.fullmatch("[0-9a-f]{32}", identity):
            return error_response(400, f"cascade is {identity[:60]!r}; it is 32 hex digits")
        after = request.headers.get("last-event-id") or request.query_params.get("after") or ""
        if self._closed or self._pages >= MAX_PAGES:
            return error_response(503, f"{self._pages} pages are open already", {"retry-after": "5"})
        if identity is not None and identity not in self._watched and len(self._watched) >= MAX_WATCHED:
            return error_response(
                503, f"pages look at {len(self._watched)} cascades already", {"retry-after": "5"}
            )
        return StreamingResponse(
            self._events(identity, after),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    # One page --------------------------------------------------------------------------------------------------

    async def _events(self, identity: str | None, after: str) -> AsyncIterator[bytes]:
        overview_at, watched_at = self._read_id(after, identity)
        self._pages += 1
        watched: Watched | None = None
        try:
            if identity is not None:
                watched = self._watched.setdefault(identity, Watched(identity))
                watched.pages += 1
            yield b"retry: 1000\n\n"
            await self._first_look(watched)
            while not self._closed:
                news = self._news
                out: list[bytes] = []
                if watched is not None and watched_at != watched.feed.number:
                    events, watched_at = watched.feed.after(watched_at), watched.feed.number
                    if events is None:
                        events = [await run_in_threadpool(watched.whole, self._again(watched))]
                    out += [b"event: cascade\ndata: " + each for each in events]
                if overview_at != self._overview.feed.number:
                    missed, overview_at = self._overview.feed.after(overview_at), self._overview.feed.number
                    out += [
                        b"event: overview\ndata: " + each
                        for each in ([self._overview.whole()] if missed is None else missed)
                    ]
                # The time goes with everything: durations on a page are by the collector's clock.
                told = orjson.dumps({"now": timestamp(self._clock())})
                number = f"{self._epoch}.{overview_at}.{watched_at if watched is not None else ''}"
                out.append(b"event: alive\ndata: " + told + b"\nid: " + number.encode())
                yield b"\n\n".join(out) + b"\n\n"
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(news.wait(), ALIVE_EVERY)
        finally:
            self._pages -= 1
            if watched is not None:
                watched.pages -= 1
                watched.left = time.monotonic()

    def _read_id(self, after: str, identity: str | None) -> tuple[int, int]:
        """From which events on a page wants to hear; -1 for everything."""
        found = re.fullmatch(r"([0-9a-f]{8})\.([0-9]{1,15})\.([0-9]{0,15})", after)
        if found is None or found[1] != self._epoch:
            return -1, -1
        return int(found[2]), int(found[3]) if found[3] and identity in self._watched else -1

    async def _first_look(self, watched: Watched | None) -> None:
        """Wait until everything that the page shows has been looked at, and is being looked at from here on."""
        if self._looking is None or self._looking.done():
            self._loop = asyncio.get_running_loop()
            self._looking = asyncio.create_task(self._look_again_and_again(), name="hopwatch-live")
        self._dirty.set()
        while not self._closed and not (self._looked and (watched is None or watched.feed.number)):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._news.wait(), ALIVE_EVERY)

    # The one loop ----------------------------------------------------------------------------------------------

    async def _look_again_and_again(self) -> None:
        self._looked = False
        while self._pages and not self._closed:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._dirty.wait(), LOOK_EVERY)
            if self._closed:
                return
            self._dirty.clear()
            self._waking = False
            began = time.monotonic()
            for gone in [
                key for key, each in self._watched.items() if not each.pages and began - each.left > LINGER
            ]:
                del self._watched[gone]
            before, first = self._numbers(), not self._looked
            try:
                await run_in_threadpool(self._look, list(self._watched.values()))
                self._looked = True
            except StoreError as error:
                _log.warning("the live page could not be told anything new: %s", error)
            except Exception:  # noqa: BLE001 - the pages that are open go on as soon as it works again
                _log.exception("the live page could not be told anything new")
            if first or self._numbers() != before:
                news, self._news = self._news, asyncio.Event()
                news.set()
            took = time.monotonic() - began
            await asyncio.sleep(max(AT_MOST_EVERY, took / SHARE))
            for each in self._watched.values():
                each.forget_whole()
        self._looked = False

    def _numbers(self) -> list[int]:
        return [self._overview.feed.number, *(each.feed.number for each in self._watched.values())]

    # In a thread -----------------------------------------------------------------------------------------------

    def _look(self, watched: list[Watched]) -> None:
        now = self._clock()
        rows = {row.cascade: row for row in self._judge.listed(frozenset(), NEWEST)}
        at = time.monotonic()
        if at - self._unsettled_at > UNSETTLED_EVERY:
            self._unsettled_at = at
            self._unsettled = [row.cascade for row in self._judge.listed(_UNSETTLED, NEWEST)]
        if at - self._older_at > LOOK_EVERY:
            self._older_at = at
            self._older = self._look_at_older(rows)
        for row in self._older:
            rows.setdefault(row.cascade, row)
        agents = [
            {**agent_object(agent, opened, now), "open": opened, "dropped": agent.dropped}
            for agent, opened in self._store.agents()
        ]
        self._overview.update([row_object(row) for row in rows.values()], agents)
        if not self._overview.feed.number:  # nothing is known at all: that is news, too, to the first page
            self._overview.feed.add(self._overview.whole())
        for each in watched:
            snapshot = self._snapshot(each.identity)
            each.update(snapshot, None if snapshot is None else self._judge.verdict(snapshot), now)

    def _look_at_older(self, newest: Container[str]) -> list[Row]:
        wanted = [*(hop.cascade for hop in self._store.open_hops(OLDEST_OPEN)), *self._unsettled]
        numbers: dict[str, int] = {}
        for identity in dict.fromkeys(wanted):
            number = self._numbered.get(identity)
            if number is None:
                found = self._snapshot(identity)
                if found is None:
                    continue
                number = found.row.number
            numbers[identity] = number
        self._numbered = numbers
        return self._judge.numbered(number for identity, number in numbers.items() if identity not in newest)

    def _again(self, watched: Watched) -> Callable[[], Snapshot | None]:
        return lambda: self._snapshot(watched.identity)

    def _snapshot(self, identity: str) -> Snapshot | None:
        try:
            return self._store.snapshot(identity)
        except UnknownCascadeError:
            return None


def _mark(hop: Hop, *, taken: bool) -> int:
    """Another number whenever anything of a hop may have changed that a page shows."""
    return hash(
        (
            hop.heard, hop.sampled, hop.ended, hop.outcome, hop.started, hop.children, hop.late_children, hop.parent,
            hop.peer, taken, hop.task_at, hop.task_state, len(hop.attributes),
        )
    )  # fmt: skip
