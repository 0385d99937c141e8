"""How do the page's tests look at it? A real Chromium, and cascades of every verdict told to a real collector."""

from __future__ import annotations

import shutil
import threading
import time
from contextlib import contextmanager, suppress
from http.client import HTTPException
from typing import Any

import pytest
from telling import PLANNER, SECOND, WORKER, end, heartbeat, opened, protobuf, trace

from hopwatch import attributes as names

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FRONTDESK = "cccccccccccccccc"
EVIL = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
TURNED = "\u202egnp.exe \u05e9\u05dc\u05d5\u05dd\u200b"
LONG = "long name " * 10_240
DEADLOCK = {
    "words": "'charge' holds lock `account`, wants lock `stock`, which 'reserve' holds; and the other way round",
    "edges": [
        {
            "task": "charge", "kind": "lock", "wants": "lock `stock`", "held_by": "reserve",
            "holds": "lock `account`", "at": "worker.py:62 charge",
        },
        {
            "task": "reserve", "kind": "lock", "wants": "lock `account`", "held_by": "charge",
            "holds": "lock `stock`", "at": "worker.py:68 reserve",
        },
    ],
}  # fmt: skip


@contextmanager
def chromium():
    """A browser of its own; the test is left out where there is none."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
            timeout=180_000,
        )
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """A page, and everything about it that must not be: errors, and requests to anywhere else."""

    def __init__(self, browser: Any, url: str, **context: Any) -> None:
        self.url = url
        self.context = browser.new_context(viewport={"width": 1280, "height": 900}, **context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.wrong: list[str] = []
        self.page.on("pageerror", lambda error: self.wrong.append(f"error {error}"))
        self.page.on("console", self._said)
        self.page.on("request", self._asked)

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning") and "ERR_CONNECTION" not in message.text:
            self.wrong.append(f"{message.type} {message.text}")

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.url, "blob:", "data:")):
            self.wrong.append(f"request {request.url}")

    def open(self, where: str = "#/") -> Any:
        self.page.goto(f"{self.url}/{where}")
        return self.page


@contextmanager
def looking(browser, running, **context):
    """A page at a collector, or at its address; at the end nothing may have gone wrong with it."""
    url = running if isinstance(running, str) else f"http://127.0.0.1:{running.port}"
    watched = Watched(browser, url, **context)
    try:
        yield watched
        assert watched.wrong == []
    finally:
        watched.context.close()


def tell(running, spans, service="worker"):
    status, _, answer = running.post(protobuf(*spans, service=service))
    assert status == 200, answer


def beat(running, instance, service, *, at=None):
    """A sign of life that says that every hop has just been looked at."""
    at = at or time.time_ns()
    tell(running, [heartbeat(instance, at=at, **{names.HEARTBEAT_SAMPLED: at})], service)


@contextmanager
def alive(running, **agents):
    """While this lasts these processes, instances by their names, are heard of again and again: on a slow machine, too, none of them is silent."""
    over = threading.Event()

    def live():
        while not over.wait(2):
            for service, instance in agents.items():
                with suppress(OSError, HTTPException):  # one that stands still is told again
                    beat(running, instance, service)

    for service, instance in agents.items():
        beat(running, instance, service)
    beating = threading.Thread(target=live)
    beating.start()
    try:
        yield
    finally:
        over.set()
        beating.join()


def tell_cascade(running, verdict, *, name="work", agent="worker", at=None, cascade=None):
    """Have the collector told of a cascade of two agents that has, or will have, this verdict; gives its id."""
    cascade = cascade or trace()
    at = at or time.time_ns() - 3 * SECOND
    ids = [cascade[i : i + 16] for i in (0, 16)]
    send, request, work = ids[0], ids[1], f"{int(ids[0], 16) ^ 1:016x}"
    step = SECOND // 100
    peer = {
        names.PEER: "instrumented",
        names.PEER_HOP: request,
        names.SERVER_ADDRESS: "127.0.0.1",
        names.SERVER_PORT: 9000,
    }
    tell(
        running,
        [{**end(cascade, send, at=at, kind="send", instance=PLANNER, **peer), "end": at + 20 * step}],
        "planner",
    )
    children = 2 if verdict == "unknown" else 1
    spans = [
        {
            **end(
                cascade,
                request,
                at=at + 5 * step,
                parent=send,
                kind="request",
                children=children,
                **{names.HOP_REMOTE: True},
            ),
            "end": at + 18 * step,
        }
    ]
    task = {names.A2A_TASK_ID: f"task {cascade[:4]}"}
    ended = {"at": at + 10 * step, "parent": request, **task}
    if verdict in ("settled", "unknown"):
        last = end(cascade, work, **ended, **{names.A2A_TASK_STATE: "TASK_STATE_COMPLETED"})
    elif verdict == "waiting":
        last = end(cascade, work, **ended, **{names.A2A_TASK_STATE: "TASK_STATE_INPUT_REQUIRED"})
    elif verdict == "stranded":
        last = end(cascade, work, **ended, **{names.A2A_TASK_STATE: "TASK_STATE_WORKING"})
    elif verdict == "broken":
        last = end(
            cascade,
            work,
            **ended,
            outcome="abandoned",
            **{names.HOP_REASON: "process_killed: the worker was killed"},
        )
    else:
        waits = {
            "kind": "future", "moves": verdict != "stalled", "what": "a future `answer` that nobody has set",
            "file": "/srv/worker.py", "line": 42, "function": "work", "task": "Task-12",
            "chain": ["/srv/worker.py:31 execute", "/srv/worker.py:42 work"],
        }  # fmt: skip
        last = opened(
            cascade, work, at=at + 10 * step, parent=request, waits=waits, moves=verdict != "stalled",
            sampled=at + 2 * SECOND, **task, **{names.A2A_TASK_STATE: "TASK_STATE_WORKING"},
        )  # fmt: skip
    last["says"][names.HOP_NAME] = name
    last["name"] = f"execution {name}"
    spans.append(last)
    tell(running, spans, agent)
    return cascade


def tell_deadlock(running):
    """A cascade that two tasks of one agent hold up by taking two locks in opposite order."""
    cascade, root = trace(), "d" * 16
    at = time.time_ns() - 4 * SECOND
    spans = [end(cascade, root, at=at, kind="request", children=2)]
    for number, (task, wants, holder) in enumerate(
        (("charge", "stock", "reserve"), ("reserve", "account", "charge"))
    ):
        waits = {
            "kind": "lock", "moves": False, "what": f"lock `{wants}` held by task '{holder}'", "task": task,
            "file": "/srv/worker.py", "line": 62, "holder": holder, "deadlock": DEADLOCK,
        }  # fmt: skip
        spans.append(
            opened(
                cascade,
                f"{number + 1:016x}",
                at=at + SECOND,
                parent=root,
                kind="task",
                waits=waits,
                moves=False,
                sampled=at + 3 * SECOND,
            )
        )
    tell(running, spans)
    beat(running, WORKER, "worker")
    return cascade


def tell_many(running, count, *, open_ones=50):
    """A cascade of so many hops under one request, some of them still open."""
    cascade, root = trace(), "e" * 16
    at = time.time_ns() - 10 * SECOND
    waits = {"kind": "socket", "moves": True, "what": "a socket"}
    tell(running, [end(cascade, root, at=at, kind="request", children=count - 1)])
    hops = [f"{number:016x}" for number in range(1, count)]
    for start in range(0, len(hops), 2_000):
        part = []
        for number, hop in enumerate(hops[start : start + 2_000], start):
            begun = at + SECOND + number * SECOND // 2_000
            one = (
                opened(cascade, hop, at=begun, parent=root, kind="task", waits=waits)
                if number < open_ones
                else end(cascade, hop, at=begun, parent=root, kind="task")
            )
            one["name"] = f"task fetch {number % 40}"
            one["says"][names.HOP_NAME] = f"fetch {number % 40}"
            part.append(one)
        tell(running, part)
    return cascade
