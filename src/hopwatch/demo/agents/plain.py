"""How does an A2A agent of the demo work? Nothing but a2a-sdk, Starlette and uvicorn: no line of hopwatch."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import uuid
from collections.abc import AsyncIterator

import grpc
import httpx
import uvicorn
from a2a.client import ClientConfig, ClientFactory
from a2a.helpers import new_task_from_user_message, new_text_message, new_text_part
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.request_handlers.grpc_handler import GrpcHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes, create_rest_routes
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
    Role,
    SendMessageConfiguration,
    SendMessageRequest,
    TaskPushNotificationConfig,
    TaskState,
)
from a2a.types.a2a_pb2_grpc import add_A2AServiceServicer_to_server
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


def arguments() -> argparse.Namespace:
    """What an agent is started with."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True, help="where it listens, on loopback")
    parser.add_argument("--to", default="", help="where the agent listens that it hands work to")
    parser.add_argument("--fault", default="none")
    parser.add_argument("--slow", default="", help="host:port of a server that takes its time")
    parser.add_argument("--count", type=int, default=1, help="of the user: how many messages")
    parser.add_argument("--at-once", type=int, default=1, help="of the user: how many of them at a time")
    parser.add_argument(
        "--binding", default="JSONRPC", help="how it hands work on: JSONRPC, HTTP+JSON or GRPC"
    )
    parser.add_argument("--grpc-port", type=int, default=0, help="where it takes gRPC, if it does")
    return parser.parse_args()


class Inbox:
    """Pushes that are waited for: one future for each piece of work that was handed on."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.refuses = refuses
        self._waiting: dict[str, asyncio.Future[str]] = {}

    def expect(self) -> tuple[str, asyncio.Future[str]]:
        """A path for a webhook, and a future of the final state that is pushed there."""
        key = uuid.uuid4().hex
        self._waiting[key] = asyncio.get_running_loop().create_future()
        return f"/webhook/{key}", self._waiting[key]

    async def webhook(self, request: Request) -> Response:
        """Take a push."""
        body = json.loads(await request.body())
        if self.refuses:
            return JSONResponse({"error": "no room for pushes today"}, status_code=503)
        future = self._waiting.get(request.path_params["key"])
        state = body.get("statusUpdate", {}).get("status", {}).get("state")
        if (
            future is not None
            and not future.done()
            and state in ("TASK_STATE_COMPLETED", "TASK_STATE_FAILED")
        ):
            future.set_result(state)
        return JSONResponse({})

    def routes(self) -> list[Route]:
        """The webhook's route."""
        return [Route("/webhook/{key}", self.webhook, methods=["POST"])]


async def delegate(url: str, text: str, webhook: str, *, binding: str = "JSONRPC") -> str:
    """Hand a piece of work to an agent without waiting for it; what becomes of it is pushed to `webhook`.

    Args:
        url: where the agent listens; for gRPC its address.
        text: what is to be done.
        webhook: URL.
        binding: JSONRPC, HTTP+JSON or GRPC.

    Returns:
        The id of the agent's task.
    """
    # A slow webhook is awaited before a2a-sdk 1.3.0 answers, so the answer may take a while.
    async with httpx.AsyncClient(timeout=60) as http:
        card = AgentCard(
            name="peer",
            supported_interfaces=[
                AgentInterface(
                    url={"JSONRPC": f"{url}/", "HTTP+JSON": f"{url}/rest"}.get(binding, url),
                    protocol_binding=binding,
                    protocol_version="1.0",
                )
            ],
            capabilities=AgentCapabilities(streaming=False, push_notifications=True),
        )
        config = ClientConfig(
            httpx_client=http,
            grpc_channel_factory=grpc.aio.insecure_channel,
            streaming=False,
            polling=True,
            supported_protocol_bindings=[binding],
        )
        client = ClientFactory(config).create(card)
        request = SendMessageRequest(
            message=new_text_message(text, role=Role.ROLE_USER),
            configuration=SendMessageConfiguration(
                return_immediately=True,
                task_push_notification_config=TaskPushNotificationConfig(id="caller", url=webhook),
            ),
        )
        task = ""
        try:
            async for answer in client.send_message(request):
                task = answer.task.id
        finally:
            await client.close()
        return task


class Delegating(AgentExecutor):
    """Hands its work to the next agent and waits until that one has pushed the end of it."""

    def __init__(self, to: str, here: str, inbox: Inbox, *, binding: str = "JSONRPC") -> None:
        self.to = to
        self.here = here
        self.inbox = inbox
        self.binding = binding

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Run one task."""
        task = context.current_task or new_task_from_user_message(context.message)
        await event_queue.enqueue_event(task)
        updater = TaskUpdater(event_queue, task.id, task.context_id)
        await updater.start_work()
        path, pushed = self.inbox.expect()
        await delegate(self.to, context.get_user_input(), self.here + path, binding=self.binding)
        state = await pushed
        if state != "TASK_STATE_COMPLETED":
            await updater.failed()
            return
        await updater.add_artifact([new_text_part("done below")])
        await updater.complete()

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Give a task up."""
        await TaskUpdater(event_queue, context.task_id or "", context.context_id or "").update_status(
            TaskState.TASK_STATE_CANCELED
        )


@contextlib.asynccontextmanager
async def taking_grpc(handler: DefaultRequestHandler, port: int) -> AsyncIterator[None]:
    """Take gRPC on a port of loopback as long as the block lasts; on no port if it is 0."""
    if not port:
        yield
        return
    server = grpc.aio.server()
    add_A2AServiceServicer_to_server(GrpcHandler(handler), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(None)


def serve(name: str, port: int, executor: AgentExecutor, inbox: Inbox, *, grpc_port: int = 0) -> None:
    """Serve an agent on loopback until it is told to stop: by SIGUSR1 in order, by SIGTERM or SIGINT as uvicorn does."""
    url = f"http://127.0.0.1:{port}"
    card = AgentCard(
        name=name,
        description=f"{name} of the demo",
        version="1",
        supported_interfaces=[
            AgentInterface(url=f"{url}/", protocol_binding="JSONRPC", protocol_version="1.0"),
            AgentInterface(url=f"{url}/rest", protocol_binding="HTTP+JSON", protocol_version="1.0"),
        ],
        capabilities=AgentCapabilities(streaming=True, push_notifications=True),
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        skills=[AgentSkill(id="work", name="work", description="works", tags=["demo"])],
    )

    async def run() -> None:
        """Serve."""
        async with httpx.AsyncClient(timeout=60) as http:
            configs = InMemoryPushNotificationConfigStore()
            handler = DefaultRequestHandler(
                agent_executor=executor,
                task_store=InMemoryTaskStore(),
                agent_card=card,
                push_config_store=configs,
                push_sender=BasePushNotificationSender(http, configs),
            )
            app = Starlette(
                routes=[
                    *inbox.routes(),
                    *create_agent_card_routes(card),
                    *create_jsonrpc_routes(handler, "/"),
                    *create_rest_routes(handler, path_prefix="/rest"),
                ]
            )
            server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
            # Asked to end by this signal, it returns from `main`; of SIGTERM and SIGINT uvicorn dies in the end.
            asyncio.get_running_loop().add_signal_handler(
                signal.SIGUSR1, setattr, server, "should_exit", True
            )
            async with taking_grpc(handler, grpc_port):
                await server.serve()

    if grpc_port:
        card.supported_interfaces.append(
            AgentInterface(url=f"127.0.0.1:{grpc_port}", protocol_binding="GRPC", protocol_version="1.0")
        )
    asyncio.run(run())
