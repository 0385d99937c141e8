"""What would the collector say? Cascade objects, and a collector on loopback that says them."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from hopwatch.demo.run import free_ports

# ruff: noqa: A001, A002 - `id` is what the API calls it

ID = "0af7651916cd43dd8448eb211c80319c"
BEGAN = "2026-11-21T09:00:00.000000Z"
OVER = "2026-11-21T09:00:01.500000Z"


def hop(id, parent=None, kind="task", *, agent="worker", name="work", state="ended", **more):
    ended = state == "ended"
    return {
        "id": id, "parent": parent, "kind": kind, "name": name, "agent": agent, "instance": "00" * 8,
        "state": state, "outcome": "finished" if ended else None, "started": BEGAN, "ended": OVER if ended else None,
        "children": 0, "late": False, "waits_on": None, "task_id": None, "task_state": None, "location": None,
        "reason": None, "peer": None, "peer_name": None, "attributes": {}, **more,
    }  # fmt: skip


def cascade(verdict="settled", hops=(), *, reason=None, id=ID, **more):
    hops = list(hops)
    opened = [each["id"] for each in hops if each["state"] == "open"]
    return {
        "cascade": id, "verdict": verdict, "reason": reason or f"This one is {verdict}.", "started": BEGAN,
        "ended": None if opened else OVER, "frontier": opened[-1:], "missing": [], "opaque": [],
        "agents": [{"name": "worker", "instance": "00" * 8, "pid": 7, "state": "alive", "heard": BEGAN}],
        "hops": hops, **more,
    }  # fmt: skip


def row(verdict="settled", id=ID, **more):
    return {
        "cascade": id, "verdict": verdict, "reason": f"This one is {verdict}.", "started": BEGAN, "ended": OVER,
        "agents": ["frontdesk", "worker"], "hops": 14, "open": 0, **more,
    }  # fmt: skip


class CannedCollector:
    """Answers with what it was given: the next one at each question, the last one for ever.

    None is a cascade that is not known, a number a failure with that status.
    """

    def __init__(self):
        self.url = ""
        self.asked = []
        self.rows = []
        self.answers = {}

    def say(self, *cascades, id=ID):
        self.answers[id] = list(cascades)

    def app(self):
        return Starlette(routes=[Route("/api/cascades", self._list), Route("/api/cascades/{id}", self._one)])

    async def _list(self, request):
        self.asked.append(str(request.url))
        wanted = request.query_params.getlist("verdict")
        return JSONResponse(
            {"cascades": [each for each in self.rows if not wanted or each["verdict"] in wanted]}
        )

    async def _one(self, request):
        asked = request.path_params["id"]
        self.asked.append(str(request.url))
        if asked == "dead":
            return PlainTextResponse("no collector of yours")
        matching = [id for id in self.answers if id.startswith(asked)]
        if len(matching) > 1:
            return JSONResponse({"error": f"{asked} is the beginning of {len(matching)} cascades"}, 400)
        answers = self.answers[matching[0]] if matching else [None]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, int):
            return JSONResponse({"error": "the store is busy"}, answer)
        if answer is None:
            return JSONResponse({"error": f"no cascade {asked} is known"}, 404)
        return JSONResponse(answer)


@contextlib.contextmanager
def running(collector):
    listener = socket.create_server(
        ("127.0.0.1", 0)
    )  # who connects before the server runs waits in its backlog
    collector.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(collector.app(), log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()


def free_port():
    return free_ports(1)[0]


def environment(**more):
    kept = {
        key: value
        for key, value in os.environ.items()
        if key == "HOPWATCH_BLACKBOX" or not key.startswith(("HOPWATCH_", "OTEL_", "NO_COLOR"))
    }
    return {**kept, **more}


def command(*words):
    return [sys.executable, "-m", "hopwatch", *words]


def hopwatch(*words, **variables):
    return subprocess.run(
        command(*words),
        env=environment(**variables),
        capture_output=True,
        encoding="utf-8",
        timeout=240,
        check=False,
    )
