"""What does a reader ask? The JSON API: cascades with their verdicts, open hops, agents."""

from __future__ import annotations

import logging
import re
import time
from datetime import datetime, timezone
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import orjson
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from hopwatch.collector.guard import STRANGER
from hopwatch.collector.store import AmbiguousCascadeError, StoreBusyError, UnknownCascadeError
from hopwatch.collector.store.liveness import state_of
from hopwatch.verdict import NAMES, Agent, taken_unanswered

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container, Mapping

    from starlette.requests import Request

    from hopwatch.collector.judged import Judge
    from hopwatch.collector.store import Row, Snapshot, Store
    from hopwatch.records import Hop
    from hopwatch.verdict import Missing, Name, Verdict

_log: Final = logging.getLogger("hopwatch.collector")

DEFAULT_LIMIT: Final = 50
MAX_LIMIT: Final = 1_000
MAX_OPEN_HOPS: Final = 1_000


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer that nobody shall cache."""
    return Response(
        orjson.dumps(content),
        status,
        {"cache-control": "no-store", **(headers or {})},
        "application/json",
    )


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """The one form of an error."""
    return json_response({"error": message}, status, headers)


async def on_http_error(request: Request, error: Exception) -> Response:
    """What Starlette itself refuses: no such path, or not by that method."""
    assert isinstance(error, HTTPException)  # noqa: S101 - it is registered for nothing else
    path = request.url.path[:200]
    message = {
        404: f"there is nothing at {path}",
        405: f"{request.method} is not allowed at {path}",
    }.get(error.status_code, str(error.detail))
    return error_response(error.status_code, message, error.headers)


async def on_failure(request: Request, error: Exception) -> Response:
    """A failure of our own. The details are for the log."""
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return error_response(500, f"the collector failed: {type(error).__name__}")


class Api:
    """The JSON API over a store.

    Args:
        store: what to read.
        judge: who judges.
        clock: Unix nanoseconds.
    """

    def __init__(self, store: Store, judge: Judge, clock: Callable[[], int] = time.time_ns) -> None:
        self._store = store
        self._judge = judge
        self._clock = clock

    def routes(self) -> list[Route]:
        """Where each question is asked."""

        def route(path: str, answer: Callable[[Request], Response]) -> Route:
            return Route(path, _off_the_loop(answer), methods=["GET"])

        return [
            route("/api/cascades", self.cascades),
            route("/api/cascades/{cascade}", self.cascade),
            route("/api/hops", self.hops),
            route("/api/agents", self.agents),
            route("/healthz", self.health),
        ]

    def cascades(self, request: Request) -> Response:
        """`GET /api/cascades?verdict=&limit=`: newest first."""
        wanted = request.query_params.getlist("verdict")
        for name in wanted:
            if name not in NAMES:
                return error_response(
                    400, f"verdict is {_shown(name)}; it is one of {', '.join(NAMES)}, and may be given again"
                )
        limit = _limit(request, DEFAULT_LIMIT, MAX_LIMIT)
        if isinstance(limit, Response):
            return limit
        verdicts: frozenset[Name] = frozenset(wanted)  # type: ignore[arg-type]
        return json_response({"cascades": [row_object(row) for row in self._judge.listed(verdicts, limit)]})

    def cascade(self, request: Request) -> Response:
        """`GET /api/cascades/{id}`: one cascade with everything that is known of it."""
        prefix = request.path_params["cascade"].lower()
        if not re.fullmatch("[0-9a-f]{1,32}", prefix):
            return error_response(
                400,
                f"the cascade is {_shown(prefix)}; it is 32 hex digits, or as many of the first as tell it apart",
            )
        try:
            snapshot = self._store.snapshot(prefix)
        except UnknownCascadeError:
            return error_response(404, f"no cascade's id begins with {prefix}")
        except AmbiguousCascadeError as error:
            few = ", ".join(error.candidates[:10]) + (", ..." if len(error.candidates) > 10 else "")
            return error_response(409, f"more than one cascade's id begins with {prefix}: {few}")
        return json_response(cascade_object(snapshot, self._judge.verdict(snapshot), self._clock()))

    def hops(self, request: Request) -> Response:
        """`GET /api/hops?state=open`: the open hops of all cascades, oldest first."""
        state = request.query_params.get("state", "open")
        if state != "open":
            return error_response(
                400, f"state is {_shown(state)}; it is open (the ended are with their cascades)"
            )
        limit = _limit(request, MAX_OPEN_HOPS, MAX_OPEN_HOPS)
        if isinstance(limit, Response):
            return limit
        hops = self._store.open_hops(limit)
        return json_response({"hops": [{"cascade": hop.cascade, **hop_object(hop)} for hop in hops]})

    def agents(self, request: Request) -> Response:  # noqa: ARG002 - every route gets it
        """`GET /api/agents`: every process known, the one heard last first."""
        now = self._clock()
        return json_response(
            {
                "agents": [
                    {**agent_object(agent, opened, now), "open": opened, "dropped": agent.dropped}
                    for agent, opened in self._store.agents()
                ]
            }
        )

    def health(self, request: Request) -> Response:
        """`GET /healthz`: whether the store answers, and how full it is; without the token only the former."""
        totals = self._store.totals()
        if request.scope.get(STRANGER):
            return json_response({"status": "ok"})
        return json_response(
            {"status": "ok", "cascades": totals.cascades, "bytes": totals.bytes, "pending": totals.pending}
        )


# Objects -------------------------------------------------------------------------------------------------------


def cascade_object(snapshot: Snapshot, verdict: Verdict, now: int) -> dict[str, Any]:
    """One cascade as the API gives it."""
    hops = sorted(snapshot.hops.values(), key=lambda hop: (hop.started, hop.id))
    taken = taken_unanswered(snapshot.hops)
    return {**cascade_head(snapshot, verdict, now), "hops": [hop_object(hop, taken) for hop in hops]}


def cascade_head(snapshot: Snapshot, verdict: Verdict, now: int) -> dict[str, Any]:
    """The same without the hops."""
    row = snapshot.row
    agents: dict[str, Agent] = {}
    opened: dict[str, int] = {}
    for hop in sorted(snapshot.hops.values(), key=lambda hop: (hop.started, hop.id)):
        opened[hop.instance] = opened.get(hop.instance, 0) + (hop.ended is None)
        known = agents.get(hop.instance)
        if known is None:
            agents[hop.instance] = snapshot.agents.get(hop.instance) or Agent(
                hop.instance, hop.agent, heard=hop.heard
            )
        elif hop.heard > known.heard:
            known.heard = hop.heard
    return {
        "cascade": row.cascade,
        "verdict": verdict.verdict,
        "reason": verdict.reason,
        "started": timestamp(row.started),
        "ended": _ended(row, verdict.verdict),
        "frontier": verdict.frontier,
        "missing": [_missing(each) for each in verdict.missing],
        "opaque": verdict.opaque,
        "deadlocks": verdict.deadlocks,
        "agents": [agent_object(agent, opened[agent.instance], now) for agent in agents.values()],
    }


def hop_object(hop: Hop, taken: Container[str] = ()) -> dict[str, Any]:
    """One hop as the API gives it; `taken` are those that a peer has taken without an answer, by their ids."""
    ended = hop.ended
    return {
        "id": hop.id,
        "parent": hop.parent,
        "kind": hop.kind,
        "name": hop.name,
        "agent": hop.agent,
        "instance": hop.instance,
        "state": "open" if ended is None else "ended",
        "outcome": hop.outcome,
        "started": timestamp(hop.started),
        "ended": timestamp(ended),
        "children": hop.children + hop.late_children,
        "late": hop.late,
        "waits_on": hop.waits if ended is None else None,
        "task_id": hop.task_id,
        "task_state": hop.task_state,
        "location": hop.location,
        "reason": hop.reason,
        "peer": "instrumented" if hop.id in taken else hop.peer,
        "peer_name": hop.peer_name,
        "attributes": hop.attributes,
    }


def agent_object(agent: Agent, opened: int, now: int) -> dict[str, Any]:
    """One process as the API gives it.

    Args:
        agent: what is known of it.
        opened: its open hops: all of them, or those of the cascade that it is told of with.
        now: Unix nanoseconds.
    """
    return {
        "name": agent.name,
        "instance": agent.instance,
        "pid": agent.pid or None,
        "state": state_of(agent, opened, now),
        "heard": timestamp(agent.heard),
        "ended": {"at": timestamp(agent.ended), "how": agent.way, "pending": agent.pending}
        if agent.ended
        else None,
    }


def timestamp(at: int | None) -> str | None:
    """Unix nanoseconds as RFC 3339 with microseconds; None where nothing is known."""
    if not at:
        return None
    seconds, rest = divmod(at, 1_000_000_000)
    return f"{_second(seconds)}.{rest // 1000:06d}Z"


@lru_cache(maxsize=4096)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, tz=timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")


def _missing(missing: Missing) -> dict[str, Any]:
    return {
        "what": missing.what,
        "hop": missing.hop or None,
        "id": missing.id,
        "sentence": missing.sentence,
    }


def row_object(row: Row) -> dict[str, Any]:
    """One cascade as a list gives it."""
    return {
        "cascade": row.cascade,
        "verdict": row.verdict,
        "reason": row.reason,
        "started": timestamp(row.started),
        "ended": _ended(row, row.verdict),
        "agents": row.agents,
        "hops": row.hops,
        "open": row.open,
    }


def _ended(row: Row, verdict: Name | None) -> str | None:
    if row.open or verdict in (None, "in_flight", "unknown"):
        return None
    return timestamp(row.ended)


# Questions -----------------------------------------------------------------------------------------------------


def _off_the_loop(answer: Callable[[Request], Response]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            return await run_in_threadpool(answer, request)
        except StoreBusyError as error:
            return error_response(503, str(error), {"retry-after": "1"})

    return endpoint


def _limit(request: Request, default: int, most: int) -> int | Response:
    text = request.query_params.get("limit")
    if text is None:
        return default
    if not re.fullmatch("[0-9]{1,6}", text) or not 1 <= int(text) <= most:
        return error_response(400, f"limit is {_shown(text)}; it is a whole number from 1 to {most}")
    return int(text)


def _shown(value: str) -> str:
    return repr(value if len(value) <= 60 else value[:57] + "...")
