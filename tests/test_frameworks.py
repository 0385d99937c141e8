"""Does an agent, and a webhook, keep its place whatever it is made with and served by? Starlette, FastAPI and plain ASGI, uvicorn and hypercorn."""

import asyncio
import contextlib
import json
import logging

import fastapi
import httpx
import hypercorn.asyncio
import hypercorn.config
import pytest
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_jsonrpc_routes
from a2a.server.tasks import (
    BasePushNotificationSender,
    InMemoryPushNotificationConfigStore,
    InMemoryTaskStore,
)
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route, Router

from exported import only_cascade, tree, verdict
from hopwatch import process
from test_a2a import Executor, answers, card_of, client, complete, over, request, served

pytestmark = pytest.mark.usefixtures("a2a_instrumented", "empty")


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Where the machine is busy, what takes more than a second would be told of as hops besides."""
    monkeypatch.setenv("HOPWATCH_REVEAL_AFTER", "600")


def run(story):
    asyncio.run(asyncio.wait_for(story(), 100))


PUSH = ("push", [("webhook", [])])
ALL = [("send", [("request", [("execution", [PUSH] * 4)])])]
"""A message whose agent pushes each of its four events to a webhook."""


class Seen:
    """What a webhook was pushed."""

    def __init__(self):
        self.bodies = asyncio.Queue()

    async def starlette(self, asked):
        self.bodies.put_nowait(await asked.json())
        return JSONResponse({})

    async def fastapi(self, body: dict):
        self.bodies.put_nowait(body)
        return {}

    async def plain(self, scope, receive, send):
        """An application of ASGI without a framework."""
        assert scope["type"] == "http"
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.bodies.put_nowait(json.loads(body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"{}"})


def in_starlette(routes, seen):
    return Starlette(routes=[Route("/hook", seen.starlette, methods=["POST"]), *routes])


def in_fastapi(routes, seen):
    app = fastapi.FastAPI()
    app.post("/hook")(seen.fastapi)
    app.router.routes.extend(routes)
    return app


def in_fastapi_mounted(routes, seen):
    app = fastapi.FastAPI()
    app.post("/hook")(seen.fastapi)
    app.mount("/", Starlette(routes=routes))
    return app


def in_plain_asgi(routes, seen):
    agent = Router(routes=routes)

    async def app(scope, receive, send):
        if scope["type"] == "http" and scope["path"] == "/hook":
            await seen.plain(scope, receive, send)
        else:
            await agent(scope, receive, send)

    return app


FRAMEWORKS = {
    "Starlette": in_starlette,
    "FastAPI": in_fastapi,
    "FastAPI with a mounted Starlette": in_fastapi_mounted,
    "plain ASGI": in_plain_asgi,
}


@contextlib.asynccontextmanager
async def by_hypercorn(app, _parser):
    config = hypercorn.config.Config()
    config.bind = ["127.0.0.1:0"]
    config.accesslog = config.errorlog = None
    config.keep_alive_timeout = 120  # after 5 s it would close a connection that a client may be about to use
    # A socket of its own tells the port; a bind to 0 is only logged.
    sockets = config.create_sockets()
    port = sockets.insecure_sockets[0].getsockname()[1]
    config.create_sockets = lambda: sockets
    stop = asyncio.Event()
    serving = asyncio.create_task(hypercorn.asyncio.serve(app, config, shutdown_trigger=stop.wait))
    for _ in range(6000):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.005)
        else:
            writer.close()
            break
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        stop.set()
        await serving


SERVERS = {
    "uvicorn, h11": (served, "h11"),
    "uvicorn, httptools": (served, "httptools"),
    "hypercorn": (by_hypercorn, ""),
}


def row(framework, server):
    package = {"Starlette": "starlette", "FastAPI": "fastapi"}.get(framework.split()[0])
    releases = [server.split(",")[0], *([package] if package else [])]
    return pytest.param(
        framework,
        server,
        id=f"{framework}-{server}",
        marks=pytest.mark.row("web frameworks", f"{framework} under {server}", *releases),
    )


@pytest.mark.parametrize(
    ("framework", "server"), [row(framework, server) for framework in FRAMEWORKS for server in SERVERS]
)
def test_a_message_and_its_pushes_are_in_their_place(framework, server):
    async def story():
        serve, parser = SERVERS[server]
        seen, configs = Seen(), InMemoryPushNotificationConfigStore()
        async with httpx.AsyncClient(timeout=60) as http:
            handler = DefaultRequestHandler(
                agent_executor=Executor(complete),
                task_store=InMemoryTaskStore(),
                agent_card=card_of("http://127.0.0.1:1", "JSONRPC"),
                push_config_store=configs,
                push_sender=BasePushNotificationSender(http, configs),
            )
            app = FRAMEWORKS[framework](create_jsonrpc_routes(handler, "/"), seen)
            async with serve(app, parser) as url, client(url, timeout=60) as peer:
                await answers(peer, request(webhook=f"{url}/hook"))
                for _ in range(4):
                    await asyncio.wait_for(seen.bodies.get(), 60)
                    seen.bodies.task_done()
                await over()
            await handler.aclose()
        hops = only_cascade()
        assert tree(hops) == ALL
        assert not any(each.late for each in hops.values())
        assert {each.peer for each in hops.values() if each.kind in ("send", "push")} == {"instrumented"}
        found = verdict(hops)
        assert (found.verdict, found.opaque) == ("settled", [])

    run(story)


@pytest.mark.parametrize("server", SERVERS)
def test_a_request_that_carries_no_hop_is_served_as_ever_and_is_none(server):
    async def story():
        serve, parser = SERVERS[server]
        seen = Seen()
        async with (
            serve(in_plain_asgi([Mount("/gone", routes=[])], seen), parser) as url,
            httpx.AsyncClient(timeout=60) as http,
        ):
            answer = await http.post(f"{url}/hook", json={"a": 1})
            assert (answer.status_code, answer.json()) == (200, {})
            assert not {"hopwatch-hop", "traceresponse"} & {*answer.headers}
            assert await seen.bodies.get() == {"a": 1}
            seen.bodies.task_done()
            assert process.here().ledger.open_hops() == []

    run(story)


@pytest.mark.parametrize("server", SERVERS)
def test_an_application_that_raises_is_answered_for_by_its_server_and_has_failed(server):
    async def app(scope, receive, send):
        raise ValueError("no")

    carried = {"tracestate": f"hopwatch={'a' * 32}-{'b' * 16}-push"}

    async def story():
        serve, parser = SERVERS[server]
        async with serve(app, parser) as url, httpx.AsyncClient(timeout=60) as http:
            answer = await http.post(f"{url}/hook", json={}, headers=carried)
            assert answer.status_code == 500
            await over()
        (webhook,) = only_cascade().values()
        assert (webhook.kind, webhook.outcome, webhook.reason) == ("webhook", "failed", "ValueError")

    run(story)


def carrying(number):
    """The headers of a push of a hop that is known by its number."""
    return [(b"tracestate", f"hopwatch={number:032x}-{number:016x}-push".encode())]


async def asked(app, number, path="/hook"):
    """Ask an application in this process, as the push of a hop; what it sends. The list of headers is nobody's but the request's."""
    scope = {"type": "http", "method": "POST", "path": path, "headers": carrying(number)}
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    return sent


def starlette_around(app):
    outermost = Starlette()
    outermost.build_middleware_stack = lambda: app
    return outermost


async def answers_ok(_scope, _receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def test_a_request_within_one_whose_headers_a_middleware_has_replaced_is_one_of_its_own():
    acknowledged = []
    inner = starlette_around(answers_ok)

    async def around(scope, receive, send):
        # Nobody of theirs keeps the list: the next one may be at its place in memory.
        scope["headers"] = tuple(scope["headers"])
        for _ in range(20):
            (start, _) = await asked(inner, 77)
            acknowledged.append(b"hopwatch-hop" in dict(start["headers"]))
        await answers_ok(scope, receive, send)

    async def story():
        for number in range(1, 11):
            await asked(starlette_around(around), number)

    run(story)
    assert acknowledged == [True] * 200


def test_what_an_application_sends_again_and_again_stays_as_it_is():
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
    bare = {"type": "http.response.start", "status": 204}

    async def app(scope, receive, send):
        await send(start if scope["path"] == "/hook" else bare)
        await send({"type": "http.response.body", "body": b""})

    async def story():
        outermost = starlette_around(app)
        for number in range(1, 6):
            (sent, _) = await asked(outermost, number)
            found = [value.decode() for name, value in sent["headers"] if name == b"hopwatch-hop"]
            assert len(found) == 1
            assert found[0].startswith(f"00-{number:032x}-")
            assert (b"content-type", b"text/plain") in sent["headers"]
            (sent, _) = await asked(outermost, number, "/other")
            assert sent["status"] == 204
            assert b"hopwatch-hop" in dict(sent["headers"])

    run(story)
    assert start == {
        "type": "http.response.start",
        "status": 200,
        "headers": [(b"content-type", b"text/plain")],
    }
    assert bare == {"type": "http.response.start", "status": 204}


@pytest.mark.parametrize("server", SERVERS)
def test_a_constant_start_of_a_response_tells_one_caller_nothing_of_another(server):
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}

    async def app(scope, receive, send):
        await send(start)
        await send({"type": "http.response.body", "body": b"{}"})

    async def story():
        serve, parser = SERVERS[server]
        async with serve(app, parser) as url, httpx.AsyncClient(timeout=60) as http:
            for number in range(1, 4):
                carried = {name.decode(): value.decode() for name, value in carrying(number)}
                answer = await http.post(f"{url}/hook", json={}, headers=carried)
                (told,) = answer.headers.get_list("hopwatch-hop")
                assert told.startswith(f"00-{number:032x}-")
            answer = await http.get(url)
            assert not {"hopwatch-hop", "traceresponse"} & {*answer.headers}

    run(story)
    assert start["headers"] == [(b"content-length", b"2")]


@pytest.mark.parametrize("parser", ["h11", "httptools"])
def test_what_an_application_returns_reaches_its_server(parser):
    said = []
    heard = logging.Handler()
    heard.emit = lambda record: said.append(record.getMessage())

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"{}"})
        return "oops"

    async def story():
        async with served(app, parser) as url:
            logging.getLogger("uvicorn.error").addHandler(heard)
            host, port = url.removeprefix("http://").split(":")
            for headers in ("", f"tracestate: {carrying(1)[0][1].decode()}\r\n"):
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(f"GET / HTTP/1.1\r\nhost: a\r\n{headers}\r\n".encode())
                answer = await asyncio.wait_for(reader.read(), 60)  # uvicorn closes the connection
                assert answer.endswith(b"\r\n\r\n{}")
                writer.close()

    try:
        run(story)
    finally:
        logging.getLogger("uvicorn.error").removeHandler(heard)
    assert said == ["ASGI callable should return None, but returned 'oops'."] * 2
