"""Does a hop say whose answer alone could end its wait, and does a request say that it still owes one? The real SDK over real HTTP."""

import asyncio
import contextlib
import socket
import time

import httpx
import pytest

from hopwatch import process, waits
from hopwatch.hop_waits import what_it_waits_on
from hopwatch.telemetry import HopSpan
from test_a2a import agent, answers, client, complete, request
from test_waits import finish, seen

pytestmark = pytest.mark.usefixtures("a2a_instrumented", "empty")


def play(story):
    asyncio.run(asyncio.wait_for(story(), 100))


class Gate:
    """An executor's work that waits until it is let through."""

    def __init__(self):
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    async def __call__(self, updater):
        await updater.start_work()
        self.reached.set()
        await self.open.wait()
        await complete(updater)


@contextlib.asynccontextmanager
async def asked(gate, *, streaming=False, **options):
    """A message that is being worked on. Yields the open hops by their kinds."""
    async with agent(gate) as url, client(url, streaming=streaming, **options) as peer:
        asking = asyncio.create_task(answers(peer, request()))
        await gate.reached.wait()
        for _ in range(2000):  # until the SDK has taken what the executor has told so far
            hops = {hop.kind: hop for hop in process.here().ledger.open_hops()}
            if (await told(hops["request"]))[0]["kind"] == "queue_get" or streaming:
                break
            await asyncio.sleep(0.005)
        yield hops
        gate.open.set()
        await asking


async def told(hop, rests_on=None):
    return await asyncio.to_thread(what_it_waits_on, hop, None, rests_on)


async def settles(hop, wanted):
    """What a hop waits on, once `wanted` holds of it."""
    for _ in range(1000):
        found, moves = await told(hop)
        if wanted(found):
            return found, moves
        await asyncio.sleep(0.005)
    raise AssertionError(found)


def test_a_blocking_send_asks_for_its_own_answer_and_the_request_owes_it():
    async def story():
        async with asked(Gate(), timeout=None) as hops:
            found, moves = await settles(hops["send"], lambda each: each["kind"] == "socket")
            assert (moves, found["asks"]) == (True, [hops["send"].id])
            assert "expires" not in found
            found, _ = await settles(
                hops["request"], lambda each: each["kind"] == "queue_get" and not each["moves"]
            )
            assert found["owes"] is True
            assert "asks" not in found
            found, _ = await settles(
                hops["execution"], lambda each: each["kind"] == "event" and not each["moves"]
            )
            assert "owes" not in found

    play(story)


def test_the_timeout_of_a_client_is_told_with_what_it_asks_for():
    async def story():
        before = time.time()
        async with asked(Gate(), timeout=90) as hops:
            found, _ = await told(hops["send"])
            assert found["asks"] == [hops["send"].id]
            assert before + 89 < found["expires"] < time.time() + 90.5

    play(story)


def test_a_timeout_around_the_task_that_asks_is_told_as_well():
    async def story():
        gate, before = Gate(), time.time()
        async with agent(gate) as url, client(url, timeout=None) as peer:
            asking = asyncio.create_task(asyncio.wait_for(asyncio.gather(answers(peer, request())), 90))
            await gate.reached.wait()
            (send,) = [hop for hop in process.here().ledger.open_hops() if hop.kind == "send"]
            found, _ = await settles(send, lambda each: each["kind"] == "socket" and "asks" in each)
            assert before + 89 < found["expires"] < time.time() + 90.5
            gate.open.set()
            await asking

    play(story)


def test_a_send_that_tries_again_asks_for_nothing():
    class Again(httpx.AsyncBaseTransport):
        """Gives the first attempt up when it is told to."""

        def __init__(self):
            self.inner, self.give_up = httpx.AsyncHTTPTransport(), asyncio.Event()

        async def given_up(self):
            await self.give_up.wait()

        async def handle_async_request(self, sent):
            first = asyncio.create_task(self.inner.handle_async_request(sent))
            given_up = asyncio.create_task(self.given_up())
            await asyncio.wait((first, given_up), return_when=asyncio.FIRST_COMPLETED)
            first.cancel()
            await asyncio.wait((first,))
            return await self.inner.handle_async_request(sent)

        async def aclose(self):
            await self.inner.aclose()

    async def story():
        transport = Again()
        async with asked(Gate(), timeout=None, transport=transport) as hops:
            found, _ = await told(hops["send"])
            assert found["kind"] == "wait"
            assert found["asks"] == [hops["send"].id]  # or that event, which only other work can set
            transport.give_up.set()
            found, moves = await settles(hops["send"], lambda each: each["kind"] == "socket")
            assert moves
            assert "asks" not in found

    play(story)


def test_a_stream_that_has_begun_owes_no_answer():
    async def story():
        async with asked(Gate(), timeout=None, streaming=True) as hops:
            _, moves = await settles(hops["request"], lambda each: "owes" not in each)
            assert moves
            assert "asks" not in (await settles(hops["send"], lambda each: each["kind"] == "socket"))[0]

    play(story)


async def at_rest(hop):
    """What two looks in a row found that a hop rests on, once they agree."""
    for _ in range(1000):
        first, second = [], []
        await told(hop, first)
        await told(hop, second)
        if first and {*map(id, first)} == {*map(id, second)}:
            return first, second
        await asyncio.sleep(0.005)
    raise AssertionError((first, second))


def test_since_when_a_hop_rests_on_the_same_futures_changes_only_if_it_moved():
    async def story():
        async with asked(Gate(), timeout=None) as hops:
            for hop in hops.values():
                span = hop.span
                assert isinstance(span, HopSpan)
                first, second = await at_rest(hop)
                with process.here().telemetry.ticking:  # the ticker looks as well
                    since = span.stands_still(first)
                    assert since is not None
                    assert since == span.stands_still(second), hop
                    assert span.stands_still([]) is None
                    assert span.stands_still([None, *second]) is None
                    assert span.stands_still(second) > since

    play(story)


# What a task waits on, without HTTP ------------------------------------------------------------------------------


async def reading(end):
    await asyncio.get_running_loop().sock_recv(end, 1)


def across(*asking, hop="h"):
    """What instrumentation would know: the sends that tasks wait for, by the coroutine that they run."""
    return waits.Across(lambda task: "s" if task.get_coro().__name__ in asking else None, lambda _: hop)


def story_of(make, **known):
    """What a task waits on that `make` makes of a socket whose other end says nothing."""
    one, other = socket.socketpair()
    one.setblocking(False)

    async def story():
        task = asyncio.ensure_future(make(one))
        for _ in range(5):  # until the tasks are made that it makes (`wait_for` of 3.10 makes one)
            await asyncio.sleep(0)
        return await seen(task, **known)

    with one, other:
        return finish(asyncio.new_event_loop(), story())


async def both(*awaitables):
    await asyncio.gather(*awaitables)


async def never():
    await asyncio.get_running_loop().create_future()


def test_a_socket_of_a_task_that_asks_for_nothing_just_moves():
    wait = story_of(reading, across=across())
    assert (wait.kind, wait.moves, wait.asks) == ("socket", True, ())


def test_a_task_that_gathers_one_that_asks_and_one_that_is_passive_asks():
    wait = story_of(lambda end: both(reading(end), never()), across=across("reading"))
    assert (wait.kind, wait.moves, wait.asks, wait.expires) == ("gather", True, ("s",), None)


def test_a_task_that_gathers_one_that_asks_and_one_that_sleeps_moves():
    wait = story_of(lambda end: both(reading(end), asyncio.sleep(30)), across=across("reading"))
    assert (wait.moves, wait.asks) == (True, ())


def test_a_deadline_on_either_side_is_told():
    before = time.time()
    wait = story_of(
        lambda end: both(asyncio.wait_for(reading(end), 20), never()), across=across("reading", "wait_for")
    )
    assert wait.asks == ("s",)
    # A moment is told to a tenth of a second.
    assert before + 19 < wait.expires <= time.time() + 20.1


def test_who_waits_for_a_lock_asks_for_what_its_holder_asks_for_and_names_the_holders_hop():
    lock = asyncio.Lock()
    holders = []

    async def holding(end):
        holders.append(asyncio.current_task())
        async with lock:
            await reading(end)

    async def wanting(end):
        kept.append(asyncio.create_task(holding(end)))
        await asyncio.sleep(0)
        async with lock:
            pass

    kept = []
    known = across("holding", hop="1" * 16)
    wait = story_of(wanting, across=known, holder_of=lambda _: holders[0] if holders else None)
    assert (wait.kind, wait.moves, wait.asks, wait.holder_hop) == ("lock", True, ("s",), "1" * 16)
    assert wait.as_dict()["asks"] == ["s"]


def test_nothing_is_said_of_answers_without_instrumentation():
    async def story():
        wait = await seen(never())
        assert not {"asks", "expires", "holder_hop"} & {*wait.as_dict()}

    play(story)
