"""Is a request the next one of a connection, and nothing more? Several requests over one connection of a real server."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from exported import cascades, fresh, tree, verdict
from hopwatch import process
from hopwatch.instrumentation.a2a import A2AInstrumentor
from hopwatch.instrumentation.asyncio import AsyncioInstrumentor
from test_a2a import agent, over, served

LARGE = 300_000
"""Bytes of a body that a server stops reading in the middle of: the request's own code then lets it go on."""
PUSH = {
    "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
    "tracestate": f"hopwatch={'a' * 32}-{'b' * 16}-push",
}
EXECUTED = [("request", [("execution", [])])]


@pytest.fixture(autouse=True)
def instrumented():
    AsyncioInstrumentor().instrument()
    A2AInstrumentor().instrument()
    fresh()
    yield
    A2AInstrumentor().uninstrument()
    AsyncioInstrumentor().uninstrument()
    assert process.failures == {}


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request):
    make = asyncio.new_event_loop
    if request.param == "uvloop":
        make = pytest.importorskip("uvloop").new_event_loop

    def run(story):
        loop = make()
        try:
            loop.run_until_complete(asyncio.wait_for(story, 100))
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    return run


def text_of(path, body, headers):
    head = {"Host": "here", "Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
    return (
        f"POST {path} HTTP/1.1\r\n" + "".join(f"{key}: {value}\r\n" for key, value in head.items()) + "\r\n"
    ).encode() + body


async def answer(reader):
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    assert head.startswith("http/1.1 200"), head
    length = int(head.split("content-length:")[1].split()[0])
    return await reader.readexactly(length)


@contextlib.asynccontextmanager
async def connection(url):
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    try:
        yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()


@contextlib.asynccontextmanager
async def webhooks(parser):
    """A server with a webhook; it gives its URL."""

    async def webhook(request):
        await request.body()
        return JSONResponse({})

    app = Starlette(routes=[Route("/hook", webhook, methods=["POST"])])
    async with served(app, parser) as url:
        yield url


@pytest.mark.parametrize("parser", ["h11", "httptools"])
def test_a_push_after_a_large_one_over_the_same_connection_is_no_work_of_that_one(run, parser):
    async def story():
        async with webhooks(parser) as url, connection(url) as (reader, writer):
            for size in (LARGE, 10, 10):
                writer.write(text_of("/hook", b"w" * size, PUSH))
                await answer(reader)

    run(story())
    (hops,) = cascades().values()
    assert [(hop.kind, hop.parent, hop.late, hop.children) for hop in hops.values()] == [
        ("webhook", "b" * 16, False, 0)
    ] * 3


@pytest.mark.parametrize("parser", ["h11", "httptools"])
def test_pushes_that_come_before_the_one_before_was_answered_are_no_work_of_that_one(run, parser):
    async def story():
        async with webhooks(parser) as url, connection(url) as (reader, writer):
            writer.write(text_of("/hook", b"w", PUSH) * 3)
            for _ in range(3):
                await answer(reader)

    run(story())
    (hops,) = cascades().values()
    assert [(hop.kind, hop.parent, hop.late, hop.children) for hop in hops.values()] == [
        ("webhook", "b" * 16, False, 0)
    ] * 3


def message(number, size):
    said = {"messageId": f"m{number}", "role": "ROLE_USER", "parts": [{"text": "w" * size}]}
    body = {"jsonrpc": "2.0", "id": "1", "method": "SendMessage", "params": {"message": said}}
    return text_of("/", json.dumps(body).encode(), {"A2A-Version": "1.0"})


@pytest.mark.parametrize("large", [70_000, LARGE])
def test_a_message_after_a_large_one_over_the_same_connection_is_a_request_of_its_own(run, large):
    async def story():
        async with agent() as url, connection(url) as (reader, writer):
            for number, size in enumerate((large, 10)):
                writer.write(message(number, size))
                assert "error" not in json.loads(await answer(reader))
            await over()

    run(story())
    # The SDK's own spans may put both into one trace, as they would without us.
    assert [each for hops in cascades().values() for each in tree(hops)] == EXECUTED * 2
    assert not any(hop.late for hops in cascades().values() for hop in hops.values())


def test_messages_that_bring_no_trace_and_come_before_the_one_before_was_answered_are_cascades_of_their_own(
    run,
):
    async def story():
        async with agent() as url, connection(url) as (reader, writer):
            writer.write(message(1, 10) + message(2, 10))
            for _ in range(2):
                assert "error" not in json.loads(await answer(reader))
            await over()

    run(story())
    found = list(cascades().values())
    assert [tree(hops) for hops in found] == [EXECUTED] * 2
    assert [verdict(hops).verdict for hops in found] == ["settled"] * 2


@pytest.mark.timeout(300)
def test_they_are_so_without_the_spans_of_the_sdk_too():
    # Which begin traces of their own; whether there are any is read when the SDK is imported.
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "test_messages_that_bring_no_trace", __file__],
        env={**os.environ, "OTEL_INSTRUMENTATION_A2A_SDK_ENABLED": "false"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert "2 passed" in done.stdout
