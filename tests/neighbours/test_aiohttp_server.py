"""Is a webhook seen that aiohttp serves? A real server, pushed to by an agent and by hand."""

import asyncio
import contextlib

import httpx
import pytest
from neighbouring import LACKING, marks

if not LACKING:
    from aiohttp import web
    from multidict import CIMultiDict

from exported import cascades, exporter, only_cascade, others, ours, tree, verdict
from hopwatch import attributes as names
from hopwatch import process
from test_a2a import agent, answers, client, complete, over, request

pytestmark = [*marks, pytest.mark.usefixtures("a2a_instrumented", "empty")]


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Where the machine is busy, what takes more than a second would be told of as hops besides."""
    monkeypatch.setenv("HOPWATCH_REVEAL_AFTER", "600")


def run(story):
    asyncio.run(asyncio.wait_for(story(), 100))


PUSH = ("push", [("webhook", [])])
CARRIED = {
    "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
    "tracestate": f"other=1,hopwatch={'a' * 32}-{'b' * 16}-push",
}


@contextlib.asynccontextmanager
async def served(handle):
    """A server of aiohttp with a webhook at /hook; it gives its URL."""
    app = web.Application()
    app.router.add_post("/hook", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def pushed_to(seen):
    async def hook(asked):
        seen.put_nowait(await asked.json())
        return web.json_response({})

    return hook


async def a_message_with_pushes():
    seen = asyncio.Queue()
    async with agent(complete) as url, served(pushed_to(seen)) as hook, client(url, timeout=60) as peer:
        await answers(peer, request(webhook=f"{hook}/hook"))
        for _ in range(4):
            await asyncio.wait_for(seen.get(), 60)
            seen.task_done()
        await over()
    hops = only_cascade()
    assert tree(hops) == [("send", [("request", [("execution", [PUSH] * 4)])])]
    assert {hop.peer for hop in hops.values() if hop.kind == "push"} == {"instrumented"}
    assert not any(hop.late for hop in hops.values())
    found = verdict(hops)
    assert (found.verdict, found.opaque) == ("settled", [])


@pytest.mark.row("web frameworks", "aiohttp, as a webhook", "aiohttp")
def test_a_push_to_a_webhook_in_aiohttp_is_acknowledged():
    run(a_message_with_pushes)


@pytest.mark.row(
    "neighbours",
    "OpenTelemetry's instrumentation of aiohttp's server",
    "opentelemetry-instrumentation-aiohttp-server",
)
@pytest.mark.filterwarnings("ignore:Inheritance class _InstrumentedApplication:DeprecationWarning")  # its own
@pytest.mark.parametrize("first", [True, False], ids=["before us", "after us"])
def test_beside_the_instrumentation_of_aiohttps_server_its_spans_are_the_servers(first):
    from opentelemetry.instrumentation.aiohttp_server import AioHttpServerInstrumentor

    from hopwatch.instrumentation.a2a import A2AInstrumentor

    if first:
        A2AInstrumentor().uninstrument()
    AioHttpServerInstrumentor().instrument()
    if first:
        A2AInstrumentor().instrument()
    try:
        run(a_message_with_pushes)
        theirs = [span for span in others() if "aiohttp_server" in span.instrumentation_scope.name]
        assert [span.kind.name for span in theirs] == ["SERVER"] * 4
        # Each is below the push whose headers it came with, beside our webhook.
        pushes = {span.context.span_id for span in ours() if span.attributes[names.HOP_KIND] == "push"}
        assert {span.parent.span_id for span in theirs} == pushes
    finally:
        if first:
            A2AInstrumentor().uninstrument()
        AioHttpServerInstrumentor().uninstrument()
        if first:
            A2AInstrumentor().instrument()


def post(*requests, handle):
    """What a server answered to these requests, over one connection."""

    async def story():
        async with served(handle) as url, httpx.AsyncClient(timeout=60) as http:
            out = [await http.post(f"{url}/hook", json={}, headers=headers) for headers in requests]
            await over()
        return out

    return asyncio.run(asyncio.wait_for(story(), 100))


def test_requests_over_one_connection_are_each_their_own():
    async def hook(asked):
        return web.json_response({"hop": process.current.get() is not None})

    first, second, third = post(CARRIED, {}, CARRIED, handle=hook)
    assert [each.json()["hop"] for each in (first, second, third)] == [True, False, True]
    assert "hopwatch-hop" not in second.headers
    (hops,) = cascades().values()
    assert sorted(each.headers["hopwatch-hop"].split("-")[2] for each in (first, third)) == sorted(hops)
    assert [(hop.kind, hop.name, hop.parent, hop.late) for hop in hops.values()] == [
        ("webhook", "process /hook", "b" * 16, False)
    ] * 2


def test_a_webhook_that_raises_has_failed_and_its_sender_gets_what_it_would_get_without_us():
    async def hook(_):
        raise ValueError("no")

    async def refuses(_):
        raise web.HTTPForbidden(text="no")

    (answer,) = post(CARRIED, handle=hook)
    assert answer.status_code == 500
    (answer,) = post(CARRIED, handle=refuses)
    assert (answer.status_code, answer.text) == (403, "no")
    (hops,) = cascades().values()
    assert sorted((hop.outcome, hop.reason) for hop in hops.values()) == [
        ("failed", "answered 403"),
        ("failed", "answered 500"),
    ]


def test_a_response_in_pieces_is_acknowledged_at_its_beginning_and_open_to_its_end():
    states = []

    async def hook(asked):
        response = web.StreamResponse()
        await response.prepare(asked)
        states.append([hop.kind for hop in process.here().ledger.open_hops()])
        await response.write(b"{}")
        await response.write_eof()
        return response

    (answer,) = post(CARRIED, handle=hook)
    assert (answer.status_code, answer.content, states) == (200, b"{}", [["webhook"]])
    assert answer.headers["hopwatch-hop"].startswith(f"00-{'a' * 32}-")


def test_what_an_application_answers_with_is_its_own_without_us():
    async def hook(_):
        return web.json_response({}, headers={"traceresponse": "theirs"})

    (answer,) = post(CARRIED, handle=hook)
    assert answer.headers.get_list("traceresponse") == ["theirs"]
    exporter.clear()


def test_headers_that_an_application_answers_with_again_and_again_get_nothing_of_ours():
    headers = CIMultiDict(each="one")  # older releases of aiohttp keep it as the response's own

    async def hook(_):
        return web.Response(headers=headers)

    other = {"tracestate": f"hopwatch={'c' * 32}-{'d' * 16}-push"}
    first, second, third = post(CARRIED, other, {}, handle=hook)
    assert first.headers["hopwatch-hop"].startswith(f"00-{'a' * 32}-")
    assert second.headers["hopwatch-hop"].startswith(f"00-{'c' * 32}-")
    assert {answer.headers["each"] for answer in (first, second, third)} == {"one"}
    assert not {"hopwatch-hop", "traceresponse"} & {*third.headers}
    assert not {"hopwatch-hop", "traceresponse"} & {*headers}
    exporter.clear()
