"""Does a task that waits for another agent say which one, since when, and which hop took the message? Over real HTTP."""

import asyncio
import time

import pytest
from starlette.responses import JSONResponse
from starlette.routing import Route

import hopwatch
from exported import fresh
from hopwatch import hop_waits, process
from hopwatch.instrumentation.a2a import A2AInstrumentor
from hopwatch.instrumentation.asyncio import AsyncioInstrumentor
from hopwatch.instrumentation.http_client import Target
from test_a2a import agent, answers, client, complete, over, request, run


@pytest.fixture(autouse=True)
def instrumented():
    AsyncioInstrumentor().instrument()
    A2AInstrumentor().instrument()
    fresh()
    yield
    A2AInstrumentor().uninstrument()
    AsyncioInstrumentor().uninstrument()
    assert process.failures == {}


class Stage:
    """An agent that begins its work, and goes on when the story says so."""

    def __init__(self):
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()

    async def work(self, updater):
        await updater.start_work()
        self.begun.set()
        await self.go_on.wait()
        await complete(updater)


def hops(kind):
    return [each for each in process.here().ledger.open_hops() if each.kind == kind]


async def told_of(task, until=lambda told: "data from" in told["what"]):
    """What is said of a task by a thread that looks, once that is what the story waits for."""
    end = time.monotonic() + 30
    while True:
        told = (await asyncio.to_thread(hop_waits.look_at, task)).as_dict()
        if until(told):
            return told
        assert time.monotonic() < end, told
        await asyncio.sleep(0.01)


def clock(since):
    return time.strftime("%H:%M:%SZ", time.gmtime(since))


@pytest.mark.parametrize(("binding", "path"), [("JSONRPC", "/"), ("HTTP+JSON", "/rest")])
def test_a_blocking_send_names_the_agent_its_url_and_since_when(binding, path):
    async def story():
        stage = Stage()
        async with agent(stage.work, binding=binding) as url, client(url, binding=binding) as peer:
            task = asyncio.create_task(answers(peer, request()), name="asks")
            await stage.begun.wait()
            told = await told_of(task)
            (send,) = hops("send")
            since = round(send.started / 1e9, 2)
            where = url.removeprefix("http://")
            assert (told["kind"], told["moves"], told["peer"]) == ("socket", True, where)
            # The story itself has a deadline, which would cancel the send.
            assert told["what"] == (
                f"SendMessage to agent at {url}{path} since {clock(since)}: data from {where} until {clock(told['until'])}"
            )
            assert told["send"] == {
                "method": "SendMessage", "since": since, "agent": "agent", "url": f"{url}{path}",
            }  # fmt: skip
            # Of the hop the same is told, by whatever way somebody asks; how long it has taken is told apart.
            assert hop_waits.what_it_waits_on(send)[0]["what"] == told["what"]
            (pending,) = [each for each in hopwatch.pending() if each.kind == "send"]
            assert pending.waits_on["send"]["age"] == pytest.approx(time.time() - since, abs=30)
            stage.go_on.set()
            await task
            await over()

    run(story)


def test_a_stream_names_the_hop_that_took_the_message():
    async def story():
        stage = Stage()
        async with agent(stage.work) as url, client(url, streaming=True) as peer:
            task = asyncio.create_task(answers(peer, request()), name="asks")
            await stage.begun.wait()
            told = await told_of(task, lambda told: "hop" in told.get("send", ()))
            (taken,) = hops("request")
            assert told["send"]["hop"] == taken.id
            assert told["send"]["peer"] == "instrumented"
            assert f", taken by its hop {taken.id}: data from " in told["what"]
            stage.go_on.set()
            await task
            await over()

    run(story)


def test_who_has_a_stream_open_and_waits_for_something_else_does_not_wait_for_the_stream():
    async def story():
        stage = Stage()
        paused = asyncio.Event()
        async with agent(stage.work) as url, client(url, streaming=True) as peer:

            async def reads():
                async for _ in peer.send_message(request()):
                    await paused.wait()

            task = asyncio.create_task(reads(), name="asks")
            told = await told_of(task, lambda told: "`paused`" in told["what"])
            assert hops("send")
            assert told["what"] == "event `paused`, which nobody has set"
            assert "send" not in told
            paused.set()
            stage.go_on.set()
            await task
            await over()

    run(story)


def test_a_child_of_a_gather_that_sends_is_told_with_its_agent():
    async def story():
        stage = Stage()
        async with agent(stage.work) as url, client(url) as peer:

            async def delegates():
                await asyncio.gather(asyncio.create_task(answers(peer, request()), name="delegation"))

            task = asyncio.create_task(delegates(), name="asks")
            await stage.begun.wait()
            told = await told_of(task, lambda told: told.get("of") and "send" in told["of"][0])
            assert told["what"] == f"1 task (gather): 'delegation' until {clock(told['until'])}"
            assert told["of"][0]["send"]["url"] == f"{url}/"
            stage.go_on.set()
            await task
            await over()

    run(story)


def test_a_push_names_its_webhook_without_what_may_be_secret_in_its_url():
    async def story():
        called, answer = asyncio.Event(), asyncio.Event()

        async def webhook(_):
            called.set()
            await answer.wait()
            return JSONResponse({})

        route = Route("/hook", webhook, methods=["POST"])
        async with agent(complete, route) as url, client(url, polling=True) as peer:
            task = asyncio.create_task(answers(peer, request(webhook=f"{url}/hook?token=secret", now=True)))
            await called.wait()
            (push,) = hops("push")
            told = await told_of(push.runner())
            assert told["send"]["method"] == "push"
            assert told["send"]["url"] == f"{url}/hook"
            assert told["what"].startswith(f"push to {url}/hook since ")
            answer.set()
            await task
            await over()

    run(story)


def test_a_url_is_told_without_user_password_query_and_fragment():
    class Client:
        pass

    mine = Client()
    target = Target(mine, "https://user:word@host:8443/a/b?token=1#part")
    assert target.receiver() == (None, "https://host:8443/a/b")
    assert Target(mine, "http://[no such").receiver() == (None, None)
