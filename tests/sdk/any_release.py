"""How does a test write an agent and a client without knowing which release of a2a-sdk it runs with?

Agents, messages and webhooks as their users write them for that release, behind the same few functions: nothing of hopwatch is in here.
"""

import asyncio
import contextlib
import inspect
import uuid
from importlib import metadata

import grpc
import httpx
import starlette.applications
import uvicorn
from a2a.client import ClientConfig, ClientFactory
from a2a.server.agent_execution import AgentExecutor
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.request_handlers.grpc_handler import GrpcHandler
from a2a.server.tasks import (
    BasePushNotificationSender,
    InMemoryPushNotificationConfigStore,
    InMemoryTaskStore,
    TaskUpdater,
)

RELEASE = tuple(int(part) for part in metadata.version("a2a-sdk").split(".")[:3])
OLD = RELEASE < (1,)
if OLD:
    from a2a import types
    from a2a.grpc.a2a_pb2_grpc import add_A2AServiceServicer_to_server
    from a2a.server.apps import A2ARESTFastAPIApplication, A2AStarletteApplication
    from a2a.utils import new_task as new_task_from_user_message
else:
    from a2a.compat.v0_3 import a2a_v0_3_pb2_grpc
    from a2a.compat.v0_3.grpc_handler import CompatGrpcHandler
    from a2a.helpers import new_task_from_user_message, new_text_message
    from a2a.server.request_handlers import LegacyRequestHandler
    from a2a.server.routes import create_jsonrpc_routes, create_rest_routes
    from a2a.types import a2a_pb2 as types
    from a2a.types.a2a_pb2_grpc import add_A2AServiceServicer_to_server

ENGINES = ["results"] if OLD else ["active", "legacy"]
"""`results` is the one of 0.3, which `legacy` still is in 1.x."""
BINDINGS = ["JSONRPC", "HTTP+JSON"]
if RELEASE > (0, 3, 22):  # whose client sends metadata with capitals, which gRPC refuses
    BINDINGS.append("GRPC")


@contextlib.asynccontextmanager
async def in_memory():
    """The stores of an agent: of tasks, and of whom to push to."""
    yield InMemoryTaskStore(), InMemoryPushNotificationConfigStore()


stores = in_memory
"""Which stores agents have; a test may put others here."""


class Executor(AgentExecutor):
    """Does what the test wants."""

    def __init__(self, work):
        self.work = work
        self.contexts = []

    async def execute(self, context, event_queue):
        self.contexts.append(context)
        task = context.current_task or new_task_from_user_message(context.message)
        if context.current_task is None:
            await event_queue.enqueue_event(task)
        await self.work(TaskUpdater(event_queue, task.id, task.context_id))

    async def cancel(self, context, event_queue):
        await TaskUpdater(event_queue, context.task_id, context.context_id).cancel()


def text_part(text):
    return types.Part(root=types.TextPart(text=text)) if OLD else types.Part(text=text)


async def complete(updater):
    await updater.start_work()
    await updater.add_artifact([text_part("done")])
    await updater.complete()


def card_of(url, binding, version="1.0"):
    where = {"JSONRPC": f"{url}/", "HTTP+JSON": f"{url}/rest"}.get(binding, url)
    common = {
        "name": "agent",
        "version": "1",
        "description": "an agent",
        "capabilities": types.AgentCapabilities(streaming=True, push_notifications=True),
        "default_input_modes": ["text/plain"],
        "default_output_modes": ["text/plain"],
        "skills": [types.AgentSkill(id="work", name="work", description="works", tags=["test"])],
    }
    if OLD:
        return types.AgentCard(url=where, preferred_transport=binding, **common)
    interface = types.AgentInterface(url=where, protocol_binding=binding, protocol_version=version)
    return types.AgentCard(supported_interfaces=[interface], **common)


@contextlib.asynccontextmanager
async def served(app):
    # By default it closes a connection after 5 s at rest, which a client may be about to use just then.
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_level="error", lifespan="off", timeout_keep_alive=120
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


def _sender(http, configs):
    wanted = inspect.signature(BasePushNotificationSender.__init__).parameters
    more = {}
    if "push_url_validator" in wanted:
        more["push_url_validator"] = None
    if "context" in wanted:  # 1.0
        from a2a.server.context import ServerCallContext

        more["context"] = ServerCallContext()
    return BasePushNotificationSender(http, configs, **more)


@contextlib.asynccontextmanager
async def served_by_grpc(handler, card, *, compat):
    """Serve a handler over gRPC; the address."""
    wanted = inspect.signature(GrpcHandler.__init__).parameters
    server = grpc.aio.server()
    add_A2AServiceServicer_to_server(
        GrpcHandler(request_handler=handler, **({"agent_card": card} if "agent_card" in wanted else {})),
        server,
    )
    if compat and not OLD:
        a2a_v0_3_pb2_grpc.add_A2AServiceServicer_to_server(CompatGrpcHandler(handler), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


class Agent:
    """One that is served: its URL, that of its webhook, and what the SDK has of it."""

    def __init__(self, url, hook, executor, handler):
        self.url = url
        self.hook = hook
        self.executor = executor
        self.handler = handler


@contextlib.asynccontextmanager
async def agent(work=complete, *routes, engine=ENGINES[0], binding="JSONRPC", compat=False, patience=60):
    """An agent that does `work` in each execution, with further routes of its own; `patience` is how long its pushes wait."""
    async with (
        httpx.AsyncClient(timeout=httpx.Timeout(60, read=patience)) as http,
        stores() as (tasks, configs),
    ):
        executor = Executor(work)
        card = card_of("http://127.0.0.1:1", binding)
        made = LegacyRequestHandler if engine == "legacy" else DefaultRequestHandler
        handler = made(
            agent_executor=executor,
            task_store=tasks,
            # 1.0 takes a message without a webhook for one whose webhook has an empty URL, and pushes there.
            **({"push_config_store": configs, "push_sender": _sender(http, configs)} if routes else {}),
            **({} if OLD else {"agent_card": card}),
        )
        if OLD:
            app = A2AStarletteApplication(agent_card=card, http_handler=handler).build()
            rest = A2ARESTFastAPIApplication(agent_card=card, http_handler=handler).build(rpc_url="")
            app.mount("/rest", rest)
            app.router.routes[:0] = routes
        else:
            app = starlette.applications.Starlette(
                routes=[
                    *routes,
                    *create_jsonrpc_routes(handler, "/", enable_v0_3_compat=compat),
                    *create_rest_routes(handler, path_prefix="/rest", **_compat_of_rest(compat)),
                ]
            )
        async with contextlib.AsyncExitStack() as stack:
            url = await stack.enter_async_context(served(app))
            hook = f"{url}/hook"
            if binding == "GRPC":
                url = await stack.enter_async_context(served_by_grpc(handler, card, compat=compat))
            yield Agent(url, hook, executor, handler)
        if hasattr(handler, "aclose"):
            await handler.aclose()


def _compat_of_rest(compat):
    known = inspect.signature(create_rest_routes).parameters
    return {"enable_v0_3_compat": compat} if "enable_v0_3_compat" in known else {}


class Client:
    """One who asks: `send` gives what the agent answered, as tasks, messages and events."""

    def __init__(self, inner):
        self.inner = inner

    async def send(self, text="do it", *, task="", context="", webhook=None, now=False):
        """Send a message; `now` asks for an answer before the work is over."""
        return [
            each async for each in self.stream(text, task=task, context=context, webhook=webhook, now=now)
        ]

    async def stream(self, text="do it", *, task="", context="", webhook=None, now=False):
        if OLD:
            message = types.Message(
                role=types.Role.user,
                parts=[text_part(text)],
                message_id=uuid.uuid4().hex,
                task_id=task or None,
                context_id=context or None,
            )
            # The client of 0.3.22 takes what is asked for with each message from its configuration alone.
            self.inner._config.polling = now
            self.inner._config.push_notification_configs = (
                [types.PushNotificationConfig(id="me", url=webhook)] if webhook else []
            )
            async for answer in self.inner.send_message(message):
                yield answer
            return
        configuration = types.SendMessageConfiguration(return_immediately=now)
        if webhook:
            configuration.task_push_notification_config.CopyFrom(
                types.TaskPushNotificationConfig(id="me", url=webhook)
            )
        message = new_text_message(text, role=types.Role.ROLE_USER)
        message.task_id, message.context_id = task, context
        request = types.SendMessageRequest(message=message, configuration=configuration)
        async for answer in self.inner.send_message(request):
            yield answer

    async def get_task(self, task):
        wanted = types.TaskQueryParams(id=task) if OLD else types.GetTaskRequest(id=task)
        return await self.inner.get_task(wanted)

    async def cancel_task(self, task):
        wanted = types.TaskIdParams(id=task) if OLD else types.CancelTaskRequest(id=task)
        return await self.inner.cancel_task(wanted)

    async def add_webhook(self, task, url, name):
        """Have what happens to a task be pushed to this URL as well."""
        if OLD:
            config = types.PushNotificationConfig(id=name, url=url)
            await self.inner.set_task_callback(
                types.TaskPushNotificationConfig(task_id=task, push_notification_config=config)
            )
        else:
            await self.inner.create_task_push_notification_config(
                types.TaskPushNotificationConfig(task_id=task, id=name, url=url)
            )

    def subscribe(self, task):
        if OLD:
            return self.inner.resubscribe(types.TaskIdParams(id=task))
        return self.inner.subscribe(types.SubscribeToTaskRequest(id=task))


@contextlib.asynccontextmanager
async def client(url, *, binding="JSONRPC", streaming=False, timeout=60, version="1.0"):
    async with httpx.AsyncClient(timeout=timeout) as http:
        config = ClientConfig(
            httpx_client=http,
            grpc_channel_factory=grpc.aio.insecure_channel,
            streaming=streaming,
            **{"supported_transports" if OLD else "supported_protocol_bindings": [binding]},
        )
        inner = ClientFactory(config).create(card_of(url, binding, version))
        try:
            yield Client(inner)
        finally:
            if binding == "GRPC":
                await inner._transport.close()


def task_of(answer):
    """The task, and its state as 1.x calls it, of an answer of either release, or of a task that was asked for."""
    if OLD:
        task = answer[0] if isinstance(answer, tuple) else answer
        return task.id, "TASK_STATE_" + task.status.state.value.upper().replace("-", "_")
    task = answer if isinstance(answer, types.Task) else answer.task
    return task.id, types.TaskState.Name(task.status.state)


def state_of_push(body):
    """The state that a push tells of; None for an artifact."""
    if OLD:
        return "TASK_STATE_" + body["status"]["state"].upper().replace("-", "_")
    return (body.get("task") or body.get("statusUpdate") or {}).get("status", {}).get("state")
