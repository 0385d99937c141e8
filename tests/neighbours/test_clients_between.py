"""Does a hop keep its place across a service without hopwatch, whatever client that service calls by? Real services, in processes of their own."""

import asyncio
import contextlib
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
from neighbouring import HERE, LACKING, environment, marks

if not LACKING:
    import aiohttp
    import httpx
    import requests
    import urllib3

from exported import cascades, only_cascade, tree, verdict
from test_a2a import MESSAGE, agent, answers, client, hop, over, request

pytestmark = [*marks, pytest.mark.usefixtures("a2a_instrumented", "empty")]


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Where the machine is busy, what takes more than a second would be told of as hops besides."""
    monkeypatch.setenv("HOPWATCH_REVEAL_AFTER", "600")


def run(story):
    asyncio.run(asyncio.wait_for(story(), 100))


CLIENTS = ["httpx", "aiohttp", "requests", "urllib3"]
MODES = {"bare": "uninstrumented", "contrib": "with OpenTelemetry's instrumentation"}


def rows(what):
    return pytest.mark.parametrize(
        ("name", "mode"),
        [
            pytest.param(
                name,
                mode,
                id=f"{name}-{mode}",
                marks=pytest.mark.row("HTTP clients in between", f"{name}, {words}, {what}", name),
            )
            for name in CLIENTS
            for mode, words in MODES.items()
        ],
    )


@pytest.fixture(scope="module")
def service():
    """The port of a service that calls by this client in this mode; it is started when first asked for."""
    started = {}

    def port(name, mode):
        if (name, mode) not in started:
            process = subprocess.Popen(
                [sys.executable, str(HERE / "between.py"), name, mode],
                env=environment(),
                stdout=subprocess.PIPE,
                text=True,
            )
            started[name, mode] = process, process.stdout.readline().strip()
        return started[name, mode][1]

    yield port
    for process, _ in started.values():
        process.terminate()
    for process, _ in started.values():
        process.wait(30)
        process.stdout.close()


def port_of(url):
    return url.rpartition(":")[2]


@rows("hands a message on")
def test_a_message_that_a_service_hands_on_keeps_its_place(service, name, mode):
    async def story():
        gateway = f"http://127.0.0.1:{service(name, mode)}"
        async with agent() as url, client(f"{gateway}/to/{port_of(url)}", timeout=60) as peer:
            (answer,) = await answers(peer, request())
            await over()
        hops = only_cascade()
        assert tree(hops) == MESSAGE
        sent, served = hop(hops, "send"), hop(hops, "request")
        assert (sent.task_id, sent.task_state) == (answer.task.id, "TASK_STATE_COMPLETED")
        found = verdict(hops)
        assert found.verdict == "settled"
        if mode == "bare":
            # A gateway hands the answer's headers back, too.
            assert (sent.peer, sent.peer_hop, found.opaque) == ("instrumented", served.id, [])
        else:
            # It is a peer that nobody can see into: its own answer is all that it owes.
            assert (sent.peer, found.opaque) == ("opaque", [gateway.removeprefix("http://")])

    run(story)


async def ask_httpx(url):
    async with httpx.AsyncClient(timeout=60) as http:
        return (await http.get(url)).status_code


async def ask_aiohttp(url):
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status


async def ask_requests(url):
    return (await asyncio.to_thread(requests.get, url, timeout=60)).status_code


async def ask_urllib3(url):
    return (await asyncio.to_thread(urllib3.PoolManager().request, "GET", url)).status


ASK = {"httpx": ask_httpx, "aiohttp": ask_aiohttp, "requests": ask_requests, "urllib3": ask_urllib3}


@contextlib.contextmanager
def instrumented(name):
    """OpenTelemetry's instrumentation of a client, in this process."""
    (found,) = entry_points(
        group="opentelemetry_instrumentor", name="aiohttp-client" if name == "aiohttp" else name
    )
    one = found.load()()
    one.instrument()
    try:
        yield
    finally:
        one.uninstrument()


def asking(service, name, mode, other):
    """The work of an agent that asks a service, which asks the agent at `other`."""

    async def work(updater):
        await updater.start_work()
        assert await ASK[name](f"http://127.0.0.1:{service(name, mode)}/ask/{port_of(other)}") == 200
        await updater.complete()

    return work


@rows("asks an agent, asked by an agent with the same client and its instrumentation")
def test_an_agent_that_a_service_asks_has_its_place_below_the_one_that_asked_the_service(service, name, mode):
    async def story():
        async with (
            agent() as other,
            agent(asking(service, name, mode, other)) as url,
            client(url, timeout=60) as peer,
        ):
            await answers(peer, request())
            await over()
        hops = only_cascade()
        below = ("request", [("execution", [])])
        assert tree(hops) == [("send", [("request", [("execution", [below])])])]
        assert verdict(hops).verdict == "settled"

    with instrumented(name):
        run(story)


@rows("asks an agent, asked by an agent with the same client and nothing else")
def test_a_request_of_an_agents_own_carries_nothing_and_what_comes_of_it_is_a_cascade_of_its_own(
    service, name, mode
):
    async def story():
        async with (
            agent() as other,
            agent(asking(service, name, mode, other)) as url,
            client(url, timeout=60) as peer,
        ):
            await answers(peer, request())
            await over()
        found = sorted(cascades().values(), key=len)
        assert [tree(hops) for hops in found] == [[("request", [("execution", [])])], MESSAGE]
        assert [verdict(hops).verdict for hops in found] == ["settled", "settled"]

    run(story)
