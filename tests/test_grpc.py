"""Does a message over gRPC become the same hops as one over HTTP? The real SDK over real grpc.aio, in one process."""

import asyncio
import contextlib
import gc
import json
import logging
import re
import subprocess
import sys
import time
import weakref
from pathlib import Path

import grpc
import httpx
import pytest
from a2a.client import ClientConfig, ClientFactory
from a2a.client.client import ClientCallContext
from a2a.client.errors import A2AClientError, A2AClientTimeoutError
from a2a.compat.v0_3 import a2a_v0_3_pb2_grpc
from a2a.compat.v0_3.grpc_handler import CompatGrpcHandler
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.request_handlers.grpc_handler import DefaultGrpcServerCallContextBuilder, GrpcHandler
from a2a.server.tasks import (
    BasePushNotificationSender,
    InMemoryPushNotificationConfigStore,
    InMemoryTaskStore,
)
from a2a.types import a2a_pb2, a2a_pb2_grpc
from a2a.types.a2a_pb2 import (
    AgentCapabilities,
    AgentCard,
    AgentInterface,
    AgentSkill,
    CancelTaskRequest,
    GetTaskRequest,
    ListTasksRequest,
    SubscribeToTaskRequest,
)
from a2a.utils.errors import TaskNotFoundError
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

import hopwatch
import test_a2a
from exported import cascades, ends, exporter, fresh, only_cascade, others, tree, verdict
from hopwatch import attributes as names
from hopwatch import hop_waits, process, propagation
from hopwatch.instrumentation import Patches, a2a_grpc, a2a_grpc_server, a2a_seams, http_client
from hopwatch.instrumentation.a2a import A2AInstrumentor, missing
from test_a2a import MESSAGE, Executor, answers, complete, hop, over, request, run, served
from ticking import collect

NOWHERE = "127.0.0.1:9"


pytestmark = pytest.mark.usefixtures("a2a_instrumented")


@pytest.fixture(autouse=True)
def empty(monkeypatch):
    monkeypatch.setenv("HOPWATCH_REVEAL_AFTER", "3600")  # the machine may be slow
    fresh()
    yield
    assert process.failures == {}
    assert http_client._attempts == {}


def card_of(url, version="1.0"):
    return AgentCard(
        name="agent",
        version="1",
        description="an agent",
        supported_interfaces=[AgentInterface(url=url, protocol_binding="GRPC", protocol_version=version)],
        capabilities=AgentCapabilities(streaming=True, push_notifications=True),
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        skills=[AgentSkill(id="work", name="work", description="works", tags=["test"])],
    )


@contextlib.asynccontextmanager
async def listening(add, servicer, **options):
    """Serve a servicer; its address."""
    server = grpc.aio.server(**options)
    add(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@contextlib.asynccontextmanager
async def agent(work=complete, *, builder=None, older=False, handlers=None, **options):
    async with httpx.AsyncClient(timeout=60) as http:
        configs = InMemoryPushNotificationConfigStore()
        handler = DefaultRequestHandler(
            agent_executor=Executor(work),
            task_store=InMemoryTaskStore(),
            agent_card=card_of("127.0.0.1:1"),
            push_config_store=configs,
            push_sender=BasePushNotificationSender(http, configs),
        )
        if handlers is not None:
            handlers.append(handler)
        add, servicer = (
            (a2a_v0_3_pb2_grpc.add_A2AServiceServicer_to_server, CompatGrpcHandler(handler, builder))
            if older
            else (a2a_pb2_grpc.add_A2AServiceServicer_to_server, GrpcHandler(handler, builder))
        )
        async with listening(add, servicer, **options) as address:
            yield address
        await handler.aclose()


@contextlib.asynccontextmanager
async def client(address, *, streaming=False, polling=False, version="1.0", channel=None, **options):
    def made(url):
        return channel or grpc.aio.insecure_channel(url, **options)

    config = ClientConfig(
        grpc_channel_factory=made, streaming=streaming, polling=polling, supported_protocol_bindings=["GRPC"]
    )
    peer = ClientFactory(config).create(card_of(address, version))
    try:
        yield peer
    finally:
        await peer.close()


def span_of(kind):
    (span,) = [each for each in ends() if each.attributes[names.HOP_KIND] == kind]
    return span


async def ended(kind):
    """Wait until a hop of this kind has ended."""
    while not [each for each in ends() if each.attributes[names.HOP_KIND] == kind]:
        await asyncio.sleep(0.01)


def test_a_blocking_message_is_a_send_a_request_and_an_execution():
    async def story():
        async with agent() as address, client(address) as peer:
            (answer,) = await answers(peer, request())
            await over()
        hops = only_cascade()
        assert tree(hops) == MESSAGE
        assert len(ends()) == 3
        send, served_, ran = hop(hops, "send"), hop(hops, "request"), hop(hops, "execution")
        assert (send.name, served_.name, ran.name) == ("SendMessage", "SendMessage", "Executor.execute")
        assert (send.peer, send.peer_hop, send.peer_name) == ("instrumented", served_.id, address)
        assert (served_.remote, ran.remote) == (True, False)
        assert send.task_id == served_.task_id == ran.task_id == answer.task.id
        assert ran.task_state == send.task_state == "TASK_STATE_COMPLETED"
        for span in (span_of("send"), span_of("request")):
            assert span.attributes["rpc.system.name"] == "grpc"
            assert "rpc.response.status_code" not in span.attributes
        assert verdict(hops).verdict == "settled"

    run(story)


def test_a_message_that_is_not_waited_for_is_the_same():
    async def story():
        release = asyncio.Event()

        async def work(updater):
            await updater.start_work()
            await release.wait()
            await updater.complete()

        async with agent(work) as address, client(address, polling=True) as peer:
            await answers(peer, request(now=True))
            assert verdict(only_cascade()).verdict != "settled"
            release.set()
            await over()
        hops = only_cascade()
        assert tree(hops) == MESSAGE
        assert verdict(hops).verdict == "settled"

    run(story)


def test_a_streamed_message_is_the_same_three_hops():
    async def story():
        release = asyncio.Event()

        async def work(updater):
            await updater.start_work()
            await release.wait()
            await complete(updater)

        async with agent(work) as address, client(address, streaming=True) as peer:
            events = []
            async for event in peer.send_message(request()):
                if not events:
                    release.set()
                events.append(event)
            assert len(events) == 5
            await over()
        hops = only_cascade()
        assert tree(hops) == MESSAGE
        assert len(ends()) == 3
        send = hop(hops, "send")
        assert (send.peer, send.peer_hop) == ("instrumented", hop(hops, "request").id)
        assert (send.name, send.outcome, send.task_state) == (
            "SendStreamingMessage",
            "finished",
            "TASK_STATE_COMPLETED",
        )
        assert hop(hops, "request").outcome == "finished"
        assert verdict(hops).verdict == "settled"

    run(story)


def test_who_takes_the_first_event_of_a_stream_and_leaves_is_no_failure():
    async def story():
        release = asyncio.Event()

        async def work(updater):
            await updater.start_work()
            await release.wait()
            await updater.complete()

        async with agent(work) as address, client(address, streaming=True) as peer:
            async for _ in peer.send_message(request()):
                break
            release.set()
            await over()
        hops = only_cascade()
        send = hop(hops, "send")
        assert (send.outcome, send.peer, send.peer_hop) == ("finished", "unknown", None)
        assert hop(hops, "execution").outcome == "finished"
        assert verdict(hops).verdict == "settled"
        assert verdict({send.id: send}).verdict == "unknown"

    run(story)


def test_somebody_who_subscribes_to_a_task_is_a_cascade_of_its_own():
    async def story():
        release = asyncio.Event()

        async def work(updater):
            await updater.start_work()
            await release.wait()
            await complete(updater)

        async with agent(work) as address, client(address, streaming=True, polling=True) as peer:
            async for event in peer.send_message(request()):
                task = event.task.id
                break
            told = []
            async for event in peer.subscribe(SubscribeToTaskRequest(id=task)):
                told.append(event)
                release.set()
            await over()
        assert told[0].task.id == task
        found = {tuple(sorted(each.name for each in hops.values())): hops for hops in cascades().values()}
        mine = found[("SubscribeToTask", "SubscribeToTask")]
        assert tree(mine) == [("send", [("request", [])])]
        send = hop(mine, "send")
        assert (send.peer_hop, send.task_id, send.task_state) == (
            hop(mine, "request").id,
            task,
            "TASK_STATE_COMPLETED",
        )
        assert {verdict(hops).verdict for hops in found.values()} == {"settled"}

    run(story)


def test_a_task_that_is_cancelled_by_a_message_says_so():
    async def story():
        begun = asyncio.Event()

        async def work(updater):
            await updater.start_work()
            begun.set()
            await asyncio.Event().wait()

        async with agent(work) as address, client(address, polling=True) as peer:
            (answer,) = await answers(peer, request(now=True))
            await begun.wait()
            cancelled = await peer.cancel_task(CancelTaskRequest(id=answer.task.id))
            assert cancelled.status.state == a2a_pb2.TASK_STATE_CANCELED
            await over()
        found = {hop(hops, "send").name: hops for hops in cascades().values()}
        assert tree(found["CancelTask"]) == [("send", [("request", [])])]
        assert hop(found["CancelTask"], "send").task_state == "TASK_STATE_CANCELED"
        assert tree(found["SendMessage"]) == MESSAGE
        assert hop(found["SendMessage"], "execution").outcome == "cancelled"
        assert verdict(found["CancelTask"]).verdict == "settled"

    run(story)


def test_a_task_that_asks_for_input_waits_and_the_next_message_finishes_it():
    async def story():
        rounds = []

        async def work(updater):
            rounds.append(updater.task_id)
            await (updater.requires_input() if len(rounds) == 1 else updater.complete())

        async with agent(work) as address, client(address) as peer:
            (answer,) = await answers(peer, request())
            await over()
            (first,) = cascades().values()
            assert verdict(first).verdict == "waiting"
            await answers(peer, request("more", task=answer.task.id, context=answer.task.context_id))
            await over()
        (second,) = [hops for key, hops in cascades().items() if key != hop(first, "send").cascade]
        assert tree(second) == MESSAGE
        assert verdict(second).verdict == "settled"

    run(story)


def test_pushes_go_by_http_as_ever_and_are_two_hops_each():
    async def story():
        pushed = asyncio.Queue()

        async def webhook(req):
            pushed.put_nowait(await req.json())
            return JSONResponse({})

        async with (
            served(Starlette(routes=[Route("/hook", webhook, methods=["POST"])])) as url,
            agent() as address,
            client(address, polling=True) as peer,
        ):
            await answers(peer, request(webhook=f"{url}/hook", now=True))
            for _ in range(4):
                await pushed.get()
                pushed.task_done()
            await over()
        hops = only_cascade()
        push = ("push", [("webhook", [])])
        assert tree(hops) == [("send", [("request", [("execution", [push] * 4)])])]
        assert len(ends()) == 3 + 2 * 4
        assert verdict(hops).verdict == "settled"

    run(story)


def test_what_an_execution_hands_on_belongs_to_its_cascade_and_a_poll_to_nobody():
    async def story():
        async with agent() as below:

            async def delegate(updater):
                async with client(below) as peer:
                    (answer,) = await answers(peer, request())
                    await peer.get_task(GetTaskRequest(id=answer.task.id))
                await updater.complete()

            async with agent(delegate) as address, client(address) as peer:
                (answer,) = await answers(peer, request())
                await over()
                hops = only_cascade()
                await peer.get_task(GetTaskRequest(id=answer.task.id))
                await peer.list_tasks(ListTasksRequest())
        asked = ("send", [("request", [])])
        assert tree(hops) == [("send", [("request", [("execution", [*MESSAGE, asked])])])]
        assert verdict(hops).verdict == "settled"
        assert len(cascades()) == 1

    run(story)


def test_an_execution_that_raises_has_failed_and_its_task_too():
    async def story():
        async def work(updater):
            await updater.start_work()
            raise ValueError("no")

        async with agent(work) as address, client(address) as peer:
            with contextlib.suppress(Exception):
                await answers(peer, request())
            await over()
        hops = only_cascade()
        assert (hop(hops, "execution").outcome, hop(hops, "execution").reason) == ("failed", "ValueError: no")
        assert hop(hops, "execution").task_state == "TASK_STATE_FAILED"
        assert verdict(hops).verdict == "settled"

    run(story)


def test_an_error_that_the_agent_answers_with_reaches_the_caller_as_it_is_and_nothing_is_missing():
    async def story():
        async with agent() as address, client(address) as peer:
            with hopwatch.cascade("asks"), pytest.raises(TaskNotFoundError) as raised:
                await peer.cancel_task(CancelTaskRequest(id="nobody's"))
            await over()
        trailing = raised.value.__cause__.trailing_metadata()
        assert "grpc-status-details-bin" in trailing  # the SDK's own stands beside ours
        hops = only_cascade()
        send, served_ = hop(hops, "send"), hop(hops, "request")
        assert (send.outcome, send.peer, send.peer_hop) == ("failed", "instrumented", served_.id)
        assert (served_.outcome, served_.reason) == ("failed", "answered NOT_FOUND")
        assert span_of("send").attributes["rpc.response.status_code"] == "NOT_FOUND"
        assert span_of("request").attributes["rpc.response.status_code"] == "NOT_FOUND"
        assert span_of("request").attributes["error.type"] == "TaskNotFoundError"
        assert verdict(hops).verdict == "settled"

    run(story)


@pytest.mark.parametrize("streaming", [False, True])
def test_that_an_agent_cannot_be_reached_may_be_somebody_elses_word_and_proves_nothing(streaming):
    async def story():
        async with client(NOWHERE, streaming=streaming) as peer:
            with pytest.raises(A2AClientError):
                await answers(peer, request())
        hops = only_cascade()
        send = hop(hops, "send")
        assert (send.peer, send.outcome, send.peer_name) == ("unknown", "failed", NOWHERE)
        assert "UNAVAILABLE" in send.reason
        assert verdict(hops).verdict == "unknown"

    run(story)


class Channel:
    """A channel that is none of grpc.aio's."""

    def unary_unary(self, *_, **__):
        async def call(*_, **__):
            nothing = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(
                grpc.StatusCode.UNAVAILABLE, nothing, nothing, "failed to connect to all addresses"
            )

        return call

    unary_stream = unary_unary

    async def close(self):
        pass


def test_a_channel_of_another_kind_is_not_known_to_have_reached_nobody():
    async def story():
        async with client(NOWHERE, channel=Channel()) as peer:
            with pytest.raises(A2AClientError):
                await answers(peer, request())
        assert hop(only_cascade(), "send").peer == "unknown"

    run(story)


class Foreign(a2a_pb2_grpc.A2AServiceServicer):
    """An agent without hopwatch, whose answers the test makes."""

    def __init__(self, answer):
        self.answer = answer
        self.seen = []

    async def SendMessage(self, request, context):  # noqa: N802
        self.seen.append(tuple(context.invocation_metadata()))
        return await self.answer(context)

    async def SendStreamingMessage(self, request, context):  # noqa: N802
        self.seen.append(tuple(context.invocation_metadata()))
        yield a2a_pb2.StreamResponse(task=task(a2a_pb2.TASK_STATE_WORKING))
        yield a2a_pb2.StreamResponse(task=(await self.answer(context)).task)

    async def GetTask(self, request, context):  # noqa: N802
        return task(a2a_pb2.TASK_STATE_COMPLETED)


def task(state):
    return a2a_pb2.Task(id="t1", context_id="c1", status=a2a_pb2.TaskStatus(state=state))


def foreign(answer, **options):
    servicer = answer if isinstance(answer, Foreign) else Foreign(answer)
    return listening(a2a_pb2_grpc.add_A2AServiceServicer_to_server, servicer, **options)


def in_state(state):
    async def answer(_):
        return a2a_pb2.SendMessageResponse(task=task(state))

    return answer


@pytest.mark.parametrize("streaming", [False, True])
def test_a_peer_without_hopwatch_that_completed_its_task_is_settled_up_to_it(streaming):
    async def story():
        async with (
            foreign(in_state(a2a_pb2.TASK_STATE_COMPLETED)) as address,
            client(address, streaming=streaming) as peer,
        ):
            await answers(peer, request())
        hops = only_cascade()
        assert hop(hops, "send").peer == "opaque"
        judged = verdict(hops)
        assert (judged.verdict, judged.opaque) == ("settled", [address])
        assert "up to" in judged.reason

    run(story)


def test_a_peer_without_hopwatch_whose_task_still_works_is_unknown_until_it_is_asked_again():
    async def story():
        async with (
            foreign(in_state(a2a_pb2.TASK_STATE_WORKING)) as address,
            client(address) as peer,
            hopwatch.cascade("ask twice"),
        ):
            await answers(peer, request())
            # On a slow machine the root is known to be open meanwhile, and has no heartbeat yet.
            assert verdict(only_cascade()).verdict in ("unknown", "silent")
            await peer.get_task(GetTaskRequest(id="t1"))
        assert verdict(only_cascade()).verdict == "settled"

    run(story)


def test_a_deadline_that_passes_leaves_it_unknown_who_took_the_message():
    async def story():
        async def never(_):
            await asyncio.Event().wait()

        async with foreign(never) as address, client(address) as peer:
            with pytest.raises(A2AClientTimeoutError):
                async for _ in peer.send_message(request(), context=ClientCallContext(timeout=0.3)):
                    pass
        hops = only_cascade()
        assert hop(hops, "send").peer == "unknown"
        assert span_of("send").attributes["rpc.response.status_code"] == "DEADLINE_EXCEEDED"
        judged = verdict(hops)
        assert judged.verdict == "unknown"
        assert "nobody knows whether" in judged.reason

    run(story)


def test_a_deadline_that_passes_at_an_agent_of_ours_cancels_its_request_and_nothing_is_missing():
    async def story():
        release = asyncio.Event()

        async def work(updater):
            await updater.start_work()
            await release.wait()
            await updater.complete()

        async with agent(work) as address, client(address) as peer:
            await peer.list_tasks(ListTasksRequest())  # it is connected: the time is for the message alone
            with pytest.raises(A2AClientTimeoutError):
                async for _ in peer.send_message(request(), context=ClientCallContext(timeout=8)):
                    pass
            await ended("request")
            release.set()
            await over()
        hops = only_cascade()
        assert hop(hops, "send").peer == "unknown"
        assert verdict(hops).verdict == "settled"

    run(story)


def test_a_gateway_that_gave_up_leaves_it_unknown_who_took_the_message():
    async def story():
        async def gave_up(context):
            # As somebody says it who handed the message on, and connected to nobody.
            await context.abort(grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses")

        async with foreign(gave_up) as address, client(address) as peer:
            with pytest.raises(A2AClientError):
                await answers(peer, request())
        hops = only_cascade()
        assert hop(hops, "send").peer == "unknown"
        assert verdict(hops).verdict == "unknown"

    run(story)


@pytest.mark.parametrize("code", ["UNAUTHENTICATED", "UNIMPLEMENTED", "PERMISSION_DENIED"])
def test_a_peer_without_hopwatch_that_refuses_the_message_has_not_taken_it(code):
    async def story():
        async def refuse(context):
            await context.abort(grpc.StatusCode[code], "no")

        async with foreign(refuse) as address, client(address) as peer:
            with pytest.raises(A2AClientError):
                await answers(peer, request())
        hops = only_cascade()
        assert (hop(hops, "send").peer, hop(hops, "send").outcome) == ("opaque", "failed")
        judged = verdict(hops)
        assert (judged.verdict, judged.opaque) == ("settled", [address])

    run(story)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("code", ["NOT_FOUND", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "ABORTED"])
def test_a_peer_without_hopwatch_that_answers_an_error_may_have_begun_before(code, streaming):
    async def story():
        async def begin(context):
            await context.abort(grpc.StatusCode[code], "no such file")

        async with foreign(begin) as address, client(address, streaming=streaming) as peer:
            with pytest.raises(A2AClientError):
                await answers(peer, request())
        assert verdict(only_cascade()).verdict == "unknown"

    run(story)


@pytest.mark.parametrize("code", ["INTERNAL", "UNKNOWN", "RESOURCE_EXHAUSTED"])
def test_what_grpc_may_have_made_up_itself_leaves_it_unknown(code):
    async def story():
        async def fail(context):
            await context.abort(grpc.StatusCode[code], "no")

        async with foreign(fail) as address, client(address) as peer:
            with pytest.raises(A2AClientError):
                await answers(peer, request())
        assert verdict(only_cascade()).verdict == "unknown"

    run(story)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_message_that_is_cancelled_by_its_caller_says_so(streaming):
    async def story():
        reached, release = asyncio.Event(), asyncio.Event()

        async def work(updater):
            await updater.start_work()
            reached.set()
            await release.wait()
            await updater.complete()

        async with agent(work) as address, client(address, streaming=streaming) as peer:
            sending = asyncio.create_task(answers(peer, request()))
            await reached.wait()
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            await ended("request")
            release.set()
            await over()
        hops = only_cascade()
        assert hop(hops, "send").outcome == "cancelled"
        assert hop(hops, "execution").outcome == "finished"
        assert verdict(hops).verdict == "settled"

    run(story)


def test_a_client_without_hopwatch_makes_the_request_a_root_in_its_own_trace():
    async def story():
        trace_id = "ab" * 16
        async with agent() as address, grpc.aio.insecure_channel(address) as channel:
            stub = a2a_pb2_grpc.A2AServiceStub(channel)
            call = stub.SendMessage(
                request(),
                metadata=(("traceparent", f"00-{trace_id}-{'cd' * 8}-01"), ("mine", "kept")),
            )
            await call
            answer = dict([*await call.trailing_metadata()])
            await over()
        ((identifier, hops),) = cascades().items()
        assert identifier == trace_id
        assert tree(hops) == [("request", [("execution", [])])]
        said = f"00-{trace_id}-{hop(hops, 'request').id}-01"
        assert (answer["traceresponse"], answer["hopwatch-hop"]) == (said, said)
        assert verdict(hops).verdict == "settled"

    run(story)


class Builder(DefaultGrpcServerCallContextBuilder):
    """Sees each call as the application does."""

    def __init__(self, see):
        self.see = see

    def build(self, context):
        self.see(context)
        return super().build(context)


def test_the_applications_own_metadata_arrives_beside_ours():
    async def story():
        there = []

        def see(context):
            there.append(context.invocation_metadata())
            context.set_trailing_metadata((("mine", "too"),))

        class Sees(grpc.aio.UnaryUnaryClientInterceptor):
            async def intercept_unary_unary(self, continuation, details, message):
                kinds.append(type(details.metadata))
                call = await continuation(details, message)
                back.extend(await call.trailing_metadata())
                return call

        kinds, back = [], []
        async with agent(builder=Builder(see)) as address, client(address, interceptors=[Sees()]) as peer:
            context = ClientCallContext(service_parameters={"X-Tenant": "blue", "traceparent": "mine"})
            async for _ in peer.send_message(request(), context=context):
                pass
            await over()
        hops = only_cascade()
        got = [(key, value) for key, value in there[0] if key != "user-agent"]
        assert sorted(key for key, _ in got) == ["a2a-version", "traceparent", "tracestate", "x-tenant"]
        assert dict(got)["x-tenant"] == "blue"
        assert dict(got)["traceparent"].split("-")[2] == hop(hops, "send").id
        assert ("mine", "too") in back
        assert sum(key == "hopwatch-hop" for key, _ in back) == 1
        assert hop(hops, "send").peer_hop == hop(hops, "request").id
        assert verdict(hops).verdict == "settled"

    run(story)


KINDS = {
    "none": lambda _: None,
    "list": list,
    "tuple": tuple,
    "Metadata": lambda pairs: grpc.aio.Metadata(*pairs),
    "generator": lambda pairs: (pair for pair in pairs),
    "map": lambda pairs: map(tuple, pairs),
    "set": set,
    "items": lambda pairs: dict(pairs).items(),
}


def with_metadata(monkeypatch, make):
    """Have the transport's metadata made by the application."""
    from a2a.client.transports.grpc import GrpcTransport

    own = GrpcTransport._get_grpc_metadata
    monkeypatch.setattr(GrpcTransport, "_get_grpc_metadata", lambda *args: make(own(*args)))


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_metadata_of_every_kind_arrives(kind, fails, monkeypatch):
    with_metadata(monkeypatch, lambda pairs: KINDS[kind]([*pairs, ("authorization", "Bearer mine")]))
    if fails:  # after the application's metadata has been read
        monkeypatch.setattr(propagation, "outgoing", lambda _: 1 / 0)

    async def story():
        servicer = Foreign(in_state(a2a_pb2.TASK_STATE_COMPLETED))
        async with foreign(servicer) as address, client(address) as peer:
            await answers(peer, request())
        seen = {key for key, _ in servicer.seen[0]} - {"user-agent"}
        own = set() if kind == "none" else {"a2a-version", "authorization"}
        assert seen == own | (set() if fails else {"traceparent", "tracestate"})
        assert bool(process.failures) == fails
        process.failures.clear()

    run(story)


def test_metadata_that_cannot_be_read_fails_as_it_would_without_hopwatch(monkeypatch):
    def broken(pairs):
        yield from pairs
        raise ValueError("no token today")

    with_metadata(monkeypatch, broken)

    async def story():
        servicer = Foreign(in_state(a2a_pb2.TASK_STATE_COMPLETED))
        async with foreign(servicer) as address, client(address) as peer:
            with pytest.raises(ValueError, match="no token"):
                await answers(peer, request())
        assert servicer.seen == []
        assert verdict(only_cascade()).verdict == "unknown"

    run(story)


def test_an_agent_that_hands_on_what_another_one_answered_is_acknowledged_by_its_own_hop():
    async def story():
        def see(context):
            (parent,) = [value for key, value in context.invocation_metadata() if key == "traceparent"]
            others = f"00-{parent.split('-')[1]}-{'cd' * 8}-01"
            context.set_trailing_metadata((("hopwatch-hop", others), ("traceresponse", others)))

        back = []

        class Sees(grpc.aio.UnaryUnaryClientInterceptor):
            async def intercept_unary_unary(self, continuation, details, message):
                call = await continuation(details, message)
                back.extend(await call.trailing_metadata())
                return call

        async with agent(builder=Builder(see)) as address, client(address, interceptors=[Sees()]) as peer:
            await answers(peer, request())
            await over()
        hops = only_cascade()
        assert hop(hops, "send").peer_hop == hop(hops, "request").id
        assert [key for key, _ in back] == ["traceresponse", "hopwatch-hop"]
        assert verdict(hops).verdict == "settled"

    run(story)


class AtFirst(grpc.aio.ServerInterceptor):
    """Does something with the context when the first event of a stream has come."""

    def __init__(self, act):
        self.act = act

    async def intercept_service(self, continuation, details):
        handler = await continuation(details)
        if not handler.response_streaming:
            return handler

        async def stream(message, context):
            first = True
            async for event in handler.unary_stream(message, context):
                if first:
                    first = False
                    await self.act(context, event)
                yield event

        return grpc.unary_stream_rpc_method_handler(
            stream, handler.request_deserializer, handler.response_serializer
        )


async def sends_initial_metadata(context, event):
    await context.send_initial_metadata((("task", event.task.id),))


async def compresses(context, _):
    context.set_compression(grpc.Compression.Gzip)


@pytest.mark.parametrize("act", [sends_initial_metadata, compresses])
@pytest.mark.parametrize("by", ["interceptor", "subclass"])
def test_who_waits_for_the_first_event_of_a_stream_can_still_say_how_it_begins(act, by):
    class Own(GrpcHandler):
        async def SendStreamingMessage(self, request, context):  # noqa: N802
            first = True
            async for event in super().SendStreamingMessage(request, context):
                if first:
                    first = False
                    await act(context, event)
                yield event

    async def story():
        handlers = []
        options = {"interceptors": [AtFirst(act)]} if by == "interceptor" else {}
        async with (
            agent(handlers=handlers),
            listening(
                a2a_pb2_grpc.add_A2AServiceServicer_to_server,
                (GrpcHandler if by == "interceptor" else Own)(handlers[0]),
                **options,
            ) as address,
            client(address, streaming=True) as peer,
        ):
            assert len(await answers(peer, request())) == 4
            await over()
        hops = only_cascade()
        send = hop(hops, "send")
        assert (send.peer, send.peer_hop) == ("instrumented", hop(hops, "request").id)
        assert verdict(hops).verdict == "settled"

    run(story)


def test_a_stream_that_has_begun_is_refused_by_no_status():
    async def story():
        async def refuse(context):
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "not that one")

        async with foreign(refuse) as address, client(address, streaming=True) as peer:
            with pytest.raises(A2AClientError):
                await answers(peer, request())
        assert hop(only_cascade(), "send").peer == "unknown"
        assert verdict(only_cascade()).verdict == "unknown"

    run(story)


@pytest.mark.row(
    "neighbours", "OpenTelemetry's instrumentation of grpc", "opentelemetry-instrumentation-grpc", "grpcio"
)
def test_beside_contrib_every_hop_keeps_its_place_and_no_header_goes_out_twice():
    from opentelemetry.instrumentation.grpc import (
        GrpcAioInstrumentorClient,
        GrpcAioInstrumentorServer,
    )

    GrpcAioInstrumentorClient().instrument()
    GrpcAioInstrumentorServer().instrument()
    try:

        async def story(*, streaming):
            fresh()
            there = []
            builder = Builder(lambda context: there.append(context.invocation_metadata()))
            async with agent(builder=builder) as address, client(address, streaming=streaming) as peer:
                await answers(peer, request())
                await over()
            ((identifier, hops),) = cascades().items()
            assert tree(hops) == MESSAGE
            assert len(ends()) == 3
            send, served_ = hop(hops, "send"), hop(hops, "request")
            assert (send.peer, send.peer_hop, served_.parent) == ("instrumented", served_.id, send.id)
            assert verdict(hops).verdict == "settled"
            for name in ("traceparent", "tracestate"):
                assert sum(key == name for key, _ in there[0]) == 1
            contrib = [
                span
                for span in others()
                if span.instrumentation_scope.name.startswith("opentelemetry.instrumentation.grpc")
            ]
            assert sorted(span.kind.name for span in contrib) == ["CLIENT", "SERVER"]
            assert {f"{span.context.trace_id:032x}" for span in contrib} == {identifier}
            # send > contrib's client > contrib's server > request
            by_id = {span.context.span_id: span for span in exporter.get_finished_spans()}
            server = by_id[span_of("request").parent.span_id]
            caller = by_id[server.parent.span_id]
            assert (server.kind.name, caller.kind.name) == ("SERVER", "CLIENT")
            above = []
            while caller.parent is not None and caller.parent.span_id in by_id:  # the SDK's own stand between
                caller = by_id[caller.parent.span_id]
                above.append(caller.context.span_id)
            assert span_of("send").context.span_id in above

        run(lambda: story(streaming=False))
        run(lambda: story(streaming=True))
    finally:
        GrpcAioInstrumentorServer().uninstrument()
        GrpcAioInstrumentorClient().uninstrument()


class TriesAgain(grpc.aio.UnaryUnaryClientInterceptor):
    """Takes no first answer for good."""

    async def intercept_unary_unary(self, continuation, details, message):
        await (await continuation(details, message))
        return await continuation(details, message)


def test_an_interceptor_that_sends_again_reaches_two_and_both_have_to_be_known():
    async def story():
        async with agent() as address, client(address, interceptors=[TriesAgain()]) as peer:
            await answers(peer, request())
            await over()
        hops = only_cascade()
        sent = hop(hops, "send")
        assert sent.attempts == 2
        reached = [each for each in hops.values() if each.kind == "request"]
        assert [each.parent for each in reached] == [sent.id, sent.id]
        assert verdict(hops).verdict == "settled"
        lost = {key: each for key, each in hops.items() if key != reached[0].id}
        assert verdict(lost).verdict == "unknown"

    run(story)


class Hands(grpc.aio.UnaryUnaryClientInterceptor):
    """Has each call made by a worker that was started elsewhere, as a limiter of calls does."""

    def __init__(self, change=lambda details: details):
        self.due = asyncio.Queue()
        self.change = change
        self.worker = asyncio.create_task(self.work())

    async def work(self):
        while True:
            make, answer = await self.due.get()
            try:
                answer.set_result(await (await make()))
            except grpc.aio.AioRpcError as error:
                answer.set_exception(error)
            self.due.task_done()

    async def intercept_unary_unary(self, continuation, details, message):
        answer = asyncio.get_running_loop().create_future()
        self.due.put_nowait((lambda: continuation(self.change(details), message), answer))
        return await answer


def for_a_moment(details):
    return details._replace(timeout=0.5)


def without_metadata(details):
    return for_a_moment(details)._replace(metadata=grpc.aio.Metadata())


async def never(_):
    await asyncio.Event().wait()


@pytest.mark.parametrize("change", [for_a_moment, without_metadata])
def test_a_call_that_is_made_by_a_worker_has_not_reached_nobody(change):
    async def story():
        async with foreign(never) as address, client(address, interceptors=[Hands(change)]) as peer:
            with pytest.raises(A2AClientTimeoutError):
                await answers(peer, request())
            await over()
        hops = only_cascade()
        assert (hop(hops, "send").peer, hop(hops, "send").outcome) == ("unknown", "failed")
        assert verdict(hops).verdict == "unknown"

    run(story)


def test_calls_that_a_worker_makes_for_others_are_each_that_of_its_own_send():
    async def story():
        async with agent() as address, client(address, interceptors=[Hands()]) as peer:
            await answers(peer, request())
            await answers(peer, request())
            await over()
        assert len(cascades()) == 2
        for hops in cascades().values():
            assert tree(hops) == MESSAGE
            assert (hop(hops, "send").peer, hop(hops, "send").attempts) == ("instrumented", 0)
            assert verdict(hops).verdict == "settled"

    run(story)


class Refreshes(Hands):
    """Tries again with a fresh token where it is refused: by its worker, and with other metadata."""

    async def intercept_unary_unary(self, continuation, details, message):
        with contextlib.suppress(grpc.aio.AioRpcError):
            await (await continuation(details, message))
        return await super().intercept_unary_unary(continuation, details, message)


def test_a_refusal_is_not_the_last_word_where_somebody_tries_again_out_of_sight():
    async def story():
        asked = []

        async def refuse(context):
            asked.append(context)
            if len(asked) == 1:
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no")
            await never(context)

        # It has to arrive within its time.
        again = Refreshes(lambda details: without_metadata(details)._replace(timeout=8))
        async with foreign(refuse) as address, client(address, interceptors=[again]) as peer:
            with pytest.raises(A2AClientTimeoutError):
                await answers(peer, request())
            await over()
        assert len(asked) == 2
        hops = only_cascade()
        assert hop(hops, "send").peer == "unknown"
        assert verdict(hops).verdict == "unknown"

    run(story)


def test_a_call_that_is_made_after_hopwatch_was_taken_out_has_not_reached_nobody():
    async def story():
        held, release = asyncio.Event(), asyncio.Event()

        class Holds(grpc.aio.UnaryUnaryClientInterceptor):
            async def intercept_unary_unary(self, continuation, details, message):
                held.set()
                await release.wait()
                return await continuation(for_a_moment(details), message)

        async with foreign(never) as address, client(address, interceptors=[Holds()]) as peer:
            asking = asyncio.create_task(answers(peer, request()))
            await held.wait()
            A2AInstrumentor().uninstrument()
            try:
                release.set()
                with pytest.raises(A2AClientTimeoutError):
                    await asking
            finally:
                A2AInstrumentor().instrument()
        hops = only_cascade()
        assert hop(hops, "send").peer == "unknown"
        assert verdict(hops).verdict == "unknown"

    run(story)


def test_a_message_for_which_no_call_was_made_is_owed_by_nobody(monkeypatch):
    from a2a.client.transports.grpc import GrpcTransport

    def broken(*_):
        raise ValueError("no metadata today")

    monkeypatch.setattr(GrpcTransport, "_get_grpc_metadata", broken)

    async def story():
        async with client(NOWHERE) as peer:
            with pytest.raises(ValueError, match="no metadata"):
                await answers(peer, request())
        hops = only_cascade()
        assert hop(hops, "send").peer == "refused"
        assert verdict(hops).verdict == "settled"

    run(story)


RETRIES = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 3,
                    "initialBackoff": "0.01s",
                    "maxBackoff": "0.02s",
                    "backoffMultiplier": 1,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)


def test_a_channel_that_tries_again_by_itself_reaches_two_and_both_have_to_be_known():
    async def story():
        calls = []

        class Busy(GrpcHandler):
            async def SendMessage(self, request, context):  # noqa: N802
                calls.append(request)
                if len(calls) == 1:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "busy")
                return await super().SendMessage(request, context)

        handlers = []
        async with (
            agent(handlers=handlers),
            listening(a2a_pb2_grpc.add_A2AServiceServicer_to_server, Busy(handlers[0])) as address,
            client(address, options=[("grpc.service_config", RETRIES)]) as peer,
        ):
            await answers(peer, request())
            await over()
        assert len(calls) == 2
        hops = only_cascade()
        # The first attempt ended in the application's own code: nobody knows what it did with the message.
        assert hop(hops, "send").attempts == 2
        assert verdict(hops).verdict == "unknown"

    run(story)


def test_a_channel_that_tries_again_by_itself_is_never_said_to_have_reached_nobody():
    async def story():
        async with client(NOWHERE, options=[("grpc.service_config", RETRIES)]) as peer:
            with pytest.raises(A2AClientError):
                await answers(peer, request())
        assert hop(only_cascade(), "send").peer == "unknown"

    run(story)


@pytest.mark.parametrize(
    ("count", "attempts"),
    [("2", 2), ("1", 0), ("0", 0), ("9" * 9, 1000), ("9" * 5000, 0), ("-2", 0), ("2.0", 0), ("", 0)],
)
def test_a_proxy_that_says_that_it_sent_the_message_before_has_reached_another_one(count, attempts):
    async def story():
        class Proxy(grpc.aio.UnaryUnaryClientInterceptor):
            async def intercept_unary_unary(self, continuation, details, message):
                details.metadata.add("x-envoy-attempt-count", count)
                return await continuation(details, message)

        async with agent() as address, client(address, interceptors=[Proxy()]) as peer:
            await answers(peer, request())
            await over()
        hops = only_cascade()
        assert tree(hops) == MESSAGE
        assert (hop(hops, "send").peer, hop(hops, "send").attempts) == ("instrumented", attempts)
        assert verdict(hops).verdict == ("unknown" if attempts else "settled")

    run(story)


def test_a_proxy_over_http_that_says_that_it_sent_the_message_before_has_reached_another_one():
    async def story():
        async with test_a2a.agent() as url, test_a2a.client(url) as peer:
            context = ClientCallContext(service_parameters={"x-envoy-attempt-count": "3"})
            async for _ in peer.send_message(request(), context=context):
                pass
            await over()
        hops = only_cascade()
        assert (hop(hops, "send").peer, hop(hops, "send").attempts) == ("instrumented", 3)
        assert verdict(hops).verdict == "unknown"

    run(story)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_peer_that_speaks_the_older_protocol_is_accounted_for_as_any_other(streaming):
    async def story():
        async with (
            agent(older=True) as address,
            client(address, version="0.3", streaming=streaming) as peer,
        ):
            await answers(peer, request())
            await over()
        hops = only_cascade()
        assert tree(hops) == MESSAGE
        assert len(ends()) == 3
        assert hop(hops, "send").peer_hop == hop(hops, "request").id
        assert verdict(hops).verdict == "settled"

    run(story)


def test_a_server_that_is_started_within_a_cascade_is_no_work_of_it():
    async def story():
        async with contextlib.AsyncExitStack() as stack:
            with hopwatch.cascade("starts a server"):
                address = await stack.enter_async_context(agent())
            peer = await stack.enter_async_context(client(address))
            assert not hopwatch.pending()
            await answers(peer, request())
            await over()
        found = {frozenset(each.kind for each in hops.values()): hops for hops in cascades().values()}
        assert set(found) == {frozenset({"task"}), frozenset({"send", "request", "execution"})}
        assert {verdict(hops).verdict for hops in found.values()} == {"settled"}

    run(story)


FIRST_OF_ALL = """
import asyncio, grpc
from concurrent.futures import ThreadPoolExecutor
import hopwatch
hopwatch.instrument()

async def main():
    with hopwatch.cascade("starts a server"):
        server = grpc.aio.server()
        server.add_insecure_port("127.0.0.1:0")
        await server.start()
        of_threads = grpc.server(ThreadPoolExecutor(1))
        of_threads.add_insecure_port("127.0.0.1:0")
        of_threads.start()
    print(hopwatch.pending())
    await server.stop(None)
    of_threads.stop(None).wait()

asyncio.run(main())
"""


def test_the_threads_by_which_grpc_polls_and_serves_are_no_work_of_the_cascade_that_uses_it_first():
    done = subprocess.run(
        [sys.executable, "-c", FIRST_OF_ALL], capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


def test_nothing_keeps_a_call_that_is_over(monkeypatch):
    async def story():
        made = []
        noted = a2a_grpc._over

        def over_(entry, reference):
            made.append(reference)
            noted(entry, reference)

        monkeypatch.setattr(a2a_grpc, "_over", over_)
        async with agent() as address:
            async with client(address) as peer:
                await answers(peer, request())
            async with client(address, streaming=True) as peer:
                await answers(peer, request())
            await over()
        assert len(made) == 2
        collect()
        assert await freed(made) == 2

    run(story)


class UnforeseenError(Exception):
    """An exception that can be referred to weakly, as the built-in ones cannot."""


@contextlib.contextmanager
def left_alive():
    """The exceptions that `raise_` made, and that only a collection of cycles would free."""
    made = []

    def noted(error):
        made.append(weakref.ref(error))
        return error

    def raise_(*_args, **_kwargs):
        raise noted(UnforeseenError())  # no name for it here: that would be a cycle of its own

    collect()
    gc.disable()
    try:
        yield made, raise_
    finally:
        gc.enable()


async def freed(made):
    """Wait until nothing holds any of them."""
    for _ in range(1000):
        if all(each() is None for each in made):
            return len(made)
        await asyncio.sleep(0.01)
    return 0


# The SDK's client has a cycle of its own where a message that is no stream fails.
@pytest.mark.parametrize(("side", "streaming"), [("client", True), ("server", False), ("server", True)])
def test_a_call_that_fails_leaves_no_cycle_behind(side, streaming, monkeypatch):
    from a2a.client.transports.grpc import GrpcTransport

    logging.disable()  # pytest keeps what is logged

    async def story():
        with left_alive() as (made, raise_):
            if side == "client":
                monkeypatch.setattr(GrpcTransport, "_get_grpc_metadata", raise_)
            builder = Builder(raise_) if side == "server" else None
            async with agent(builder=builder) as address, client(address, streaming=streaming) as peer:
                for _ in range(3):
                    with contextlib.suppress(UnforeseenError, A2AClientError):
                        await answers(peer, request())
                assert await freed(made) == 3

    try:
        run(story)
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("older", [False, True])
def test_grpc_takes_the_wrapped_methods_for_what_they_are(older):
    import inspect

    owner = CompatGrpcHandler if older else GrpcHandler
    handler = owner(object())
    assert inspect.iscoroutinefunction(handler.SendMessage)
    assert inspect.isasyncgenfunction(handler.SendStreamingMessage)
    assert handler.SendMessage.__qualname__ == f"{owner.__name__}.SendMessage"


async def told_of(task, until):
    """What is said of a task by a thread that looks, once that is what the story waits for."""
    for _ in range(3000):
        told = (await asyncio.to_thread(hop_waits.look_at, task)).as_dict()
        if until(told):
            return told
        await asyncio.sleep(0.01)
    raise AssertionError(told)


def open_hop(kind):
    (found,) = [each for each in process.here().ledger.open_hops() if each.kind == kind]
    return found


def without_deadline(story):
    """As `run`, but with no timer pending on the story, which would end what it waits for."""
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(story())
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


@pytest.mark.parametrize("streaming", [False, True])
def test_who_awaits_an_answer_is_known_to_ask_for_it_and_whom(streaming):
    async def story():
        begun, release = asyncio.Event(), asyncio.Event()

        async def work(updater):
            begun.set()
            await release.wait()
            await complete(updater)

        async with agent(work) as address, client(address, streaming=streaming) as peer:
            asking = asyncio.create_task(answers(peer, request()), name="asks")
            await begun.wait()
            send = open_hop("send")
            if streaming:  # its first event is the answer that it asked for
                told = await told_of(asking, lambda told: "send" in told and "asks" not in told)
            else:
                told = await told_of(asking, lambda told: told.get("asks"))
                assert told["asks"] == [send.id]
                assert open_hop("request").instance_of().status == 0
                waits = hop_waits.what_it_waits_on(open_hop("request"))[0]
                assert waits["owes"] is True
            assert (told["kind"], told["moves"], told["send"]["agent"]) == ("call", True, "agent")
            assert told["send"]["url"] == address
            release.set()
            await asking
            await over()

    without_deadline(story)


@pytest.mark.parametrize("why", ["deadline", "interceptor", "service config"])
def test_who_awaits_an_answer_that_something_else_may_end_does_not_rest_on_it_alone(why):
    context = ClientCallContext(timeout=300) if why == "deadline" else None
    options = {
        "interceptor": {"interceptors": [Passes()]},
        "service config": {"options": [("grpc.service_config", RETRIES)]},
    }.get(why, {})

    async def story():
        begun, release = asyncio.Event(), asyncio.Event()

        async def work(updater):
            begun.set()
            await release.wait()
            await complete(updater)

        async def ask(peer):
            async for _ in peer.send_message(request(), context=context):
                pass

        async with agent(work) as address, client(address, **options) as peer:
            asking = asyncio.create_task(ask(peer))
            await begun.wait()
            told = await told_of(asking, lambda told: told["kind"] == "call")
            assert told["moves"]
            assert "asks" not in told
            release.set()
            await asking
            await over()

    without_deadline(story)


@pytest.mark.parametrize("ours_", [False, True])
def test_what_a_marker_says_of_a_peer_is_never_taken_back(ours_):
    async def story():
        begun, release = asyncio.Event(), asyncio.Event()

        async def answer(_):
            begun.set()
            await release.wait()
            return a2a_pb2.SendMessageResponse(task=task(a2a_pb2.TASK_STATE_COMPLETED))

        async def work(updater):
            await answer(None)
            await updater.complete()

        class Own(GrpcHandler):
            async def SendStreamingMessage(self, request, context):  # noqa: N802
                await context.send_initial_metadata((("mine", "first"),))
                async for event in super().SendStreamingMessage(request, context):
                    yield event

        async with contextlib.AsyncExitStack() as stack:
            if ours_:  # it acknowledges at its end only
                handlers = []
                await stack.enter_async_context(agent(work, handlers=handlers))
                serving = listening(a2a_pb2_grpc.add_A2AServiceServicer_to_server, Own(handlers[0]))
            else:
                serving = foreign(answer)
            address = await stack.enter_async_context(serving)
            peer = await stack.enter_async_context(client(address, streaming=True))
            asking = asyncio.create_task(answers(peer, request()))
            await begun.wait()
            send = open_hop("send")
            here = process.here()
            for _ in range(3):
                here.telemetry._mark(send, send.span)
                await asyncio.sleep(0.02)
            release.set()
            await asking
            here.telemetry._mark(send, send.span)
            await over()
        hops = only_cascade()
        assert hop(hops, "send").peer == ("instrumented" if ours_ else "opaque")
        assert verdict(hops).verdict == "settled"

    run(story)


class Passes(grpc.aio.UnaryUnaryClientInterceptor):
    """Changes nothing."""

    async def intercept_unary_unary(self, continuation, details, message):
        return await continuation(details, message)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("interceptors", [None, [Passes()]])
def test_a_call_that_takes_long_has_no_span_beside_its_send(streaming, interceptors):
    async def story():
        begun, release = asyncio.Event(), asyncio.Event()

        async def work(updater):
            begun.set()
            await release.wait()
            await complete(updater)

        async with (
            agent(work) as address,
            client(address, streaming=streaming, interceptors=interceptors) as peer,
        ):
            asking = asyncio.create_task(answers(peer, request()))
            await begun.wait()
            here = process.here()
            here.telemetry._reveal(here, time.time_ns() + 4000 * 10**9)
            assert [each.kind for each in here.ledger.open_hops()] == ["send", "request", "execution"]
            release.set()
            await asking
            await over()
        assert tree(only_cascade()) == MESSAGE

    run(story)


@pytest.mark.parametrize("streaming", [False, True])
def test_with_every_detail_it_settles_too(streaming, monkeypatch):
    monkeypatch.setenv("HOPWATCH_DETAIL", "all")
    fresh()

    async def story():
        async with agent() as address, client(address, streaming=streaming, interceptors=[Passes()]) as peer:
            await answers(peer, request())
            await over()
        hops = only_cascade()
        assert {"send", "request", "execution", "task", "event"} <= {each.kind for each in hops.values()}
        assert verdict(hops).verdict == "settled"

    run(story)


def test_a_ledger_without_room_says_so_and_the_answer_comes_all_the_same(monkeypatch):
    monkeypatch.setenv("HOPWATCH_CAPACITY", "16")
    fresh()

    async def story():
        ledger = process.here().ledger
        async with agent() as address, client(address) as peer:
            with hopwatch.cascade("root") as root:
                while ledger.size < ledger.capacity - 1:
                    ledger.open("event", "full", process.current.get())
                (answer,) = await answers(peer, request())
            assert answer.task.artifacts
            for entry in ledger.invisible():
                entry.finish()
            await over()
        hops = cascades()[root.id]
        sent = hop(hops, "send")
        assert (sent.peer, sent.peer_hop) == ("instrumented", None)
        assert verdict(hops).verdict == "unknown"

    run(story)


def test_on_uvloop_it_is_the_same():
    uvloop = pytest.importorskip("uvloop")

    async def story():
        async with agent() as address:
            for streaming in (False, True):
                async with client(address, streaming=streaming) as peer:
                    await answers(peer, request())
            await over()
        assert [tree(hops) for hops in cascades().values()] == [MESSAGE, MESSAGE]
        assert {verdict(hops).verdict for hops in cascades().values()} == {"settled"}

    uvloop.run(asyncio.wait_for(story(), 100))


SERVER = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from hopwatch.instrumentation.a2a import A2AInstrumentor
from hopwatch.instrumentation.asyncio import AsyncioInstrumentor
AsyncioInstrumentor().instrument()
A2AInstrumentor().instrument()
from test_grpc import agent

async def work(updater):
    await updater.start_work()
    print("works", flush=True)
    await asyncio.Event().wait()

async def main():
    async with agent(work) as address:
        print(address, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.processes
@pytest.mark.parametrize("streaming", [False, True])
def test_a_server_that_is_killed_at_work_leaves_it_unknown_what_became_of_the_message(streaming):
    async def story(server):
        def line():
            return server.stdout.readline().strip()

        address = await asyncio.to_thread(line)
        async with client(address, streaming=streaming) as peer:
            asking = asyncio.create_task(answers(peer, request()))
            assert await asyncio.to_thread(line) == "works"
            if streaming:
                while not open_hop("send").instance_of.streams:
                    await asyncio.sleep(0.01)
            server.kill()
            with pytest.raises(A2AClientError):
                await asking
        send = hop(only_cascade(), "send")
        judged = verdict(only_cascade())
        assert (send.outcome, judged.verdict) == ("failed", "unknown")
        assert span_of("send").attributes["rpc.response.status_code"] == "UNAVAILABLE"
        assert (send.peer, judged.missing[0].what) == ("unknown", "delivery")

    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            asyncio.run(asyncio.wait_for(story(server), 100))
        finally:
            server.kill()


async def seen_by_a_user():
    """What an application sees of calls that go well, are refused, fail, are cut off or left, and of their metadata."""
    out, there = [], []

    def see(context):
        there.append([(key, value) for key, value in context.invocation_metadata() if key != "user-agent"])
        context.set_trailing_metadata((("mine", "too"),))

    class Sees(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, continuation, details, message):
            out.append(
                (type(details.metadata).__name__, details.timeout, [key for key, _ in details.metadata])
            )
            call = await continuation(details, message)
            out.append(
                (await call.code(), [*await call.initial_metadata()], [*await call.trailing_metadata()])
            )
            return call

    async def attempt(what):
        try:
            out.append(await what)
        except Exception as error:
            out.append((type(error), str(error), type(error.__cause__)))

    async def ask(peer, context=None):
        return [type(event).__name__ async for event in peer.send_message(request(), context=context)]

    async def refuse(updater):
        raise TaskNotFoundError("gone")

    async with agent(builder=Builder(see)) as address:
        for streaming in (False, True):
            async with client(address, streaming=streaming, interceptors=[Sees()]) as peer:
                await attempt(ask(peer, ClientCallContext(service_parameters={"X-Mine": "kept"})))
                await attempt(peer.cancel_task(CancelTaskRequest(id="nobody's")))
    async with agent(refuse) as address, client(address) as peer:
        await attempt(ask(peer))
    async with client(NOWHERE) as peer:
        await attempt(ask(peer))
        await attempt(ask(peer, ClientCallContext(timeout=-1)))
    async with client(address, streaming=True) as peer:
        sending = asyncio.create_task(ask(peer))
        await asyncio.sleep(0)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
    return out, there


OURS = {"traceparent", "tracestate", "hopwatch-hop", "traceresponse"}


def without_ours(value):
    """The same without our metadata, be it names or pairs."""
    if not isinstance(value, (list, tuple)):
        return value
    named = [each[0] if isinstance(each, tuple) and each else each for each in value]
    kept = [
        each for name, each in zip(named, value, strict=True) if not (isinstance(name, str) and name in OURS)
    ]
    return [without_ours(each) for each in kept]


def test_an_application_sees_the_same_with_hopwatch_as_without():
    A2AInstrumentor().uninstrument()
    try:
        bare = asyncio.run(asyncio.wait_for(seen_by_a_user(), 60))
    finally:
        A2AInstrumentor().instrument()
    watched = asyncio.run(asyncio.wait_for(seen_by_a_user(), 60))
    port = re.compile(r":\d{4,5}\b|[0-9a-f-]{36}")
    assert port.sub("", repr(without_ours(watched))) == port.sub("", repr(without_ours(bare)))
    assert OURS & {key for call in watched[1] for key, _ in call} == {"traceparent", "tracestate"}


# A request names the send that brought it, so who took the message is known without an acknowledgement too.
@pytest.mark.parametrize(
    ("owner", "name", "judged"),
    [(a2a_grpc, "_with_ours", "unknown"), (propagation, "acknowledged", "settled")],
)
def test_a_hook_that_fails_harms_nobody_and_what_it_did_not_see_is_not_taken_for_granted(
    owner, name, judged, monkeypatch
):
    def broken(*_args, **_kwargs):
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(owner, name, broken)

    async def story():
        async with agent() as address, client(address) as peer:
            with hopwatch.cascade("all"):
                (answer,) = await answers(peer, request())
            assert answer.task.artifacts
            await over()
        (hops,) = [each for each in cascades().values() if any(hop.name == "all" for hop in each.values())]
        assert hop(hops, "send").peer == "unknown"
        assert verdict(hops).verdict == judged
        assert len(process.failures) == 1
        process.failures.clear()

    run(story)


WITHOUT_GRPC = """
import sys
from hopwatch import process
from hopwatch.instrumentation.a2a import A2AInstrumentor, missing
from hopwatch.instrumentation.asyncio import AsyncioInstrumentor
AsyncioInstrumentor().instrument()
A2AInstrumentor().instrument()
assert not [name for name in sys.modules if name.partition(".")[0] == "grpc"], "hopwatch imported grpc"
sys.modules["grpc"] = None
import a2a.client, a2a.server.request_handlers
assert (missing, process.failures) == ([], {}), (missing, process.failures)
try:
    import a2a.client.transports.grpc
except ImportError:
    print("as it was")
"""


@pytest.mark.processes
def test_where_grpc_is_not_installed_nothing_of_it_is_imported_and_nothing_raised():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_GRPC], capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.stdout, done.returncode) == ("as it was\n", 0), done.stderr


def test_a_release_without_a_seam_is_instrumented_as_far_as_it_goes_and_says_what_is_missing():
    patches = Patches()
    handler = type("Handler", (a2a_pb2_grpc.A2AServiceServicer,), {"SendMessage": GrpcHandler.SendMessage})
    served_by = {
        seam.name: a2a_grpc_server.serve(patches, handler, seam.name)
        for seam in a2a_seams.SEAMS
        if seam.owner == "GrpcHandler" and seam.is_due(a2a_seams.installed())
    }
    assert [name for name, served in served_by.items() if served] == ["SendMessage"]
    assert len(served_by) == 5
    assert handler.CancelTask is a2a_pb2_grpc.A2AServiceServicer.CancelTask
    patches.undo()


def test_this_release_has_every_seam():
    assert missing == []


def test_everything_that_was_replaced_is_put_back():
    from a2a.client.transports.grpc import GrpcTransport
    from a2a.compat.v0_3.grpc_transport import CompatGrpcTransport
    from grpc.aio import _call, _channel

    owners = [
        GrpcTransport, CompatGrpcTransport, GrpcHandler, CompatGrpcHandler, _channel.Channel, _channel.UnaryUnaryMultiCallable,
        _channel.UnaryStreamMultiCallable, _call.UnaryUnaryCall, _call.UnaryStreamCall,
    ]  # fmt: skip
    A2AInstrumentor().uninstrument()
    before = [dict(vars(owner)) for owner in owners]
    A2AInstrumentor().instrument()
    try:
        changed = [
            [key for key in then if vars(owner)[key] is not then[key]]
            for owner, then in zip(owners, before, strict=True)
        ]
        assert all(changed)
    finally:
        A2AInstrumentor().uninstrument()
    for owner, then in zip(owners, before, strict=True):
        now = dict(vars(owner))
        assert now.keys() == then.keys()
        assert all(now[key] is then[key] for key in then), owner
    A2AInstrumentor().instrument()


@pytest.mark.parametrize(
    ("target", "address"),
    [
        ("localhost:50051", ("localhost", 50051)),
        ("127.0.0.1:1", ("127.0.0.1", 1)),
        ("dns:///agents.example:443", ("agents.example", 443)),
        ("dns://8.8.8.8/agents.example:443", ("agents.example", 443)),
        ("ipv4:10.0.0.1:5,10.0.0.2:6", ("10.0.0.1", 5)),
        ("ipv6:[::1]:7", ("::1", 7)),
        ("[::1]:7", ("::1", 7)),
        ("::1", ("::1", 0)),
        ("agents.example", ("agents.example", 0)),
        ("unix:/run/agent.sock", ("/run/agent.sock", 0)),
        ("unix:///run/agent.sock", ("///run/agent.sock", 0)),
    ],
)
def test_whom_a_channel_names(target, address):
    assert a2a_grpc.address_of(target) == address
