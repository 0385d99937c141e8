"""Is an execution over before its subscribers have its last events? The real SDK's request handler, without HTTP."""

import asyncio

import pytest
from a2a.server.context import ServerCallContext
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.tasks import InMemoryTaskStore
from a2a.types.a2a_pb2 import SubscribeToTaskRequest

import hopwatch
from exported import fresh, only_cascade, verdict
from hopwatch import process
from hopwatch.hop_waits import what_it_waits_on
from hopwatch.instrumentation.a2a import A2AInstrumentor
from hopwatch.instrumentation.a2a_streams import _deliveries
from hopwatch.instrumentation.asyncio import AsyncioInstrumentor
from test_a2a import Executor, card_of, complete, hop, over, request, run, until


@pytest.fixture(autouse=True)
def instrumented():
    AsyncioInstrumentor().instrument()
    A2AInstrumentor().instrument()
    fresh()
    yield
    A2AInstrumentor().uninstrument()
    AsyncioInstrumentor().uninstrument()
    assert process.failures == {}


def handler_of(work):
    return DefaultRequestHandler(
        agent_executor=Executor(work),
        task_store=InMemoryTaskStore(),
        agent_card=card_of("http://127.0.0.1:1", "JSONRPC"),
    )


async def subscribed(read, begin=lambda: None):
    """A task that is asked for, with a subscriber of no cascade that reads by `read`; the handler, and the subscriber.

    The execution calls `begin` first.
    """
    subscribing = asyncio.Event()

    async def work(updater):
        begin()
        await updater.start_work()
        await subscribing.wait()
        await complete(updater)

    handler = handler_of(work)
    with hopwatch.cascade("asks"):
        told = await handler.on_message_send(request(now=True), ServerCallContext())

    async def subscribe():
        async for event in handler.on_subscribe_to_task(
            SubscribeToTaskRequest(id=told.id), ServerCallContext()
        ):
            subscribing.set()
            await read(event)

    with hopwatch.service():
        subscriber = asyncio.create_task(subscribe(), name="tail")
    return handler, subscriber


def test_a_subscriber_that_awaits_a_future_holds_the_execution_and_nothing_of_it_moves():
    async def story():
        answer = asyncio.get_running_loop().create_future()

        async def read(event):
            if type(event).__name__ != "Task":
                await answer

        handler, subscriber = await subscribed(read)
        await until(lambda: _deliveries)
        (execution,) = [each for each in process.here().ledger.open_hops() if each.kind == "execution"]
        assert execution.done is not None
        # The producer goes to close its queues, and is stuck there.
        await until(lambda: what_it_waits_on(execution)[1] is False)
        told, _ = what_it_waits_on(execution)
        (delivery,) = told["of"]
        assert delivery["what"].startswith("subscriber 'tail' to take ")
        assert "undelivered events from queue 0x" in delivery["what"]
        assert f"'producer:{execution.attributes['a2a.task.id']}' cannot close" in delivery["what"]
        assert delivery["of"][0]["what"] == "a future `answer` that nobody has set"
        assert verdict(only_cascade()).verdict != "settled"
        answer.set_result(None)
        await subscriber
        await over()
        hops = only_cascade()
        assert verdict(hops).verdict == "settled"
        assert not any(each.late for each in hops.values())
        assert hop(hops, "execution").outcome == "finished"
        assert not _deliveries
        await handler.aclose()

    run(story)


def test_what_a_subscriber_has_not_taken_is_not_late_where_the_sdk_takes_long_for_the_last_event():
    def revealed():
        # As it is where the last event is processed later than the threshold after the end of `execute`.
        (execution,) = [each for each in process.here().ledger.open_hops() if each.kind == "execution"]
        (completion,) = [each for each in process.here().ledger.below(execution, 10) if each.kind == "event"]
        process.here().ledger.reveal(completion)

    async def story():
        answer = asyncio.get_running_loop().create_future()

        async def read(event):
            if type(event).__name__ != "Task":
                await answer

        handler, subscriber = await subscribed(read, revealed)
        await until(lambda: _deliveries)
        (execution,) = [each for each in process.here().ledger.open_hops() if each.kind == "execution"]
        assert not execution.closed
        answer.set_result(None)
        await subscriber
        await over()
        hops = only_cascade()
        assert verdict(hops).verdict == "settled"
        assert not any(each.late for each in hops.values())
        await handler.aclose()

    run(story)


def test_a_subscriber_that_reads_holds_nothing_up():
    async def story():
        async def read(_):
            await asyncio.sleep(0)

        handler, subscriber = await subscribed(read)
        await subscriber
        await over()
        assert verdict(only_cascade()).verdict == "settled"
        await handler.aclose()

    run(story)


def test_a_subscriber_that_leaves_in_the_middle_lets_the_execution_end():
    async def story():
        async def read(event):
            if type(event).__name__ != "Task":
                await asyncio.Event().wait()

        handler, subscriber = await subscribed(read)
        await until(lambda: _deliveries)
        subscriber.cancel()
        await asyncio.gather(subscriber, return_exceptions=True)
        await over()
        assert verdict(only_cascade()).verdict == "settled"
        await handler.aclose()

    run(story)


def test_a_handler_that_is_closed_lets_go_of_what_nobody_has_taken():
    async def story():
        async def read(event):
            if type(event).__name__ != "Task":
                await asyncio.Event().wait()

        handler, subscriber = await subscribed(read)
        await until(lambda: _deliveries)
        closing = asyncio.create_task(handler.aclose())
        await over()
        assert not _deliveries
        subscriber.cancel()
        await asyncio.gather(subscriber, closing, return_exceptions=True)

    run(story)
