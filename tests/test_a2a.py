"""Does a message become three hops, and a push two? The real SDK over real HTTP, in one process."""

import asyncio
import contextlib
import contextvars
import json
import socket
import time

import httpx
import pytest
import starlette.applications
import uvicorn
from a2a.client import ClientConfig, ClientFactory
from a2a.client.errors import A2AClientError
from a2a.helpers import new_task_from_user_message, new_text_message, new_text_part
from a2a.server.agent_execution import AgentExecutor
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_jsonrpc_routes, create_rest_routes
from a2a.server.tasks import (
    BasePushNotificationSender,
    InMemoryPushNotificationConfigStore,
    InMemoryTaskStore,
    TaskUpdater,
)
from a2a.types.a2a_pb2 import (
    AgentCapabilities,
    AgentCard,
    AgentInterface,
    AgentSkill,
    GetTaskRequest,
    Role,
    SendMessageConfiguration,
    SendMessageRequest,
    TaskPushNotificationConfig,
)
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import hopwatch
from exported import cascades, ends, exporter, only_cascade, others, ours, tree, verdict
from hopwatch import attributes as names
from hopwatch import process
from hopwatch.instrumentation.a2a import A2AInstrumentor, missing

MESSAGE = [("send", [("request", [("execution", [])])])]


pytestmark = pytest.mark.usefixtures("a2a_instrumented", "empty")


class Executor(AgentExecutor):
    """Does what the test wants."""

    def __init__(self, work):
        self.work = work

    async def execute(self, context, event_queue):
        task = context.current_task or new_task_from_user_message(context.message)
        if context.current_task is None:
            await event_queue.enqueue_event(task)
        await self.work(TaskUpdater(event_queue, task.id, task.context_id))

    async def cancel(self, context, event_queue):
        await TaskUpdater(event_queue, context.task_id, context.context_id).cancel()


async def complete(updater):
    await updater.start_work()
    await updater.add_artifact([new_text_part("done")])
    await updater.complete()


def card_of(url, binding, version="1.0"):
    where = f"{url}/" if binding == "JSONRPC" else f"{url}/rest"
    return AgentCard(
        name="agent",
        version="1",
        description="an agent",
        supported_interfaces=[AgentInterface(url=where, protocol_binding=binding, protocol_version=version)],
        capabilities=AgentCapabilities(streaming=True, push_notifications=True),
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        skills=[AgentSkill(id="work", name="work", description="works", tags=["test"])],
    )


@contextlib.asynccontextmanager
async def served(app, parser="auto"):
    """Serve an application by uvicorn, with one of its parsers of HTTP; gives its URL."""
    # By default it closes a connection after 5 s at rest, which a client may be about to use just then.
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_level="error", lifespan="off", timeout_keep_alive=120, http=parser
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving


@contextlib.asynccontextmanager
async def agent(work=complete, *routes, binding="JSONRPC", validator=None, compat=False):
    async with httpx.AsyncClient(timeout=60) as http:
        configs = InMemoryPushNotificationConfigStore()
        handler = DefaultRequestHandler(
            agent_executor=Executor(work),
            task_store=InMemoryTaskStore(),
            agent_card=card_of("http://127.0.0.1:1", binding),
            push_config_store=configs,
            push_sender=BasePushNotificationSender(http, configs, push_url_validator=validator),
        )
        app = starlette.applications.Starlette(  # looked up now: contrib puts another class in its place
            routes=[
                *routes,
                *create_jsonrpc_routes(handler, "/", enable_v0_3_compat=compat),
                *create_rest_routes(handler, path_prefix="/rest"),
            ]
        )
        async with served(app) as url:
            yield url
        await handler.aclose()


@contextlib.asynccontextmanager
async def client(
    url, *, binding="JSONRPC", streaming=False, polling=False, timeout=60, version="1.0", **options
):
    async with httpx.AsyncClient(timeout=timeout, **options) as http:
        config = ClientConfig(
            httpx_client=http, streaming=streaming, polling=polling, supported_protocol_bindings=[binding]
        )
        yield ClientFactory(config).create(card_of(url, binding, version))


def request(text="do it", *, task="", context="", webhook=None, now=False):
    configuration = SendMessageConfiguration(return_immediately=now)
    if webhook:
        configuration.task_push_notification_config.CopyFrom(TaskPushNotificationConfig(id="me", url=webhook))
    message = new_text_message(text, role=Role.ROLE_USER)
    message.task_id, message.context_id = task, context
    return SendMessageRequest(message=message, configuration=configuration)


async def answers(client, message):
    return [event async for event in client.send_message(message)]


async def over():
    """Wait until this process has nothing open any more."""
    await until(lambda: not hopwatch.pending())


async def until(holds):
    """Wait until something holds."""
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, hopwatch.pending()
        await asyncio.sleep(0.01)


def run(story):
    asyncio.run(asyncio.wait_for(story(), 100))


def hop(hops, kind):
    found = [each for each in hops.values() if each.kind == kind]
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize("binding", ["JSONRPC", "HTTP+JSON"])
def test_a_blocking_message_is_a_send_a_request_and_an_execution(binding):
    async def story():
        async with agent(binding=binding) as url, client(url, binding=binding) as peer:
            (answer,) = await answers(peer, request())
            await over()
        hops = only_cascade()
        assert tree(hops) == MESSAGE
        assert len(ends()) == 3
        send, served_, ran = hop(hops, "send"), hop(hops, "request"), hop(hops, "execution")
        assert (send.name, served_.name, ran.name) == ("SendMessage", "SendMessage", "Executor.execute")
        assert send.peer == "instrumented"
        assert send.peer_hop == served_.id
        assert send.peer_name == url.removeprefix("http://")
        assert (served_.remote, ran.remote) == (True, False)
        assert send.task_id == ran.task_id == answer.task.id
        assert ran.task_state == send.task_state == "TASK_STATE_COMPLETED"
        assert ran.attributes["gen_ai.conversation.id"] == answer.task.context_id
        assert ran.location.split()[0].rpartition("/")[2].startswith("test_a2a.py:")
        kinds = {span.attributes[names.HOP_KIND]: span.kind.name for span in ends()}
        assert kinds == {"send": "CLIENT", "request": "SERVER", "execution": "INTERNAL"}
        assert verdict(hops).verdict == "settled"

    run(story)


@pytest.mark.parametrize("binding", ["JSONRPC", "HTTP+JSON"])
def test_a_streamed_message_is_the_same_three_hops(binding):
    async def story():
        async with agent(binding=binding) as url, client(url, binding=binding, streaming=True) as peer:
            events = await answers(peer, request())
            assert len(events) == 4
            await over()
        hops = only_cascade()
        assert tree(hops) == MESSAGE
        assert hop(hops, "send").name == "SendStreamingMessage"
        assert hop(hops, "send").outcome == "finished"
        assert hop(hops, "send").task_state == "TASK_STATE_COMPLETED"
        assert verdict(hops).verdict == "settled"

    run(story)


def test_who_takes_the_first_event_of_a_stream_and_leaves_is_no_failure():
    async def story():
        async with agent() as url, client(url, streaming=True) as peer:
            async for _ in peer.send_message(request()):
                break
            await over()
        hops = only_cascade()
        assert hop(hops, "send").outcome == "finished"
        assert hop(hops, "execution").outcome == "finished"

    run(story)


@pytest.mark.parametrize("binding", ["JSONRPC", "HTTP+JSON"])
def test_each_push_is_two_hops_below_the_execution_and_acknowledged_by_its_webhook(binding):
    async def story():
        pushed = asyncio.Queue()

        async def webhook(req):
            pushed.put_nowait(await req.json())
            return JSONResponse({})

        route = Route("/hook", webhook, methods=["POST"])
        async with (
            agent(complete, route, binding=binding) as url,
            client(url, binding=binding, polling=True) as peer,
        ):
            await answers(peer, request(webhook=f"{url}/hook", now=True))
            for _ in range(4):
                await pushed.get()
                pushed.task_done()
            await over()
        hops = only_cascade()
        push = ("push", [("webhook", [])])
        assert tree(hops) == [("send", [("request", [("execution", [push, push, push, push])])])]
        assert len(ends()) == 3 + 2 * 4
        states = [
            each.task_state
            for each in sorted(hops.values(), key=lambda each: each.started)
            if each.kind == "push"
        ]
        assert states == ["TASK_STATE_SUBMITTED", "TASK_STATE_WORKING", None, "TASK_STATE_COMPLETED"]
        assert not any(each.late for each in hops.values())
        for span in ends():
            if span.attributes[names.HOP_KIND] == "webhook":
                assert span.kind.name == "CONSUMER"
                assert [f"{link.context.span_id:016x}" for link in span.links] == [
                    span.attributes[names.HOP_PARENT]
                ]
        assert verdict(hops).verdict == "settled"

    run(story)


def test_a_push_that_is_refused_has_failed_and_says_with_what():
    async def story():
        async def webhook(_):
            return JSONResponse({}, status_code=503)

        async with (
            agent(complete, Route("/hook", webhook, methods=["POST"])) as url,
            client(url, polling=True) as peer,
        ):
            await answers(peer, request(webhook=f"{url}/hook", now=True))
            await over()
        hops = only_cascade()
        pushes = [each for each in hops.values() if each.kind == "push"]
        assert {each.outcome for each in pushes} == {"failed"}
        assert all("answered 503" in each.reason for each in pushes)
        assert all(each.peer == "instrumented" for each in pushes)

    run(story)


def test_a_webhook_where_nothing_listens_is_refused_and_nothing_is_missing():
    async def story():
        async with agent() as url, client(url, polling=True) as peer:
            await answers(peer, request(webhook="http://127.0.0.1:9/hook", now=True))
            await over()
        hops = only_cascade()
        pushes = [each for each in hops.values() if each.kind == "push"]
        assert {each.peer for each in pushes} == {"refused"}
        assert verdict(hops).verdict == "settled"

    run(story)


def test_an_execution_that_raises_has_failed_and_its_task_too():
    async def work(updater):
        await updater.start_work()
        raise ValueError("no")

    async def story():
        async with agent(work) as url, client(url) as peer:
            with contextlib.suppress(A2AClientError, Exception):
                await answers(peer, request())
            await over()
        hops = only_cascade()
        ran = hop(hops, "execution")
        assert (ran.outcome, ran.reason) == ("failed", "ValueError: no")
        assert ran.task_state == "TASK_STATE_FAILED"
        assert verdict(hops).verdict == "settled"

    run(story)


def test_an_agent_that_cannot_be_reached_is_refused():
    async def story():
        async with client("http://127.0.0.1:9") as peer:
            with pytest.raises(A2AClientError):
                await answers(peer, request())
        hops = only_cascade()
        assert hop(hops, "send").peer == "refused"
        assert hop(hops, "send").outcome == "failed"
        assert verdict(hops).verdict == "settled"

    run(story)


@contextlib.asynccontextmanager
async def foreign(answer):
    """An agent without hopwatch: a bare HTTP server. `answer(body)` gives the JSON of the reply, or None to say nothing."""

    served_ = {}

    async def handle(reader, writer):
        served_[asyncio.current_task()] = writer
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line.split(b":")[1])
                    for line in head.lower().split(b"\r\n")
                    if line.startswith(b"content-length")
                )
                reply = answer(json.loads(await reader.readexactly(length)))
                if reply is None:
                    await reader.read()
                    break
                body = json.dumps(reply).encode()
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
                    % len(body)
                    + body
                )
                await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in served_.values():
            writer.close()
        await asyncio.gather(*served_)


def task_reply(state):
    return lambda body: {
        "jsonrpc": "2.0",
        "id": body["id"],
        "result": {"task": {"id": "t1", "contextId": "c1", "status": {"state": state}}} if body["method"] == "SendMessage"
        else {"id": "t1", "contextId": "c1", "status": {"state": "TASK_STATE_COMPLETED"}},
    }  # fmt: skip


def test_a_peer_without_hopwatch_that_completed_its_task_is_settled_up_to_it():
    async def story():
        async with foreign(task_reply("TASK_STATE_COMPLETED")) as url, client(url) as peer:
            await answers(peer, request())
        hops = only_cascade()
        assert hop(hops, "send").peer == "opaque"
        judged = verdict(hops)
        assert judged.verdict == "settled"
        assert judged.opaque == [url.removeprefix("http://")]
        assert "up to" in judged.reason

    run(story)


def test_a_peer_without_hopwatch_whose_task_still_works_is_unknown_until_it_is_asked_again():
    async def story():
        async with (
            foreign(task_reply("TASK_STATE_WORKING")) as url,
            client(url) as peer,
            hopwatch.cascade("ask twice"),
        ):
            await answers(peer, request())
            # On a slow machine the root is known to be open meanwhile, and has no heartbeat yet.
            told = {key: each for key, each in only_cascade().items() if each.ended is not None}
            assert verdict(told).verdict == "unknown"
            await peer.get_task(GetTaskRequest(id="t1"))
        judged = verdict(only_cascade())
        assert judged.verdict == "settled"
        assert judged.opaque

    run(story)


class Failover(httpx.AsyncBaseTransport):
    """A transport of an application's own, which asks the next one with a request of its own making."""

    def __init__(self, *ports):
        self.ports, self.inner = ports, httpx.AsyncHTTPTransport()

    async def handle_async_request(self, wanted):
        for port in self.ports:
            try:
                return await self.inner.handle_async_request(
                    httpx.Request(
                        wanted.method,
                        wanted.url.copy_with(port=port),
                        headers=wanted.headers,
                        content=await wanted.aread(),
                        extensions={"timeout": {"read": 0.3}},
                    )
                )
            except httpx.TransportError as error:
                last = error
        raise last

    async def aclose(self):
        await self.inner.aclose()


def test_a_message_that_a_transport_took_to_several_is_not_refused_because_the_last_one_was_not_there():
    async def story():
        async with foreign(lambda _: None) as url:
            with socket.socket() as nobody:
                nobody.bind(("127.0.0.1", 0))  # and listens to nobody
                ports = int(url.rpartition(":")[2]), nobody.getsockname()[1]
                async with client(url, transport=Failover(*ports)) as peer:
                    with pytest.raises(A2AClientError):
                        await answers(peer, request())
        hops = only_cascade()
        assert hop(hops, "send").peer == "unknown"
        assert verdict(hops).verdict == "unknown"

    run(story)


def test_a_peer_that_took_the_message_and_never_answered_stays_unknown():
    async def story():
        async with foreign(lambda _: None) as url, client(url, timeout=httpx.Timeout(60, read=0.3)) as peer:
            with pytest.raises(A2AClientError):
                await answers(peer, request())
        hops = only_cascade()
        assert hop(hops, "send").peer == "unknown"
        judged = verdict(hops)
        assert judged.verdict == "unknown"
        assert "nobody knows whether" in judged.reason

    run(story)


def test_a_client_without_hopwatch_makes_the_request_a_root_in_its_own_trace():
    async def story():
        async with agent() as url:
            reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
            body = json.dumps(
                {
                    "jsonrpc": "2.0", "id": "1", "method": "SendMessage",
                    "params": {"message": {"messageId": "m1", "role": "ROLE_USER", "parts": [{"text": "hi"}]}},
                }
            ).encode()  # fmt: skip
            trace = "ab" * 16
            writer.write(
                b"POST / HTTP/1.1\r\nhost: x\r\na2a-version: 1.0\r\ncontent-type: application/json\r\nconnection: close\r\n"
                + f"traceparent: 00-{trace}-{'cd' * 8}-01\r\n".encode()
                + b"content-length: %d\r\n\r\n" % len(body)
                + body
            )
            answer = (await reader.read()).decode().lower()
            writer.close()
            await over()
        ((identifier, hops),) = cascades().items()
        assert identifier == trace
        assert tree(hops) == [("request", [("execution", [])])]
        served_ = hop(hops, "request")
        assert f"traceresponse: 00-{trace}-{served_.id}-01" in answer
        assert f"hopwatch-hop: 00-{trace}-{served_.id}-01" in answer
        assert verdict(hops).verdict == "settled"

    run(story)


def test_a_task_that_asks_for_input_waits_and_the_next_message_finishes_it_with_a_link():
    async def story():
        rounds = []

        async def work(updater):
            rounds.append(updater.task_id)
            if len(rounds) == 1:
                await updater.requires_input()
            else:
                await updater.complete()

        async with agent(work) as url, client(url) as peer:
            (answer,) = await answers(peer, request())
            await over()
            (first,) = cascades().values()
            judged = verdict(first)
            assert judged.verdict == "waiting"
            assert "input required" in judged.reason
            await answers(peer, request("more", task=answer.task.id, context=answer.task.context_id))
            await over()
        both = cascades()
        assert len(both) == 2
        earlier = hop(first, "execution").id
        (second,) = [hops for hops in both.values() if earlier not in hops]
        (span,) = [each for each in ends() if f"{each.context.span_id:016x}" == hop(second, "execution").id]
        assert [f"{link.context.span_id:016x}" for link in span.links] == [earlier]
        assert verdict(second).verdict == "settled"

    run(story)


def test_what_an_execution_hands_on_belongs_to_its_cascade():
    async def story():
        async with agent() as below:

            async def delegate(updater):
                async with client(below) as peer:
                    await answers(peer, request())
                await updater.complete()

            async with agent(delegate) as url, client(url) as peer:
                await answers(peer, request())
                await over()
        hops = only_cascade()
        assert tree(hops) == [("send", [("request", [("execution", MESSAGE)])])]
        assert verdict(hops).verdict == "settled"

    run(story)


def test_two_messages_at_once_are_two_cascades():
    async def story():
        async with agent() as url, client(url) as peer:
            await asyncio.gather(answers(peer, request()), answers(peer, request()))
            await over()
        found = cascades()
        assert [tree(hops) for hops in found.values()] == [MESSAGE, MESSAGE]

    run(story)


def test_a_declared_root_holds_all_that_is_done_inside():
    async def story():
        async with agent() as url, client(url) as peer:
            with hopwatch.cascade("nightly") as root:
                assert hopwatch.current().cascade == root.id
                await answers(peer, request())
            assert hopwatch.current() is None
            await over()
        hops = only_cascade()
        assert tree(hops) == [("task", MESSAGE)]
        assert next(iter(hops.values())).cascade == root.id
        assert verdict(hops).verdict == "settled"

    run(story)


def test_a_message_that_is_cancelled_by_its_caller_says_so():
    async def story():
        reached = asyncio.Event()
        release = asyncio.Event()

        async def work(updater):
            reached.set()
            await release.wait()
            await updater.complete()

        async with agent(work) as url, client(url) as peer:
            sending = asyncio.create_task(answers(peer, request()))
            await reached.wait()
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sending
            release.set()
            await over()
        hops = only_cascade()
        assert hop(hops, "send").outcome == "cancelled"
        assert hop(hops, "execution").outcome == "finished"

    run(story)


@pytest.mark.row(
    "neighbours",
    "OpenTelemetry's instrumentations of httpx and starlette, in one process",
    "opentelemetry-instrumentation-httpx",
    "opentelemetry-instrumentation-starlette",
)
def test_beside_other_instrumentations_every_hop_keeps_its_place():
    from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
    from opentelemetry.instrumentation.starlette import StarletteInstrumentor

    HTTPXClientInstrumentor().instrument()
    StarletteInstrumentor().instrument()
    try:

        async def story():
            async with agent() as url, client(url) as peer:
                await answers(peer, request())
                await over()
            hops = only_cascade()
            assert tree(hops) == MESSAGE
            (identifier,) = cascades()
            contrib = [
                span
                for span in others()
                if span.instrumentation_scope.name.startswith("opentelemetry.instrumentation.")
            ]
            assert {span.instrumentation_scope.name.rpartition(".")[2] for span in contrib} >= {
                "httpx",
                "starlette",
            }
            assert {f"{span.context.trace_id:032x}" for span in contrib} == {identifier}
            # It makes an INTERNAL one where it finds a span that is current.
            assert [span.name for span in contrib if span.kind.name == "SERVER"] == ["POST /"]
            # The HTTP spans stand between ours: the request's span has contrib's client span as its parent.
            by_id = {span.context.span_id: span for span in exporter.get_finished_spans()}
            (served_,) = [span for span in ends() if span.attributes[names.HOP_KIND] == "request"]
            assert (
                by_id[served_.parent.span_id].instrumentation_scope.name
                == "opentelemetry.instrumentation.httpx"
            )

        run(story)
    finally:
        StarletteInstrumentor().uninstrument()
        HTTPXClientInstrumentor().uninstrument()


def test_this_release_has_every_seam():
    assert missing == []


def test_everything_that_was_replaced_is_put_back():
    from a2a.client.transports.jsonrpc import JsonRpcTransport
    from a2a.client.transports.rest import RestTransport
    from a2a.server.agent_execution.active_task import ActiveTask, EventConsumer
    from a2a.server.events.event_queue_v2 import EventQueueSource
    from a2a.server.request_handlers import DefaultRequestHandlerV2, LegacyRequestHandler
    from a2a.server.tasks.task_manager import TaskManager

    owners = [
        JsonRpcTransport, RestTransport, ActiveTask, EventConsumer, EventQueueSource, DefaultRequestHandlerV2,
        LegacyRequestHandler, TaskManager, BasePushNotificationSender, httpx.AsyncClient, Starlette, Executor,
    ]  # fmt: skip
    A2AInstrumentor().uninstrument()
    before = [dict(vars(owner)) for owner in owners]
    A2AInstrumentor().instrument()
    try:
        # A wrapper equals what it wraps: only identity tells.
        same = [
            all(vars(owner)[key] is then[key] for key in then)
            for owner, then in zip(owners, before, strict=True)
        ]
        # The executor's class is wrapped with the first handler; one of an earlier test may be there still.
        assert same[:11] == [False] * 11

        async def story():
            async with agent() as url, client(url) as peer:
                await answers(peer, request())
                await over()

        run(story)
        assert vars(Executor)["execute"] is not before[-1]["execute"]
    finally:
        A2AInstrumentor().uninstrument()
    for owner, then in zip(owners, before, strict=True):
        now = dict(vars(owner))
        assert now.keys() == then.keys()
        assert all(now[key] is then[key] for key in then), owner
    A2AInstrumentor().instrument()


@pytest.mark.parametrize("hook", ["_open_send", "_open_execution", "_open_push"])
def test_a_hook_that_fails_harms_nobody_and_its_cascade_is_never_settled(hook, monkeypatch):
    async def story():
        from hopwatch.instrumentation import a2a

        def broken(*_args, **_kwargs):
            raise RuntimeError("a bug of ours")

        # Each of them opens its hop by `begin`.
        began = a2a.begin
        kind = hook.removeprefix("_open_")
        monkeypatch.setattr(
            a2a,
            "begin",
            lambda process, what, *args, **kwargs: (broken if what == kind else began)(
                process, what, *args, **kwargs
            ),
        )
        pushed = []

        async def webhook(req):
            pushed.append(await req.json())
            return JSONResponse({})

        async with agent(complete, Route("/hook", webhook, methods=["POST"])) as url, client(url) as peer:
            async with hopwatch.cascade("all"):
                (answer,) = await answers(peer, request(webhook=f"{url}/hook"))
            assert answer.task.artifacts
            await until(
                lambda: len(pushed) == 4
            )  # where a push is no hop, nothing is pending while it is sent
            await over()
        found = cascades()
        judged = [
            verdict(hops).verdict
            for hops in found.values()
            if any(each.name == "all" for each in hops.values())
        ]
        assert judged == ["unknown"]
        assert list(process.failures) == [f"a2a.{kind}"]
        process.failures.clear()

    run(story)


def test_a_peer_that_speaks_the_older_protocol_is_accounted_for_as_any_other():
    async def story():
        async with agent(compat=True) as url, client(url, version="0.3") as peer:
            await answers(peer, request())
            await over()
        hops = only_cascade()
        assert tree(hops) == MESSAGE
        assert verdict(hops).verdict == "settled"

    run(story)


def test_a_probe_of_the_pushs_url_is_not_taken_for_the_push():
    async def story():
        seen = []

        async def validator(url):
            async with httpx.AsyncClient(timeout=60) as http:
                seen.append((await http.head(url)).headers.get(names.ACKNOWLEDGEMENT_HEADER))
            return True

        async def webhook(_):
            return JSONResponse({})

        route = Route("/hook", webhook, methods=["POST", "HEAD"])
        async with agent(complete, route, validator=validator) as url, client(url, polling=True) as peer:
            await answers(peer, request(webhook=f"{url}/hook", now=True))
            await over()
        hops = only_cascade()
        assert seen == [None] * 4
        assert sum(each.kind == "webhook" for each in hops.values()) == 4
        assert verdict(hops).verdict == "settled"

    run(story)


def test_a_redirect_reaches_two_and_both_have_to_be_known():
    async def story():
        async with agent() as url:

            async def away(_):
                return JSONResponse({}, status_code=307, headers={"location": f"{url}/"})

            async with (
                served(Starlette(routes=[Route("/", away, methods=["POST"])])) as gate,
                client(gate, follow_redirects=True) as peer,
            ):
                await answers(peer, request())
                await over()
        hops = only_cascade()
        sent = next(each for each in hops.values() if each.kind == "send")
        assert sent.attempts == 2
        below = [each for each in hops.values() if each.parent == sent.id]
        assert {each.kind for each in below} == {"webhook", "request"}
        assert verdict(hops).verdict == "settled"
        first = next(each for each in below if each.kind == "webhook")
        assert verdict({key: each for key, each in hops.items() if key != first.id}).verdict == "unknown"

    run(story)


def test_a_gateway_that_hands_on_both_ways_acknowledges_for_two_and_both_have_to_be_known():
    async def story():
        async with agent() as url, httpx.AsyncClient(timeout=60) as http:
            ends_here = ("host", "content-length", "transfer-encoding", "date", "server")

            def passed_on(headers):
                return {key: value for key, value in headers.items() if key not in ends_here}

            async def relay(asked):
                said = await http.post(url, content=await asked.body(), headers=passed_on(asked.headers))
                return Response(said.content, said.status_code, headers=passed_on(said.headers))

            gate = Starlette(routes=[Route("/", relay, methods=["POST"])])
            async with served(gate) as way, client(way) as peer:
                await answers(peer, request())
                await over()
        hops = only_cascade()
        sent = hop(hops, "send")
        assert sent.peer == "instrumented"
        below = {each.kind: each for each in hops.values() if each.parent == sent.id}
        assert set(below) == {"webhook", "request"}
        assert verdict(hops).verdict == "settled"
        for lost in below.values():
            came = {key: each for key, each in hops.items() if lost.id not in (each.id, each.parent)}
            assert verdict(came).verdict == "unknown"

    run(story)


@contextlib.asynccontextmanager
async def nobody_there():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


def busy():
    async def refuse(_):
        return Response(status_code=503)

    return served(Starlette(routes=[Route("/", refuse, methods=["POST"])]))


@pytest.mark.parametrize("first", ["nobody there", 503])
@pytest.mark.parametrize("anew", [False, True], ids=["the same request", "another request"])
def test_a_client_of_the_applications_own_that_tries_again_reaches_whoever_takes_the_last_try(anew, first):
    async def story():
        tries = []

        async with agent() as url, nobody_there() if first == "nobody there" else busy() as bad:

            class Patient(httpx.AsyncClient):
                async def send(self, message, **options):
                    for base in (bad, url):
                        tries.append(base)
                        if anew:
                            message = self.build_request("POST", f"{base}/", json=json.loads(message.content))
                        message.url = httpx.URL(f"{base}/")
                        with contextlib.suppress(httpx.ConnectError):
                            response = await super().send(message, **options)
                            if response.status_code != 503:
                                return response
                    raise AssertionError("nobody took it")

            async with Patient(timeout=60) as http:
                config = ClientConfig(
                    httpx_client=http, streaming=False, supported_protocol_bindings=["JSONRPC"]
                )
                await answers(ClientFactory(config).create(card_of(url, "JSONRPC")), request())
                await over()
        assert len(tries) == 2
        hops = only_cascade()
        sent, taken = hop(hops, "send"), hop(hops, "request")
        assert taken.parent == sent.id
        assert (sent.peer, sent.peer_hop, sent.reason) == ("instrumented", taken.id, None)
        assert names.ERROR_TYPE not in sent.attributes
        assert names.HTTP_STATUS_CODE not in sent.attributes
        assert sent.attempts == (2 if first == 503 else 0)
        # Whoever answered 503 has hopwatch, too, so it is known that nothing came of that.
        assert verdict(hops).verdict == "settled"
        assert verdict({sent.id: sent}).verdict == "unknown"

    run(story)


def test_a_token_that_is_fetched_by_the_same_client_first_is_not_taken_for_the_message():
    async def story():
        carried = []

        async def token(asked):
            carried.append(asked.headers.get("tracestate"))
            return JSONResponse({"token": "open"})

        async with (
            agent() as url,
            served(Starlette(routes=[Route("/token", token, methods=["POST"])])) as gate,
        ):

            class Careful(httpx.AsyncClient):
                async def send(self, message, **options):
                    got = await super().send(self.build_request("POST", f"{gate}/token"))
                    message.headers["authorization"] = got.json()["token"]
                    return await super().send(message, **options)

            async with Careful(timeout=60) as http:
                config = ClientConfig(
                    httpx_client=http, streaming=False, supported_protocol_bindings=["JSONRPC"]
                )
                await answers(ClientFactory(config).create(card_of(url, "JSONRPC")), request())
                await over()
        assert carried == [None]
        hops = only_cascade()
        assert tree(hops) == MESSAGE
        assert hop(hops, "send").peer == "instrumented"
        assert verdict(hops).verdict == "settled"

    run(story)


@pytest.mark.parametrize("said", [b"", b": ping\r\n\r\n"], ids=["nothing", "a ping"])
def test_a_peer_without_hopwatch_whose_stream_ends_before_its_first_event_may_be_at_work(said):
    async def story():
        async def answer(reader, writer):
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.partition(b"content-length:")[2].split()[0]))
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n" + said
            )
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        try:
            async with client(
                f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", streaming=True
            ) as peer:
                with contextlib.suppress(A2AClientError):
                    assert await answers(peer, request()) == []
                await over()
        finally:
            server.close()
        hops = only_cascade()
        assert verdict(hops).verdict == "unknown"
        assert hop(hops, "send").peer == "unknown"

    run(story)


class OddError(Exception):
    def __str__(self):
        raise RuntimeError("not printable")


@pytest.mark.parametrize(
    "error", [OddError(), OSError("no such file: b\udcff.pem")], ids=["unprintable", "unencodable"]
)
def test_an_error_that_cannot_be_printed_or_encoded_reaches_the_sdk_as_it_is(error, caplog):
    caplog.set_level(100)  # pytest-xdist cannot hand on a log with half a character in it
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    async def story():
        async def work(_):
            raise error

        async with agent(work) as url, client(url) as peer:
            with contextlib.suppress(Exception):
                await answers(peer, request())
            await over()
        ran = hop(only_cascade(), "execution")
        assert ran.outcome == "failed"
        assert ran.reason.startswith(type(error).__name__)
        assert encode_spans(ours()).resource_spans

    run(story)


def test_a_gateway_that_gave_up_leaves_it_unknown_who_took_the_message():
    async def story():
        async def gave_up(reader, writer):
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1])
                for line in head.lower().split(b"\r\n")
                if line.startswith(b"content-length")
            )
            await reader.readexactly(length)
            writer.write(b"HTTP/1.1 504 Gateway Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            await writer.drain()
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(gave_up, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with client(url) as peer:
            with pytest.raises(A2AClientError):
                await answers(peer, request())
        server.close()
        hops = only_cascade()
        assert hop(hops, "send").peer == "unknown"
        assert verdict(hops).verdict == "unknown"

    run(story)


def test_a_stream_that_was_cut_leaves_it_unknown_what_became_of_the_task():
    async def story():
        async def cut(reader, writer):
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1])
                for line in head.lower().split(b"\r\n")
                if line.startswith(b"content-length")
            )
            asked = json.loads(await reader.readexactly(length))
            state = {"id": "t1", "contextId": "c1", "status": {"state": "TASK_STATE_WORKING"}}
            event = json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": {"task": state}})
            told = f"data: {event}\n\n".encode()
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                + b"%x\r\n%s\r\n" % (len(told), told)
            )
            await writer.drain()
            writer.close()  # in the middle of the chunks
            await writer.wait_closed()

        server = await asyncio.start_server(cut, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with client(url, streaming=True) as peer:
            with pytest.raises(A2AClientError):
                await answers(peer, request())
        server.close()
        hops = only_cascade()
        sent = hop(hops, "send")
        assert (sent.peer, sent.outcome, sent.task_state) == ("opaque", "failed", "TASK_STATE_WORKING")
        assert verdict(hops).verdict == "unknown"

    run(story)


class SendsTwice(httpx.AsyncBaseTransport):
    """A transport that takes no first answer for good, as retrying ones do after a bad one."""

    def __init__(self):
        self.inner = httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request):
        first = await self.inner.handle_async_request(request)
        await first.aclose()
        return await self.inner.handle_async_request(request)

    async def aclose(self):
        await self.inner.aclose()


def test_a_transport_that_sends_again_reaches_two_and_both_have_to_be_known():
    async def story():
        async with agent() as url, client(url, transport=SendsTwice()) as peer:
            await answers(peer, request())
            await over()
        hops = only_cascade()
        sent = hop(hops, "send")
        assert sent.attempts == 2
        served_ = [each for each in hops.values() if each.kind == "request"]
        assert [each.parent for each in served_] == [sent.id, sent.id]
        assert verdict(hops).verdict == "settled"
        lost = {key: each for key, each in hops.items() if key != served_[0].id}
        assert verdict(lost).verdict == "unknown"

    run(story)


def test_a_send_whose_coroutine_is_closed_elsewhere_is_abandoned_and_leaves_that_context_alone():
    async def story():
        from hopwatch.instrumentation import a2a

        never = asyncio.get_running_loop().create_future()

        async def wrapped(_):
            await never

        there = contextvars.copy_context()
        coroutine = a2a._sending("send_message")(wrapped, object(), (request(),), {})
        there.run(coroutine.send, None)
        with hopwatch.cascade("another"):
            mine = hopwatch.current().id
            coroutine.close()  # as the garbage collector does, in whatever context it runs
            assert hopwatch.current().id == mine
        sent = [each for hops in cascades().values() for each in hops.values() if each.kind == "send"]
        assert [(each.outcome, each.peer) for each in sent] == [("abandoned", "refused")]

    run(story)


def test_what_begins_after_the_response_is_no_part_of_the_request():
    async def story():
        began, answered = asyncio.Event(), asyncio.Event()
        tasks = []

        async def later(handler, params, context):
            began.set()
            await answered.wait()
            return await handler.on_message_send(params, context)

        async def hand_on(_):
            from a2a.server.context import ServerCallContext

            tasks.append(asyncio.create_task(later(handlers[0], request(), ServerCallContext())))
            return JSONResponse({})

        handlers = []
        made = DefaultRequestHandler.__init__

        def remember(self, *args, **kwargs):
            handlers.append(self)
            made(self, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(DefaultRequestHandler, "__init__", remember)
            async with agent(complete, Route("/later", hand_on, methods=["POST"])) as url:
                async with hopwatch.cascade("asks"), httpx.AsyncClient(timeout=60) as http:
                    await http.post(f"{url}/later")
                await began.wait()
                answered.set()
                await tasks[0]
                await over()
        for hops in cascades().values():
            assert not [each for each in hops.values() if each.kind == "request"]
            assert verdict(hops).verdict == "settled"

    run(story)


class Proxy:
    """An executor that hands everything on to another one, as instrumentations and dependency injection make them."""

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)


def test_an_executor_behind_a_proxy_has_its_execution_all_the_same(monkeypatch):
    async def story():
        plain = Executor
        monkeypatch.setitem(globals(), "Executor", lambda work: Proxy(plain(work)))
        async with agent() as url, client(url) as peer:
            await answers(peer, request())
            await over()
        hops = only_cascade()
        assert tree(hops) == MESSAGE
        assert verdict(hops).verdict == "settled"

    run(story)


def test_a_subscriber_that_stalls_holds_the_execution_open_until_it_has_its_events():
    async def story():
        from a2a.server.context import ServerCallContext
        from a2a.types.a2a_pb2 import SubscribeToTaskRequest

        from hopwatch.instrumentation import a2a_events

        subscribing, answer = asyncio.Event(), asyncio.get_running_loop().create_future()

        async def work(updater):
            await updater.start_work()
            await subscribing.wait()
            await complete(updater)

        handler = DefaultRequestHandler(
            agent_executor=Executor(work),
            task_store=InMemoryTaskStore(),
            agent_card=card_of("http://127.0.0.1:1", "JSONRPC"),
        )
        with hopwatch.cascade("asks"):
            told = await handler.on_message_send(request(now=True), ServerCallContext())

        async def subscribe():
            async for event in handler.on_subscribe_to_task(
                SubscribeToTaskRequest(id=told.id), ServerCallContext()
            ):
                subscribing.set()
                if type(event).__name__ != "Task":
                    await answer

        with hopwatch.service():  # the subscriber is somebody else's
            subscriber = asyncio.create_task(subscribe())
        (execution,) = [each for each in process.here().ledger.open_hops() if each.kind == "execution"]
        (events,) = [each for each in a2a_events._known if each.completion is not None]
        # The execution has returned, and the SDK has stored all that it said.
        await until(lambda: execution.done is not None and events.completion is None)
        assert not execution.closed
        assert verdict(only_cascade()).verdict != "settled"
        answer.set_result(None)
        await subscriber
        await over()
        assert verdict(only_cascade()).verdict == "settled"
        await handler.aclose()

    run(story)
