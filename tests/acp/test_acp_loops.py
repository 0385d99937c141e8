"""Whose is a connection of the Agent Client Protocol, what does a message wait for at its own end, and what is left when nobody closes it?"""

import asyncio

import pytest
from acp.connection import Connection
from any_acp import (
    CLOSES,
    RELEASE,
    SERVICE_LOOPS,
    V12,
    Agent,
    Client,
    connected,
    hang_up,
    hello,
    raw,
    streams,
    text,
)
from opentelemetry import _logs
from plain_peer import PlainPeer

import acp
import hopwatch
from exported import cascades
from hopwatch import orphans, process, snapshot
from hopwatch.instrumentation import acp_links
from hopwatch.instrumentation.acp import ACPInstrumentor
from ticking import collect, watching

LEAKS = pytest.mark.skipif(CLOSES, reason="from 0.11 on run_agent closes its connection; ci: may be skipped")


@pytest.fixture
def watched(monkeypatch):
    """A process that ticks when a test says so, with the library instrumented."""
    with watching(monkeypatch) as found:
        ACPInstrumentor().instrument()
        try:
            # What is looked at is registered anew with each process.
            found.process.each_tick.append(
                acp_links.look
            ) if acp_links.look not in found.process.each_tick else None
            yield found
        finally:
            ACPInstrumentor().uninstrument()
        assert process.failures == {}


@pytest.fixture
def told(monkeypatch):
    """What is told of orphans, as (sentence, names)."""
    found = []

    class Logger:
        def emit(self, record):
            found.append((record.body, record.attributes["hopwatch.service.loops"]))

    monkeypatch.setattr(_logs, "get_logger", lambda *_: Logger())
    return found


def run(main):
    return asyncio.run(asyncio.wait_for(main(), 60))


def services():
    return [each for each in hopwatch.pending() if each.kind == "service"]


async def until(look):
    while not look():
        await asyncio.sleep(0.01)


# Service loops ---------------------------------------------------------------------------------------------------------


def test_a_connection_that_was_made_inside_a_cascade_keeps_nothing_of_it_open(watched):
    async def main():
        with hopwatch.cascade("root"):
            here, there = await streams()
            running = asyncio.create_task(acp.run_agent(Agent(), *there))
            connection = acp.connect_to_agent(Client(), *here)
            await hello(connection)
        assert watched.settled()
        assert services() == []
        await connection.close()
        await hang_up(here[0])
        await asyncio.wait([running])
        await hang_up(there[0])

    run(main)


def test_what_a_message_starts_counts_on_its_hop_and_not_on_the_cascade_that_made_the_connection(watched):
    gate = asyncio.Event()

    async def work(agent, session, words):
        await gate.wait()

    async def main():
        with hopwatch.cascade("making"):
            here, there = await streams()
            running = asyncio.create_task(acp.run_agent(Agent(work), *there))
            connection = acp.connect_to_agent(Client(), *here)
        with hopwatch.cascade("asking"):
            prompt = asyncio.create_task(connection.prompt(prompt=[text("go")], session_id="s-1"))
            await until(lambda: len(watched.ledger.open_hops()) == 3)
        watched.tick()
        assert "making" not in watched.open()
        gate.set()
        await prompt
        await connection.close()
        await hang_up(here[0])
        await asyncio.wait([running])
        await hang_up(there[0])
        assert watched.settled()

    run(main)


# What a message waits for ----------------------------------------------------------------------------------------------


def waits_of(task):
    from hopwatch import hop_waits

    return hop_waits.look_at(task)


def test_who_awaits_an_answer_says_for_which_method_and_whose_and_moves_by_that_answer_alone(watched):
    async def main():
        gate = asyncio.Event()

        async def work(agent, session, words):
            await gate.wait()

        async with connected(Agent(work, name="scribe")) as connection:
            await hello(connection)
            with hopwatch.cascade("root"):
                asking = asyncio.create_task(connection.prompt(prompt=[text("go")], session_id="s-1"))
                await until(lambda: "session/prompt" in watched.open())
                await until(lambda: len(watched.open()) == 3)
                await until(lambda: waits_of(asking).what.endswith(": the answer"))
            wait = waits_of(asking)
            (send,) = [hop for hop in watched.ledger.open_hops() if hop.kind == "send"]
            gate.set()
            await asking
        return wait, send

    wait, send = run(main)
    assert (wait.kind, wait.moves, wait.asks) == ("call", True, (send.id,))
    assert wait.what.startswith("session/prompt to scribe at stdio since ")
    assert wait.what.endswith(": the answer")


def test_who_sends_to_a_peer_that_does_not_read_says_that_the_sender_is_blocked(watched):
    async def main():
        here, there = await streams()
        connection = acp.connect_to_agent(Client(), *here)
        there[1]._transport.pause_reading()
        with hopwatch.cascade("root"):
            sending = asyncio.create_task(raw(connection, "_big", {"x": "x" * 20_000_000}))
            await until(lambda: here[0].transport.get_write_buffer_size() > 1_000_000)
            await until(lambda: "drain" in str(waits_of(sending).of))
        wait = waits_of(sending)
        there[1]._transport.abort()
        await asyncio.wait([sending])
        await asyncio.wait([asyncio.create_task(connection.close())])
        await hang_up(here[0], there[0])
        return wait

    wait = run(main)
    assert (wait.kind, wait.moves) == ("task", True)
    assert wait.what.endswith("'acp.Sender.loop' to write it, which waits for a socket to take data")
    assert "_big to " in wait.what


def test_after_one_error_of_writing_each_later_message_says_that_nobody_will_write_it(watched):
    async def main():
        here, there = await streams()
        connection = acp.connect_to_agent(Client(), *here)

        async def broken():
            raise BrokenPipeError("gone")

        here[0].drain = broken
        with hopwatch.cascade("root"):
            first = asyncio.create_task(raw(connection, "_first", {}))
            await asyncio.wait([first])
            second = asyncio.create_task(raw(connection, "_second", {}))
            await until(lambda: "_second" in watched.open())
            await until(lambda: waits_of(second).kind != "running")
        wait = waits_of(second)
        second.cancel()
        await asyncio.wait([second])
        await asyncio.wait([asyncio.create_task(connection.close())])
        await hang_up(here[0], there[0])
        return first, wait

    first, wait = run(main)
    assert isinstance(first.exception(), BrokenPipeError)
    assert not wait.moves
    assert "_second to " in wait.what
    assert wait.what.endswith(
        "'acp.Sender.loop' to write it, which has ended with BrokenPipeError, so nobody ever will"
    )


@pytest.mark.skipif(
    RELEASE >= (0, 10), reason="from 0.10 on the end of reading ends what waits; ci: may be skipped"
)
def test_whose_peer_has_gone_says_that_the_answer_can_never_come(watched):
    async def main():
        here, there = await streams()
        connection = acp.connect_to_agent(Client(), *here)
        with hopwatch.cascade("root"):
            asking = asyncio.create_task(raw(connection, "_ask", {}))
            await until(lambda: "_ask" in watched.open())
            await hang_up(there[0])
            await until(lambda: not waits_of(asking).moves)
        wait = waits_of(asking)
        asking.cancel()
        await asyncio.wait([asking])
        await asyncio.wait([asyncio.create_task(connection.close())])
        await hang_up(here[0])
        return wait

    wait = run(main)
    assert wait.what.endswith("the answer, which can never come: nobody reads from the connection any more")


def test_who_closes_a_connection_whose_peer_does_not_read_waits_for_the_sender(watched):
    async def main():
        here, there = await streams()
        connection = acp.connect_to_agent(Client(), *here)
        there[1]._transport.pause_reading()
        sending = asyncio.create_task(raw(connection, "_big", {"x": "x" * 20_000_000}))
        await until(lambda: here[0].transport.get_write_buffer_size() > 1_000_000)
        closing = asyncio.create_task(connection.close())
        await until(lambda: waits_of(closing).kind == "task")
        wait = waits_of(closing)
        assert services() == []  # somebody is about to close it
        there[1]._transport.abort()
        await asyncio.wait([sending, closing])
        await hang_up(here[0], there[0])
        return wait

    wait = run(main)
    assert (wait.what, wait.of[0].what) == ("task 'acp.Sender.loop'", "a socket to take data")


# Loops that outlive their owner ----------------------------------------------------------------------------------------


async def cancelled_agent():
    """An agent whose runner is cancelled while it listens; what is left is known to nobody but asyncio."""
    here, there = await streams()
    peer = PlainPeer(*here)
    agent = Agent()
    running = asyncio.create_task(acp.run_agent(agent, *there), name="bridge-7")
    await peer.ask("initialize", {"protocolVersion": 1})
    running.cancel()
    await asyncio.wait([running])
    return peer, agent, there[0]


@LEAKS
def test_a_cancelled_run_agent_leaves_two_loops_which_are_pending_by_name_at_once(watched, told):
    async def main():
        peer, agent, writer = await cancelled_agent()
        left = services()
        document = snapshot.take()["orphans"]
        watched.tick(later=1)
        watched.tick(later=2)
        await agent.connection.close()
        after = services()
        watched.tick()
        await peer.close()
        await hang_up(writer)
        return left, document, after

    left, document, after = run(main)
    assert [each.name for each in left] == SERVICE_LOOPS == [each["name"] for each in document]
    asked = "" if not hasattr(asyncio.Task, "cancelling") else ", was asked to cancel and has ended"
    for each in left:
        assert "task 'bridge-7' (run_agent), which owned it" in each.owner
        assert asked in each.owner
        assert each.waits_on["kind"] == "queue_get"
        assert each.cascade == ""
    assert after == []
    assert [names for _, names in told] == [SERVICE_LOOPS]
    assert told[0][0].startswith(
        "2 service loops go on though the owner has ended: 'acp.Dispatcher.loop' and"
    )


@LEAKS
def test_loops_that_are_collected_before_anybody_looked_are_told_of_all_the_same(watched, told, caplog):
    gone = []

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: gone.append(context["message"]))
        peer, agent, writer = await cancelled_agent()
        del agent
        collect()
        assert services() == []
        watched.tick(later=1)
        await peer.close()
        await hang_up(writer)

    run(main)
    assert gone.count("Task was destroyed but it is pending!") == 2
    assert [names for _, names in told] == [SERVICE_LOOPS]
    assert told[0][0].endswith("acp.Dispatcher.loop and acp.Sender.loop: destroyed while pending")


def test_a_client_that_nobody_closes_leaves_its_sender_once_its_peer_has_gone(watched, told):
    async def main():
        async def health_check():
            here, there = await streams()
            peer = PlainPeer(*there, lambda _: {"protocolVersion": 1})
            connection = acp.connect_to_agent(Client(), *here)
            await connection.initialize(protocol_version=1)
            return connection, peer, here[0]

        checking = asyncio.create_task(health_check(), name="health-check")
        await asyncio.wait([checking])
        connection, peer, writer = checking.result()
        assert services() == []  # it reads, and may be somebody's
        await peer.close()
        known = acp_links.of(connection._conn)
        await until(lambda: known.at)
        watched.tick(later=1)
        assert (services(), told) == ([], [])  # somebody who has it may close it yet
        known.at -= acp_links.LATE
        left = services()
        watched.tick(later=1)
        await connection.close()
        await hang_up(writer)
        return left

    left = run(main)
    assert [each.name for each in left] == SERVICE_LOOPS
    assert all("task 'health-check'" in each.owner and "has ended" in each.owner for each in left)
    assert [names for _, names in told] == [SERVICE_LOOPS]


def test_a_connection_whose_listener_ends_with_its_peer_may_be_closed_by_another_task(watched, told):
    async def serve(method, params, is_notification):
        return {}

    async def main():
        here, there = await streams()
        connection = Connection(serve, *here, listening=False)
        listening = asyncio.create_task(connection.main_loop())
        await until(lambda: acp_links.of(connection).reading)
        await hang_up(there[0])
        await listening
        left = services()
        loops = [task for task in asyncio.all_tasks() if task.get_name() in SERVICE_LOOPS]
        shown = [repr(task) for task in loops]
        watched.tick(later=5)
        await connection.close()
        watched.tick(later=20)
        await hang_up(here[0])
        return left, shown

    left, shown = run(main)
    assert (left, told) == ([], [])
    assert len(shown) == len(SERVICE_LOOPS)
    assert not any("hopwatch" in each for each in shown), shown


def test_a_connection_that_is_closed_in_order_leaves_nothing_to_tell(watched, told):
    async def main():
        async with connected(Agent()) as connection:
            await hello(connection)
        for later in range(3):
            watched.tick(later)
        return services()

    assert run(main) == []
    assert told == []
    assert orphans.now() == []


def test_whoever_still_has_the_connection_is_given_time_to_close_it(watched, told):
    async def main():
        here, there = await streams()
        peer = PlainPeer(*there, lambda _: {"protocolVersion": 1})
        connection = acp.connect_to_agent(Client(), *here)
        await connection.initialize(protocol_version=1)
        await peer.close()
        await until(lambda: acp_links.of(connection._conn).at)
        assert services() == []
        watched.tick()
        acp_links.of(connection._conn).at -= acp_links.LATE
        left = services()
        await connection.close()
        await hang_up(here[0])
        return left

    left = run(main)
    assert [each.name for each in left] == SERVICE_LOOPS
    assert all("has left it" in each.owner for each in left)


def test_nothing_of_a_connection_is_kept_alive(watched):
    import weakref

    async def main():
        async with connected(Agent()) as connection:
            await hello(connection)
            known = weakref.ref(connection._conn)
        del connection
        await asyncio.sleep(0)
        return known

    known = run(main)
    collect()
    assert known() is None


@pytest.mark.skipif(not V12, reason="transports are there from 0.12 on; ci: may be skipped")
def test_a_connection_over_another_transport_is_known_by_that(watched):
    from acp._transport import memory_transport_pair

    async def main():
        ours, theirs = memory_transport_pair()
        agent = Agent()
        running = asyncio.create_task(acp.run_agent(agent, theirs))
        connection = acp.connect_to_agent(Client(), ours)
        with hopwatch.cascade("root"):
            await hello(connection)
        await connection.close()
        await asyncio.wait([running])

    run(main)
    assert watched.settled()
    (hops,) = cascades().values()
    assert {hop.peer_name for hop in hops.values() if hop.kind == "send"} == {"worker"}
